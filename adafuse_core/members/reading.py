"""How the text of an answer is read while strategies compare whole answers: thoughts, calls and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adafuse_core.chat.thoughts import ThoughtReader, ThoughtTags
from adafuse_core.stopping import StopMatcher


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where the text of one answer may hold a thought or calls, in which stop strings have no effect.

    Args:
        tags: Tags of a thought at the beginning of the answer; None if thoughts count as text.
        thinking: Whether the answer starts inside a thought that the prompt opened.
        may_call: Whether the answer may call tools.
    """

    tags: ThoughtTags | None = None
    thinking: bool = False
    may_call: bool = False

    def shown(self, text: str, stop: Sequence[str]) -> str:
        """The text of an answer without its thought, up to the first stop string. Calls are part of the text."""
        return self._read(text, stop)[0]

    def stops(self, text: str, stop: Sequence[str]) -> bool:
        """Whether an answer of this text is complete, because it has a stop string outside of its thought.

        False if it may call tools: the string may be in a call.
        """
        return self._read(text, stop)[1]

    def _read(self, text: str, stop: Sequence[str]) -> tuple[str, bool]:
        if self.tags is not None:
            _, text = ThoughtReader(self.tags, inside=self.thinking).read(text, last=True)
        matcher = StopMatcher(() if self.may_call else tuple(stop))
        shown = matcher.feed(text)
        return shown + matcher.rest(), matcher.hit is not None
