"""Token masks for one member and one grammar.

A token is allowed if the grammar accepts its bytes, for every tokenization of the text. Each member thus obeys the
grammar in its own vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adafuse_core.chat.grammar import Grammar
from adafuse_core.rounds import Span
from adafuse_core.text.ids import Ids, shared_length
from adafuse_core.text.vocabulary import Vocabulary, bits_of

_STATES_KEPT = 4  # states after the last commits: re-encoding seldom changes earlier tokens


class Masks:
    """The mask of allowed tokens for each context of a growing answer.

    Args:
        grammar: Grammar of the answer.
        vocabulary: The member's vocabulary.
        end_ids: Tokens that end an answer, allowed where the grammar may end.
        prompt: Token ids of the prompt.
        lead: A blank that the tokenizer adds before the answer; not part of the answer.
        call_token: A control token that may precede the answer; not part of the answer.
    """

    def __init__(
        self,
        grammar: Grammar,
        vocabulary: Vocabulary,
        end_ids: Iterable[int],
        prompt: Ids,
        lead: str,
        call_token: int | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._end_bits = bits_of(index for index in end_ids if index < vocabulary.size)
        self._text_bits = ((1 << vocabulary.size) - 1) & ~self._end_bits
        self._prompt = prompt
        self._call_token = call_token
        self._lead = lead.encode()
        self._start = vocabulary.matcher(grammar.source())
        self._after_lead = vocabulary.matcher(grammar.source(lead=lead)) if lead else None
        self._committed: list[tuple[Ids, Any]] = []  # the last committed contexts, with their parser states
        self._added: list[tuple[Ids, Any]] = []  # contexts with text that is not committed
        self._cached: dict[Ids, bytes | None] = {}

    def __call__(self, context: Ids) -> bytes | None:
        """A bit mask of allowed tokens, lowest id first.

        None (no mask) if a token straddles the end of the prompt, or if the tokens' bytes differ from the answer's
        text, as with tokenizers that normalise texts.
        """
        if context not in self._cached:
            self._cached[context] = self._allowed(context)
        return self._cached[context]

    def allows(self, span: Span) -> bool:
        """Whether a valid answer may begin with the committed text and this span, or end after it.

        Tokens that are allowed one by one may be decoded to another text together, and contexts without a mask allow
        every token.
        """
        state = self._after_text(span.text)
        return state is not None and (not span.ends or state.is_accepting())

    def allows_tokens(self, ids: Ids, before: str, text: str) -> bool:
        """Whether a valid answer may begin with the committed text, `before` and `text`, as these tokens are decoded.

        Faster than `allows` for tokens that have the bytes of their text, which masks have allowed one by one.
        """
        written = self._vocabulary.engine.decode_bytes(list(ids))
        return written in (text.encode(), self._lead + text.encode()) or self.allows(Span(text=before + text))

    def add(self, context: Ids, text: str) -> None:
        """Add a context that ends with a text that is not committed, whatever tokens encode it."""
        if (state := self._after_text(text)) is not None:
            self._added.append((context, state))
            self._cached.pop(context, None)

    def commit(self, context: Ids, text: str) -> None:
        """Extend the answer.

        Args:
            context: Token ids of prompt and answer.
            text: The new text of the answer. It advances the grammar, whatever tokens encode it.
        """
        state = self._after_text(text)
        assert state is not None, f"{text!r} breaks the grammar"
        self._committed = [*self._committed[1 - _STATES_KEPT :], (context, state)]
        self._added.clear()
        self._cached.clear()

    def _allowed(self, context: Ids) -> bytes | None:
        state = self._at(context)
        if state is None:
            return None
        bits = _bits(state.compute_bitmask())
        opens = self._without_call_token(context) == self._prompt
        if opens and self._after_lead is not None:
            # A token with a leading blank is lead plus answer; other tokens start the answer itself.
            after_lead = _bits(self._after_lead.deep_copy().compute_bitmask())
            blanks = self._vocabulary.blank_bits
            bits = (bits & ~blanks) | (after_lead & blanks)
        bits &= self._text_bits
        if state.is_accepting():
            bits |= self._end_bits
        if self._call_token is not None and context == self._prompt:
            bits |= 1 << self._call_token
        return bits.to_bytes((self._vocabulary.size + 7) // 8, "little")

    def _at(self, context: Ids) -> Any:
        """The parser state after a context; None if the context is not a prefix of a valid answer."""
        for known, state in reversed([*self._committed, *self._added]):
            if context[len(known) - 1 : len(known)] == known[-1:] and context[: len(known)] == known:
                return self._consume(state, context[len(known) :])
        # Parse the answer from its start: nothing is known, or the context differs from the committed tokens. A
        # token may even straddle the end of the prompt.
        context = self._without_call_token(context)
        shared = shared_length(self._prompt, context)
        prompt, text = (self._vocabulary.engine.decode_bytes(list(ids[shared:])) for ids in (self._prompt, context))
        if not text.startswith(prompt):
            return None
        return self._consume(self._start, text[len(prompt) :].removeprefix(self._lead))

    def _after_text(self, text: str) -> Any:
        """The parser state after the committed text and more text; None if the grammar does not allow it."""
        return self._consume(self._committed[-1][1] if self._committed else self._start, text.encode())

    def _without_call_token(self, context: Ids) -> Ids:
        length = len(self._prompt)
        has_token = self._call_token is not None and context[: length + 1] == (*self._prompt, self._call_token)
        return context[:length] + context[length + 1 :] if has_token else context

    def _consume(self, state: Any, written: Ids | bytes) -> Any:
        """The parser state after more tokens or bytes; None if the grammar does not allow them."""
        further = state.deep_copy()
        ids = self._vocabulary.spelled(written) if isinstance(written, bytes) else list(written)
        return further if further.try_consume_tokens(ids) == len(ids) else None


def _bits(mask: bytes) -> int:
    return int.from_bytes(mask, "little")
