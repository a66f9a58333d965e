"""Formats of tool calls, one file per dialect."""

from __future__ import annotations

from adafuse_core.chat.dialects import hermes, llama3, mistral, plain
from adafuse_core.chat.dialects.base import Dialect

DIALECTS: dict[str, Dialect] = {module.DIALECT.name: module.DIALECT for module in (hermes, llama3, mistral, plain)}
SHARED = hermes.DIALECT  # for members without a common dialect


def dialect_of(template: str) -> Dialect | None:
    """The dialect of a chat template; None if it is unknown."""
    return next((dialect for dialect in DIALECTS.values() if dialect.fits(template)), None)
