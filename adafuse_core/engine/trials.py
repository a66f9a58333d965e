"""Texts on which a store's distributions are compared with those of fresh forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adafuse_core.engine.cache_growth import CacheAbilities
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.rounding import TEXT_LENGTH, agree, exact_dtype, logprobs, sample_ids
from adafuse_core.engine.store import Store
from adafuse_core.text.ids import Ids

_CACHE_STEPS = 6  # length of the draft in a `CacheTrial`
SINGLE_STEPS = tuple(range(1, 13))  # some models are wrong only after several tokens
FEW_PASSES = (4,)


@dataclass(frozen=True)
class _Read:
    """Contexts that a store reads together, and the context that is committed afterwards."""

    contexts: Sequence[Ids]
    then_commit: Ids | None = None


class StoreTrial:
    """Compares a store with fresh forward passes: on two sequences in turn, with branches, commits, and a draft.

    A third sequence starts with the tokens that the first one has read, if the store can share them.

    Args:
        model: The model.
        length: Tokens of the longer text before its draft.
        draft: Tokens of the draft that the store has read after each pass.
        batch: Whether one padded batch gives the distributions to compare with; else one pass for each text.
    """

    def __init__(
        self, model: Model, length: int = TEXT_LENGTH, draft: Sequence[int] = FEW_PASSES, *, batch: bool = True
    ) -> None:
        ids = tuple(sample_ids(model, length + TEXT_LENGTH // 2))
        start, own = ids[:length], ids[length:]
        other = own[::-1]
        committed = start + own[:3]
        written = committed + tuple(sample_ids(model, draft[-1], stride=17))
        short, branch = start[:4], start[:5] + other[:2]
        self._starts = start, short
        self._reads = (
            [
                _Read([start, start + other[:1], start + own[:2]], then_commit=start + own[:1]),  # unequal branches
                _Read([committed, start + own[:1] + other[:2]], then_commit=committed),  # one longer, one new
                *(_Read([written[: len(committed) + count]]) for count in draft),
            ],
            [
                _Read([start[:6], branch[:6]], then_commit=start[:5]),
                _Read([branch, start[:7]], then_commit=branch),  # in slots that the commit has freed
                _Read([(*branch, other[2])], then_commit=(*branch, other[2])),
                _Read([(*branch, *other[2:4])]),
            ],
        )
        self._heir_reads = [
            _Read([start + other[:1]], then_commit=start),
            _Read([start, start + own[:2]]),
        ]
        self._model = model
        texts = [written, start + other[:1], start + own[:1] + other[:2], branch + other[2:4]]
        wanted = {context for reads in self._reads for each in reads for context in each.contexts}
        self._expected = _fresh(model, texts, wanted, batch=batch)

    def problem(self, store: Store) -> str | None:
        """How the store's distributions are wrong; None if they are right."""
        memos = [Memo(start) for start in self._starts]
        self.memo = memos[0]
        left = [list(reads) for reads in self._reads]
        while any(left):
            if len(memos) == len(self._starts) and len(left[0]) < len(self._reads[0]):
                memos.append(self._heir(store))
                left.append(list(self._heir_reads) if memos[-1].kv is not None else [])
            requests = [ReadRequest(memo, reads[0].contexts) for memo, reads in zip(memos, left, strict=True) if reads]
            store.read(requests)  # at least one makes progress
            for memo, reads in zip(memos, left, strict=True):
                if reads and ReadRequest(memo, reads[0].contexts).is_answered():
                    done = reads.pop(0)
                    if not self._agrees(memo, done.contexts):
                        return "its distributions differ from those of fresh passes"
                    if done.then_commit is not None:
                        store.commit(memo, done.then_commit)
        return None

    def _heir(self, store: Store) -> Memo:
        """A new sequence with the beginning of the first one, or with nothing if the store shares nothing."""
        heir = Memo(self._starts[0])
        if length := store.reusable(self.memo, len(heir.trunk)):
            store.adopt(heir, self.memo, length, move=False)
        return heir

    def _agrees(self, memo: Memo, contexts: Sequence[Ids]) -> bool:
        return _agrees(self._model, memo, {context: self._expected[context] for context in contexts})


def _fresh(model: Model, texts: Sequence[Ids], wanted: set[Ids], *, batch: bool) -> dict[Ids, torch.Tensor]:
    """The log-probabilities after each wanted context, `[vocab]`, from passes over texts that start with them."""
    indices = sorted({len(context) - 1 for context in wanted})
    longest = max(map(len, texts))
    # Padding is on the right: later tokens can't change earlier distributions.
    rows = [[*text, *[0] * (longest - len(text))] for text in texts]
    passes = [rows] if batch else [[row] for row in rows]
    logits = torch.cat([model.forward_at(each, indices) for each in passes])  # [texts, indices, vocab]
    return {
        text[: index + 1]: torch.log_softmax(logits[row, column].to(exact_dtype(logits.dtype)), dim=-1)
        for row, text in enumerate(texts)
        for column, index in enumerate(indices)
        if index < len(text) and text[: index + 1] in wanted
    }


@dataclass(frozen=True)
class _Step:
    """Reads one sequence up to `length` tokens beyond its start, along some of its texts."""

    sequence: int
    length: int
    texts: Sequence[int]


class CacheTrial:
    """Compares the model's own cache with fresh forward passes, on drafts of two sequences in turn."""

    def __init__(self, model: Model, window: int = 0) -> None:
        self._model = model
        ids = tuple(sample_ids(model, max(TEXT_LENGTH, window + TEXT_LENGTH // 2)))
        steps = tuple(sample_ids(model, _CACHE_STEPS + 1))
        # The first sequence reaches the end of its attention window during the trial, the second is beyond it.
        self._starts = ids[: (window or TEXT_LENGTH) - _CACHE_STEPS // 2], ids[::-1]
        self._texts = [[start + steps[:-1], start + steps[:0:-1]] for start in self._starts]
        self._expected: dict[Ids, torch.Tensor] = {}

    def problem(self, abilities: CacheAbilities) -> str | None:
        """Why the cache can't be used as if it had these abilities; None if it can."""
        try:
            for text in (text for texts in self._texts for text in texts if text not in self._expected):
                self._expected[text] = logprobs(self._model, text, _CACHE_STEPS + 1)
            return self._problem(PrefillStore(self._model, abilities), abilities)
        except Exception as error:  # the model may do anything with its cache
            return f"{type(error).__name__}: {error}"

    def _problem(self, store: PrefillStore, abilities: CacheAbilities) -> str | None:
        memos = [Memo(start) for start in self._starts]
        for step in _steps(abilities):
            start = len(self._starts[step.sequence])
            texts = [self._texts[step.sequence][index] for index in step.texts]
            expected = {text[: start + step.length]: self._expected[text][step.length] for text in texts}
            before = self._model.tokens
            exact = _reproduces(self._model, store, memos[step.sequence], expected)
            if step.length and self._model.tokens - before >= start:
                return "the model returns no cache"
            if not exact:
                return "distributions after its cache differ from those of fresh passes"
        return None


def _reproduces(model: Model, store: Store, memo: Memo, expected: Mapping[Ids, torch.Tensor]) -> bool:
    """Whether a store reads contexts with the expected log-probabilities, `[vocab]`."""
    request = ReadRequest(memo, expected)
    while not request.is_answered():
        store.read([request])
    return _agrees(model, memo, expected)


def _agrees(model: Model, memo: Memo, expected: Mapping[Ids, torch.Tensor]) -> bool:
    """Whether a memo has the expected log-probabilities, `[vocab]`."""
    found = ((memo.get(context), row) for context, row in expected.items())
    return all(got is not None and agree(model, got.table[got.row], row) for got, row in found)


def _steps(abilities: CacheAbilities) -> list[_Step]:
    """Drafts of two sequences in turn; the second text of each sequence is a branch."""
    many = 2 if abilities.several_tokens else 1
    one, other, both = (0,), (1,), (0, 1)
    steps = [_Step(0, 0, one), _Step(1, 0, one)]
    if not abilities.several_rows:
        lengths = [(0, many), (1, many), (0, 2 * many), (1, 2 * many), (0, 2 * many + 1)]
        return steps + [_Step(sequence, length, one) for sequence, length in lengths]
    steps += [_Step(0, 1, both), _Step(1, 1, both)]
    return [*steps, _Step(0, 1 + many, both), _Step(1, 1 + many, other), _Step(0, 2 + many, other)]
