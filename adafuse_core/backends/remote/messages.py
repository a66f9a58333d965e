"""Messages between a remote session and its host: token ids, masks and log-probabilities as numpy arrays.

Every call holds the session's whole context, so a host that has lost the session, or never had it, can answer it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafuse_core.backends.base import SessionTokens, TopTokens
from adafuse_core.text.ids import Ids, shared_length

Integers = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PackedIds:
    """Several token sequences that mostly begin like the session's context.

    Args:
        shared: For each sequence, how many of the context's first tokens it starts with.
        lengths: For each sequence, how many tokens follow.
        tokens: These tokens, of all sequences, one after the other.
    """

    shared: Integers
    lengths: Integers
    tokens: Integers

    @classmethod
    def of(cls, sequences: Iterable[Ids], context: Ids = ()) -> PackedIds:
        """Pack sequences."""
        shared, tails = [], []
        for ids in sequences:
            shared.append(len(context) if ids[: len(context)] == context else shared_length(ids, context))
            tails.append(ids[shared[-1] :])
        flat = [token for tail in tails for token in tail]
        return cls(_integers(shared), _integers(map(len, tails)), _integers(flat))

    def unpack(self, context: Ids = ()) -> list[Ids]:
        """The sequences."""
        tails = _split(self.tokens.tolist(), self.lengths.tolist())
        return [context[:shared] + tuple(tail) for shared, tail in zip(self.shared.tolist(), tails, strict=True)]


@dataclass(frozen=True, slots=True)
class PackedMasks:
    """Masks of allowed tokens, each after a context. Equal masks are sent once.

    Args:
        contexts: The contexts.
        rows: For each context, the row of its mask in the table.
        table: Masks, one bit per token, lowest bit first, `[masks, bytes]`.
    """

    contexts: PackedIds
    rows: Integers
    table: NDArray[np.uint8]

    @classmethod
    def of(cls, masks: Mapping[Ids, bytes], context: Ids) -> PackedMasks:
        """Pack masks of equal length."""
        unique = {mask: row for row, mask in enumerate(dict.fromkeys(masks.values()))}
        table = np.frombuffer(b"".join(unique), dtype=np.uint8).reshape(len(unique), -1) if unique else _NO_MASKS
        return cls(PackedIds.of(masks, context), _integers(unique[mask] for mask in masks.values()), table)

    def unpack(self, context: Ids) -> dict[Ids, bytes]:
        """The mask of each context."""
        masks = [row.tobytes() for row in self.table]
        rows = self.rows.tolist()
        return {ids: masks[row] for ids, row in zip(self.contexts.unpack(context), rows, strict=True)}


_NO_MASKS = np.zeros((0, 0), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class PackedSteps:
    """The likeliest tokens at each step of several rows.

    Args:
        rows: Number of steps of each row.
        counts: Number of tokens of each step.
        ids: The tokens of all steps, one after the other.
        logprobs: Their natural log-probabilities, in float32 if that is exact, else in float64.
    """

    rows: Integers
    counts: Integers
    ids: Integers
    logprobs: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[TopTokens]]) -> PackedSteps:
        """Pack the steps of each row."""
        steps = [step for row in rows for step in row]
        ids = [token for step in steps for token in step.ids]
        logprobs = [value for step in steps for value in step.logprobs]
        return cls(
            _integers(map(len, rows)), _integers(len(step.ids) for step in steps), _integers(ids), _exact(logprobs)
        )

    def unpack(self) -> list[list[TopTokens]]:
        """The steps of each row."""
        counts = self.counts.tolist()
        ids, logprobs = _split(self.ids.tolist(), counts), _split(self.logprobs.tolist(), counts)
        steps = [TopTokens(tuple(each), tuple(values)) for each, values in zip(ids, logprobs, strict=True)]
        return [list(row) for row in _split(steps, self.rows.tolist())]


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionCall:
    """What every call of a session says about it.

    Args:
        session: A name that no other session has.
        call: A name that no other call has, by which the call can be cancelled.
        context: Its committed context.
        window: As in `Backend.open`.
        lookup: As in `Backend.open`.
        namespace: As in `Backend.open`.
        masked: Whether calls have masks.
    """

    session: str
    call: str
    context: Integers
    window: int | None
    lookup: bool
    namespace: str
    masked: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftCall(SessionCall):
    """A call of `Session.draft`, which the host ends by itself, since it can't ask `until`.

    Args:
        contexts: Contexts to continue.
        masks: Masks of those contexts, and of those that follow if they are known. Where a masked session has none,
            the model's own distribution is reported.
        top: Number of likeliest tokens to report per step.
        most: Most steps per context.
        words: Words after whose ends a row stops; see `words.py`.
        inside: For each context, whether it ends inside a word.
        branches: Likeliest tokens that the caller goes on with where it is uncertain.
        certain: Margin from which on it is certain.
        guesses: As in `Session.draft`.
    """

    contexts: PackedIds
    masks: PackedMasks
    top: int
    most: int
    words: int
    inside: NDArray[np.bool_]
    branches: int
    certain: float
    guesses: PackedIds


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreCall(SessionCall):
    """A call of `Session.score`, with the masks of all contexts that have one."""

    contexts: PackedIds
    continuations: PackedIds
    masks: PackedMasks
    guesses: PackedIds


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The result of a call.

    Args:
        tokens: Tokens that the host's session has read and reused.
        opened: Whether the host had to open the session for this call.
        steps: Steps of a draft: of the call's contexts, then of the branches.
        branches: The contexts of the branches.
        logprobs: Log-probabilities of all continuation tokens of a score, one continuation after the other.
    """

    tokens: SessionTokens
    opened: bool
    steps: PackedSteps | None = None
    branches: PackedIds | None = None
    logprobs: NDArray[np.floating[Any]] | None = None


def packed(ids: Ids) -> Integers:
    """One token sequence as an array."""
    return _integers(ids)


def packed_logprobs(rows: Iterable[Sequence[float]]) -> NDArray[np.floating[Any]]:
    """Log-probabilities of several rows, one after the other."""
    return _exact([value for row in rows for value in row])


def unpacked_logprobs(values: NDArray[np.floating[Any]], lengths: Iterable[int]) -> list[list[float]]:
    """Rows of log-probabilities of these lengths."""
    return [list(row) for row in _split(values.tolist(), list(lengths))]


def _integers(values: Iterable[int]) -> Integers:
    return np.fromiter(values, dtype=np.int32)


def _exact(values: Sequence[float]) -> NDArray[np.floating[Any]]:
    """Values in float32 if no digit is lost, else in float64."""
    wide = np.asarray(values, dtype=np.float64)
    narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), wide) else wide


def _split(values: Sequence[Any], lengths: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Consecutive parts of these lengths."""
    return (values[start:end] for start, end in pairwise(accumulate(lengths, initial=0)))
