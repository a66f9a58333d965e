"""Which tokens may follow, for one member's prefix and one grammar.

A token is allowed if the grammar can go on after its bytes, in whatever way the text is cut into tokens. So each member
obeys the grammar in its own vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adafuse_core.chat.grammar import Grammar
from adafuse_core.text.ids import Ids, shared_length
from adafuse_core.text.vocabulary import Vocabulary, bits_of

_RECENT = 4  # commits: a token that is written anew began in one of them


class Masks:
    """The allowed tokens after each context, while an answer grows.

    Args:
        grammar: Of the answer.
        vocabulary: The member's.
        end_ids: Tokens that end an answer; allowed where the grammar may end.
        prompt: Ids before the answer.
        lead: A blank that the tokenizer writes before the answer, no part of it.
        silent: A control token that may be written before the answer, no part of it either.
    """

    def __init__(
        self,
        grammar: Grammar,
        vocabulary: Vocabulary,
        end_ids: Iterable[int],
        prompt: Ids,
        lead: str,
        silent: int | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._end_bits = bits_of(index for index in end_ids if index < vocabulary.size)
        self._text_bits = ((1 << vocabulary.size) - 1) & ~self._end_bits
        self._prompt = prompt
        self._silent = silent
        self._lead = lead.encode()
        self._start = vocabulary.matcher(grammar.source())
        self._after_lead = vocabulary.matcher(grammar.source(lead=lead)) if lead else None
        self._committed: list[tuple[Ids, Any]] = []  # the last contexts that were committed, and the states after them
        self._known: dict[Ids, bytes | None] = {}

    def __call__(self, context: Ids) -> bytes | None:
        """One bit for each token, lowest first, set where it may follow.

        None (no mask) if a token straddles the end of the prompt, or if the tokens' bytes differ from the answer's
        text, as with tokenizers that change texts.
        """
        if context not in self._known:
            self._known[context] = self._allowed(context)
        return self._known[context]

    def commit(self, context: Ids, text: str) -> None:
        """Extend the answer.

        Args:
            context: Ids of prompt and answer.
            text: The answer's new text. It moves the grammar on, whatever ids write it.
        """
        state = self._consume(self._committed[-1][1] if self._committed else self._start, text.encode())
        assert state is not None, f"{text!r} breaks the grammar"
        self._committed = [*self._committed[1 - _RECENT :], (context, state)]
        self._known.clear()

    def _allowed(self, context: Ids) -> bytes | None:
        state = self._at(context)
        if state is None:
            return None
        bits = _bits(state.compute_bitmask())
        opens = self._without_silent(context) == self._prompt
        if opens and self._after_lead is not None:
            # Tokens with a blank are read as lead and answer; the others begin the answer itself.
            after_lead = _bits(self._after_lead.deep_copy().compute_bitmask())
            blanks = self._vocabulary.blank_bits
            bits = (bits & ~blanks) | (after_lead & blanks)
        bits &= self._text_bits
        if state.is_accepting():
            bits |= self._end_bits
        if self._silent is not None and context == self._prompt:
            bits |= 1 << self._silent
        return bits.to_bytes((self._vocabulary.size + 7) // 8, "little")

    def _at(self, context: Ids) -> Any:
        """The state after a context; None if the context does not end inside an answer that the grammar allows."""
        for committed, state in reversed(self._committed):
            if context[: len(committed)] == committed:
                return self._consume(state, context[len(committed) :])
        # The answer from its beginning: nothing is committed yet, or its last ids differ from those committed. A token
        # may even straddle the end of the prompt.
        context = self._without_silent(context)
        shared = shared_length(self._prompt, context)
        prompt, text = (self._vocabulary.engine.decode_bytes(list(ids[shared:])) for ids in (self._prompt, context))
        if not text.startswith(prompt):
            return None
        return self._consume(self._start, text[len(prompt) :].removeprefix(self._lead))

    def _without_silent(self, context: Ids) -> Ids:
        at = len(self._prompt)
        silent = self._silent is not None and context[at : at + 1] == (self._silent,) and context[:at] == self._prompt
        return context[:at] + context[at + 1 :] if silent else context

    def _consume(self, state: Any, written: Ids | bytes) -> Any:
        """The state after more tokens or bytes; None if the grammar does not allow them."""
        further = state.deep_copy()
        ids = self._vocabulary.spelled(written) if isinstance(written, bytes) else list(written)
        return further if further.try_consume_tokens(ids) == len(ids) else None


def _bits(mask: bytes) -> int:
    return int.from_bytes(mask, "little")
