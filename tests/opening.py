"""Opens one member by itself, as a request does for all."""

from __future__ import annotations

import threading

from adafuse_core.members.base import Opening
from adafuse_core.request import checked_prompt


def opened(member, prompt, max_word_tokens, grammar=None):
    """A prefix, to be closed by whoever asked for it."""
    options = {"max_word_tokens": max_word_tokens, "lookup": False, "cancel": threading.Event(), "grammar": grammar}
    return member.open(Opening(prompt=checked_prompt(prompt), **options))
