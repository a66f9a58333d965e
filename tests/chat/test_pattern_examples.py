"""Examples of regular expressions match them."""

from __future__ import annotations

import re

import pytest

from adafuse_core.chat.pattern_examples import example
from adafuse_core.chat.schema_formats import DATE, TIME, uri

PATTERNS = (
    r"^[^@\s]+@[^@\s]+\.[^@\s]+$",
    r"^.*\.(jpe?g|png)$",
    r"^(https?|ftp)://[^\s/$.?#].[^\s]*$",
    r"^\+?[1-9]\d{1,14}$",
    r"^(?:[A-Z]{2}|[à-ü]{3})-\w+\W\D\S\s$",
    r"^[^A-Za-z0-9]{2}$",
    r"^(?!\.)(?=.*[A-Z])[A-Z.]+$",
    r"^[ぁ-ん]+$",
    r"",
    f"^{DATE}T{TIME}$",
    f"^{uri('https')}$",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_example_matches(pattern):
    assert re.search(pattern, example(pattern))


@pytest.mark.parametrize("pattern", [r"^\p{L}+$", "[", r"(?<year>\d)", "a{1001}", "((" * 2000])
def test_without_an_example_there_is_no_text(pattern):
    assert example(pattern) == ""
