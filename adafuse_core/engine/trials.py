"""Texts on which a store's distributions are compared with those of fresh forward passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adafuse_core.engine.cache_growth import CacheAbilities
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store
from adafuse_core.text.ids import Ids

TEXT_LENGTH = 12  # tokens of a trial's text, beyond any attention window

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 3e-4}  # relative to the logits' spread; norms run in float32 anyway
_HALF_TOLERANCE = 0.15
_CACHE_STEPS = 6  # length of the draft in a `CacheTrial`
_STORE_STEPS = 12  # length of the draft in a `StoreTrial`: some models are wrong only after several tokens


@dataclass(frozen=True)
class _Read:
    """Contexts that a store reads together, and the context that is committed afterwards."""

    contexts: Sequence[Ids]
    then_commit: Ids | None = None


class StoreTrial:
    """Compares a store with fresh forward passes: on a text, branches of it, a commit, and a longer draft."""

    def __init__(self, model: Model, length: int) -> None:
        ids = tuple(sample_ids(model, length))
        start, own = ids[: length - TEXT_LENGTH // 2], ids[length - TEXT_LENGTH // 2 :]
        other = own[::-1]
        committed = start + own[:3]
        draft = committed + tuple(sample_ids(model, _STORE_STEPS, stride=17))
        self._reads = [
            _Read([start]),
            _Read([start + other[:1], start + own[:2]]),  # two branches of unequal length
            _Read([start + own[:3], start + other[:2]]),  # both one token longer
            _Read([start + own[:1] + other[:2]], then_commit=committed),  # a third branch inside the first
            _Read([committed + other[:1]]),
            _Read([committed + own[3:], committed + own[4:]]),
            *(_Read([draft[: len(committed) + step]]) for step in range(1, _STORE_STEPS + 1)),
        ]
        self._start = start
        self._dtype = model.module.dtype
        contexts = [context for each in self._reads[:-_STORE_STEPS] for context in each.contexts]
        self._expected = {context: logprobs(model, context, 1)[0] for context in contexts}
        for step, expected in enumerate(logprobs(model, draft, _STORE_STEPS), 1):
            self._expected[draft[: len(committed) + step]] = expected

    def problem(self, store: Store) -> str | None:
        """How the store's distributions are wrong; None if they are right."""
        self.memo = Memo(self._start)
        for each in self._reads:
            expected = {context: self._expected[context] for context in each.contexts}
            if not _reproduces(store, self.memo, expected, self._dtype):
                return "its distributions differ from those of fresh passes"
            if each.then_commit is not None:
                store.commit(self.memo, each.then_commit)
        return None


@dataclass(frozen=True)
class _Step:
    """Reads one sequence up to `length` tokens beyond its start, along some of its texts."""

    sequence: int
    length: int
    texts: Sequence[int]


class CacheTrial:
    """Compares the model's own cache with fresh forward passes, on drafts of two sequences in turn."""

    def __init__(self, model: Model) -> None:
        window = max(attention_windows(model.module.config.get_text_config()), default=0)
        self._model = model
        ids = tuple(sample_ids(model, max(TEXT_LENGTH, window + TEXT_LENGTH // 2)))
        steps = tuple(sample_ids(model, _CACHE_STEPS + 1))
        # The first sequence reaches the end of its attention window during the trial, the second is beyond it.
        self._starts = ids[: max(TEXT_LENGTH, window) - _CACHE_STEPS // 2], ids[::-1]
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
            exact = _reproduces(store, memos[step.sequence], expected, self._model.module.dtype)
            if step.length and self._model.tokens - before >= start:
                return "the model returns no cache"
            if not exact:
                return "distributions after its cache differ from those of fresh passes"
        return None


def _reproduces(store: Store, memo: Memo, expected: Mapping[Ids, torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether a store reads contexts with the expected log-probabilities, `[vocab]`."""
    request = ReadRequest(memo, expected)
    while not request.is_answered():
        store.read([request])
    found = ((memo.get(context), row) for context, row in expected.items())
    return all(got is not None and agree(got.table[got.row], row, dtype) for got, row in found)


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


def attention_windows(config: object) -> Sequence[int]:
    """Lengths of the sliding windows and attention chunks that are shorter than the longest context."""
    types = getattr(config, "layer_types", None)
    if types is not None and set(types) == {"full_attention"}:
        return []
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    return [window for window in found if isinstance(window, int) and window < longest]


def sample_ids(model: Model, length: int, stride: int = 31) -> list[int]:
    """Arbitrary token ids, spread over the vocabulary; neighbours differ."""
    while math.gcd(stride, model.vocab_size) > 1:  # else the ids would be the same few again and again
        stride += 1
    return [(7 + stride * index) % model.vocab_size for index in range(length)]


def logprobs(model: Model, text: Ids, last: int) -> torch.Tensor:
    """Log-probabilities of a fresh pass after each of the `last` tokens, `[last, vocab]`."""
    return torch.log_softmax(model.forward([text], last=last)[0].double(), dim=-1)


def agree(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors of logits differ only by rounding, for a model of this dtype."""
    first, second = first.double(), second.double()
    spread = second.std().clamp(min=1e-6)
    return bool(((first - second).abs().max() / spread) < _TOLERANCE.get(dtype, _HALF_TOLERANCE))
