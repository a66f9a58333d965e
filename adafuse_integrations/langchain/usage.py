"""Token counts as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adafuse_core.rounds import Usage


def usage_dict(usage: Usage) -> dict[str, dict[str, int]]:
    """Token counts per member, each counted by the member's own tokenizer."""
    return {name: counts for name, counts in usage.to_dict().items() if name != "rounds"}


def usage_from_dict(counts: Mapping[str, Any]) -> Usage:
    """The inverse of `usage_dict`, without the number of rounds."""
    return Usage(**counts, rounds=0)
