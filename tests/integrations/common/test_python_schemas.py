"""Every text that the grammar of a Python type allows is a valid value of the type."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from adafuse_integrations.common.python_schemas import type_schema
from tests.python_types import TYPES, texts


def refused(kind, written):
    """Texts that are not values of a type."""
    adapter = TypeAdapter(kind)
    for text in written:
        try:
            adapter.validate_json(text)
        except ValidationError as error:
            yield text, str(error)


@pytest.mark.parametrize("name", TYPES)
def test_every_text_that_a_grammar_allows_is_a_value_of_its_type(name):
    written = texts(type_schema(TYPES[name]), 200)
    assert len(written) == 201
    assert list(refused(TYPES[name], written)) == []


def test_there_are_many_types():
    assert len(TYPES) >= 60
