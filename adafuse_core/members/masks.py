"""Which tokens may follow, for one member's prefix and one grammar.

A token is allowed if the grammar can go on after its bytes. Whatever ids a text is written with, its tokens are
allowed, so that each member obeys in its own vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from adafuse_core.chat.grammar import Grammar
from adafuse_core.errors import ConfigError
from adafuse_core.text.tokens import INCOMPLETE, Ids
from adafuse_core.text.vocabulary import Vocabulary


class Masks:
    """The allowed tokens after each context, while an answer grows.

    Args:
        grammar: Of the answer.
        vocabulary: The member's.
        end_ids: Tokens that end an answer; allowed where the grammar may end.
        prompt: Ids before the answer.
        lead: A blank that the tokenizer writes before the answer, no part of it.
        text_of: Text of the ids after the prompt, lead left out.
    """

    def __init__(
        self,
        grammar: Grammar,
        vocabulary: Vocabulary,
        end_ids: Iterable[int],
        prompt: Ids,
        lead: str,
        text_of: Callable[[Ids], str],
    ) -> None:
        self._vocabulary = vocabulary
        self._end_bits = _set(index for index in end_ids if index < vocabulary.size)
        self._text_bits = ((1 << vocabulary.size) - 1) & ~self._end_bits
        self._prompt = prompt
        self._text_of = text_of
        self._start = _matcher(vocabulary, grammar.source())
        self._after_lead = _matcher(vocabulary, grammar.source(lead=lead)) if lead else None
        self._committed, self._state = prompt, self._start
        self._known: dict[Ids, bytes | None] = {}

    def __call__(self, context: Ids) -> bytes | None:
        """One bit for each token, lowest first, set where it may follow; None where a token began before the answer."""
        if context not in self._known:
            self._known[context] = self._allowed(context)
        return self._known[context]

    def commit(self, context: Ids) -> None:
        """Go on from here."""
        state = self._at(context)
        self._known.clear()
        if state is not None:
            self._committed, self._state = context, state

    def _allowed(self, context: Ids) -> bytes | None:
        state = self._at(context)
        if state is None:
            return None
        bits = _bits(state.compute_bitmask())
        if context == self._prompt and self._after_lead is not None:
            blanks = _blanks(self._vocabulary)  # after the lead; without one, the answer's own first character
            bits = (bits & ~blanks) | (_bits(self._after_lead.deep_copy().compute_bitmask()) & blanks)
        bits &= self._text_bits
        if state.is_accepting():
            bits |= self._end_bits
        return bits.to_bytes((self._vocabulary.size + 7) // 8, "little")

    def _at(self, context: Ids) -> Any:
        """The state after a context; None if that is not at a place of the answer."""
        length = len(self._committed)
        if context[:length] == self._committed and context != self._prompt:
            state = self._state
            if length == len(self._prompt) and self._after_lead is not None and self._leads(context[length]):
                state = self._after_lead
            return self._consume(state, context[length:])
        if context[: len(self._prompt)] != self._prompt:
            return None
        text = self._text_of(context[len(self._prompt) :])  # written otherwise than it was committed
        if text.endswith(INCOMPLETE):
            return None
        return self._consume(self._start, self._vocabulary.engine.greedy_tokenize(text))

    def _consume(self, state: Any, ids: Iterable[int]) -> Any:
        further = state.deep_copy()
        ids = list(ids)
        return further if further.try_consume_tokens(ids) == len(ids) else None

    def _leads(self, token: int) -> bool:
        return bool(_blanks(self._vocabulary) >> token & 1)


@lru_cache(maxsize=64)
def _matcher(vocabulary: Vocabulary, source: str) -> Any:
    from llguidance import LLMatcher

    matcher = LLMatcher(vocabulary.engine, source, log_level=0)
    if matcher.is_error():
        raise ConfigError(f"the grammar can't be used: {matcher.get_error().splitlines()[0]}")
    return matcher


@lru_cache(maxsize=16)
def _blanks(vocabulary: Vocabulary) -> int:
    """Bits of the tokens that begin with a blank."""
    engine = vocabulary.engine
    return _set(index for index in range(vocabulary.size) if engine.decode_bytes([index])[:1] == b" ")


def _set(indices: Iterable[int]) -> int:
    """An integer with these bits set."""
    flags = bytearray()
    for index in indices:
        flags.extend(bytes(max(0, index // 8 + 1 - len(flags))))
        flags[index // 8] |= 1 << index % 8
    return _bits(bytes(flags))


def _bits(mask: bytes) -> int:
    return int.from_bytes(mask, "little")
