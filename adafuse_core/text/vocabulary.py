"""The tokens of one vocabulary as bytes, and as the grammar engine wants them.

A grammar is about text. What it means for one member's tokens follows from the bytes of each token, so members with
different vocabularies can obey the same grammar.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from llguidance import LLTokenizer

from adafuse_core.errors import UnsupportedModelError


class Vocabulary:
    """One tokenizer's tokens.

    Args:
        tokenizer: A fast transformers tokenizer. It is not changed.
        size: Token ids that the model knows; those without a token are never allowed by a grammar.
        special_ids: Tokens without text.
    """

    def __init__(self, tokenizer: Any, *, size: int, special_ids: Iterable[int]) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self._special_ids = sorted(special_ids)
        self._lock = threading.Lock()
        self._engine: LLTokenizer | None = None

    @property
    def engine(self) -> LLTokenizer:
        """The vocabulary as the grammar engine reads it, made at the first use: large ones take seconds.

        Raises:
            UnsupportedModelError: The engine can't tell the bytes of this tokenizer's tokens.
        """
        with self._lock:
            if self._engine is None:
                self._engine = LLTokenizer(_Bytes(self._token_bytes(), self._special_ids))  # type: ignore[arg-type]
            return self._engine

    def _token_bytes(self) -> list[bytes]:
        try:
            known = LLTokenizer(self._tokenizer.backend_tokenizer.to_str(), slices=[])
        except Exception as error:
            raise UnsupportedModelError(
                f"answers with a grammar need the bytes of every token, which this tokenizer does not tell: {error}",
                hint="use a tokenizer of the byte-level or SentencePiece kind, or leave tools and grammars out",
            ) from error
        tokens = [known.decode_bytes([index]) for index in range(min(self.size, known.vocab_size))]
        return tokens + [b""] * (self.size - len(tokens))


class _Bytes:
    """Tokens in the form that the engine reads; it asks for no more than these names."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: list[int]) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)  # a token of its own: where an answer may end is asked for otherwise
        self.special_token_ids = [*special_ids, *(index for index, token in enumerate(self.tokens) if not token)]

    def __call__(self, text: bytes) -> list[int]:
        """The engine asks for an encoding of text that must follow. There is more than one right one: none is given."""
        return []


def byte_vocabulary() -> LLTokenizer:
    """Bytes as tokens. For what concerns the text alone."""
    return LLTokenizer(_Bytes([bytes([value]) for value in range(256)], []))  # type: ignore[arg-type]
