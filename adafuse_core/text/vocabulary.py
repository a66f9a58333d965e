"""The tokens of one vocabulary as bytes, and as the grammar engine wants them.

A grammar is about text. What it means for one member's tokens follows from the bytes of each token, so members with
different vocabularies can obey the same grammar.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from functools import cache, cached_property, lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from adafuse_core.errors import ConfigError
from adafuse_core.forks import call_after_fork, renew_after_fork
from adafuse_core.text.tokens import INCOMPLETE, Codec

_RECENT = 64  # grammars that a vocabulary keeps
_LARGE = 1 << 14  # tokens: from here on the engine's precomputed slices are worth the time they take
_BYTES = [bytes([value]) for value in range(256)]
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """One tokenizer's tokens.

    Args:
        tokenizer: A fast transformers tokenizer. It is not changed.
        codec: Its way between text and ids.
        size: Token ids that the model knows; those without a token are never allowed by a grammar.
    """

    def __init__(self, tokenizer: Any, codec: Codec, *, size: int) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self._codec = codec
        self.after_fork()
        renew_after_fork(self)
        self._engine: LLTokenizer | None = None

    def after_fork(self) -> None:
        """Make a new lock, and compile grammars again: copies of a matcher share locks of the engine."""
        self._lock = threading.Lock()
        # By a grammar's source the engine's state at its beginning, to be copied before it is used.
        self.matcher = lru_cache(_RECENT)(lambda source: new_matcher(self.engine, source))

    @property
    def engine(self) -> LLTokenizer:
        """The vocabulary in the form of the grammar engine, made at the first use: large ones take seconds.

        The vocabulary's own tokens are followed by one for each byte, so that any text can be read.
        """
        with self._lock:
            if self._engine is None:
                tokens = self._token_bytes()[: self.size]
                tokens += [b""] * (self.size - len(tokens))
                self._engine = _engine(tokens + _BYTES, sorted(self._codec.special_ids))
            return self._engine

    @cached_property
    def blank_bits(self) -> int:
        """The tokens that begin with a blank, as bits."""
        engine = self.engine
        return bits_of(index for index in range(self.size) if engine.decode_bytes([index])[:1] == b" ")

    def spelled(self, data: bytes) -> list[int]:
        """Bytes as tokens of the engine, each by itself."""
        return [self.size + value for value in data]

    def _token_bytes(self) -> list[bytes]:
        try:
            known = LLTokenizer(self._tokenizer.backend_tokenizer.to_str(), slices=[])
        except Exception:  # it knows decoders of the byte-level kind, and those with byte fallback
            return [self._decoded(index) for index in range(len(self._tokenizer))]
        return [known.decode_bytes([index]) for index in range(known.vocab_size)]

    def _decoded(self, index: int) -> bytes:
        """Bytes of a token by the tokenizer's own decoder, after some text; none where it is part of a character."""
        if byte := _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(index))):
            return bytes.fromhex(byte[1])
        text = self._codec.decode(self._codec.encode_prompt("a")[0], [index])
        return b"" if INCOMPLETE in text else text.encode()


@cache
def byte_matchers() -> Callable[[str], LLMatcher]:
    """Matchers on bytes as tokens, by a grammar's source, for what concerns the text alone.

    One constant of the process. It keeps the grammars that were compiled last, and no model.
    """
    return lru_cache(_RECENT)(lambda source: new_matcher(byte_engine(), source))


@cache
def byte_engine() -> LLTokenizer:
    """Bytes as tokens, for the grammar engine. One constant of the process."""
    return _engine(_BYTES, [])


call_after_fork(byte_matchers.cache_clear)


def new_matcher(engine: LLTokenizer, source: str) -> LLMatcher:
    """The engine's state at the beginning of a grammar. Raises `ConfigError`."""
    matcher = LLMatcher(engine, source, log_level=0)
    if matcher.is_error():
        raise ConfigError(f"the grammar can't be used: {matcher.get_error().splitlines()[0]}")
    return matcher


def bits_of(indices: Iterable[int]) -> int:
    """An integer with these bits set."""
    flags = bytearray()
    for index in indices:
        flags.extend(bytes(max(0, index // 8 + 1 - len(flags))))
        flags[index // 8] |= 1 << index % 8
    return int.from_bytes(flags, "little")


def _engine(tokens: list[bytes], special_ids: list[int]) -> LLTokenizer:
    slices: list[str] | None = None if len(tokens) >= _LARGE else []
    return LLTokenizer(_Bytes(tokens, special_ids), slices=slices)  # type: ignore[arg-type]


class _Bytes:
    """Tokens in the form that the engine reads; it asks for no more than these names."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: list[int]) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)  # never allowed in a mask: `LLMatcher.is_accepting` tells where answers may end
        self.special_token_ids = [*special_ids, *(index for index, token in enumerate(self.tokens) if not token)]

    def __call__(self, text: bytes) -> list[int]:
        """The engine asks how text that must follow is encoded. Grammars are made so that it never does."""
        raise NotImplementedError
