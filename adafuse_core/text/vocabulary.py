"""The tokens of a vocabulary as bytes, in the form that the grammar engine reads.

A grammar constrains text. The engine finds the allowed tokens of a member from the bytes of each token, so members with
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

_RECENT = 64  # compiled grammars that are cached
_LARGE = 1 << 14  # tokens from which the engine's precomputed slices save more time than they take
_BYTES = [bytes([value]) for value in range(256)]
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """One tokenizer's tokens.

    Args:
        tokenizer: A fast transformers tokenizer. It is not changed.
        codec: The codec of this tokenizer.
        size: Number of token ids of the model. Grammars never allow ids that have no token.
    """

    def __init__(self, tokenizer: Any, codec: Codec, *, size: int) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self._codec = codec
        self.after_fork()
        renew_after_fork(self)
        self._engine: LLTokenizer | None = None

    def after_fork(self) -> None:
        """Replace the lock, and drop compiled grammars: copies of a matcher share locks of the engine."""
        self._lock = threading.Lock()
        # The matcher at the beginning of a grammar, by the grammar's source. Copy it before use.
        self.matcher = lru_cache(_RECENT)(lambda source: new_matcher(self.engine, source))

    @property
    def engine(self) -> LLTokenizer:
        """The vocabulary in the form of the grammar engine, created at the first use; large ones take seconds.

        The vocabulary's own tokens are followed by one token per byte, so that the engine can read any text.
        """
        with self._lock:
            if self._engine is None:
                tokens = self._token_bytes()[: self.size]
                tokens += [b""] * (self.size - len(tokens))
                self._engine = _engine(tokens + _BYTES, sorted(self._codec.special_ids))
            return self._engine

    @cached_property
    def blank_bits(self) -> int:
        """The tokens that start with a blank, one bit per token id."""
        engine = self.engine
        return bits_of(index for index in range(self.size) if engine.decode_bytes([index])[:1] == b" ")

    def spelled(self, data: bytes) -> list[int]:
        """The engine's token of each byte."""
        return [self.size + value for value in data]

    def _token_bytes(self) -> list[bytes]:
        try:
            known = LLTokenizer(self._tokenizer.backend_tokenizer.to_str(), slices=[])
        except Exception:  # llguidance reads only byte-level decoders and decoders with byte fallback
            return [self._decoded(index) for index in range(len(self._tokenizer))]
        return [known.decode_bytes([index]) for index in range(known.vocab_size)]

    def _decoded(self, index: int) -> bytes:
        """Bytes of a token after some text, from the tokenizer's decoder; empty for a part of a character."""
        if byte := _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(index))):
            return bytes.fromhex(byte[1])
        text = self._codec.decode(self._codec.encode_prompt("a")[0], [index])
        return b"" if INCOMPLETE in text else text.encode()


@cache
def byte_matchers() -> Callable[[str], LLMatcher]:
    """A function from a grammar's source to a matcher whose tokens are bytes, for checks of text without a member.

    The process has one such function. It caches the matchers of the last grammars.
    """
    return lru_cache(_RECENT)(lambda source: new_matcher(byte_engine(), source))


@cache
def byte_engine() -> LLTokenizer:
    """A vocabulary of the 256 bytes, in the form of the grammar engine. The process has one."""
    return _engine(_BYTES, [])


call_after_fork(byte_matchers.cache_clear)


def new_matcher(engine: LLTokenizer, source: str) -> LLMatcher:
    """A matcher at the beginning of a grammar. Raises `ConfigError`."""
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
    """Tokens in the form that the engine reads. It uses only these attributes and methods."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: list[int]) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)  # never allowed in a mask: `LLMatcher.is_accepting` tells where answers may end
        self.special_token_ids = [*special_ids, *(index for index, token in enumerate(self.tokens) if not token)]

    def __call__(self, text: bytes) -> list[int]:
        """Encode forced text. The engine never calls it: all grammars have the option `no_forcing`."""
        raise NotImplementedError
