"""Token counts as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adafuse_core.rounds import Usage


def usage_dict(usage: Usage) -> dict[str, dict[str, int]]:
    """Tokens of prompt and answer per member, each counted by the member's own tokenizer."""
    return {"prompt_tokens": dict(usage.prompt_tokens), "completion_tokens": dict(usage.completion_tokens)}


def usage_from_dict(counts: Mapping[str, Any]) -> Usage:
    """The inverse of `usage_dict`, without the number of rounds."""
    return Usage(**counts, rounds=0)
