"""How models write tool calls: one small file per dialect."""

from __future__ import annotations

from adafuse_core.chat.dialects import hermes, llama3, mistral, plain
from adafuse_core.chat.dialects.base import Dialect

DIALECTS: dict[str, Dialect] = {module.DIALECT.name: module.DIALECT for module in (hermes, llama3, mistral, plain)}
SHARED = hermes.DIALECT  # in which members are instructed that have no dialect in common


def spoken_by(template: str) -> Dialect | None:
    """The dialect that a chat template was written for; None if it is none of these."""
    return next((dialect for dialect in DIALECTS.values() if dialect.fits(template)), None)
