"""What an answer took, in plain JSON. LangChain adds up chunks, so it stands in the last one alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adafuse_core.rounds import Usage


def tokens(usage: Usage) -> dict[str, dict[str, int]]:
    """Tokens of prompt and answer, each member's in its own."""
    return {"prompt_tokens": dict(usage.prompt_tokens), "completion_tokens": dict(usage.completion_tokens)}


def usage(told: Mapping[str, Any]) -> Usage:
    """What `tokens` tells, read back; without the rounds."""
    return Usage(**told, rounds=0)
