"""Texts on which a store's distributions are compared with those of fresh forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adafuse_core.engine.cache_growth import CacheUse
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store
from adafuse_core.text.ids import Ids

LENGTH = 12  # tokens that a trial needs, beyond any window

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 3e-4}  # of the logits' spread; norms run in float32 anyway
_HALF_TOLERANCE = 0.15
_STEPS = 6  # of a draft that is tried out with a cache that only grows
_MORE_STEPS = 12  # of a draft that is tried out with any store: some models go wrong after some tokens only


@dataclass(frozen=True)
class _Round:
    """Contexts that a store reads together, and one that is committed after that."""

    contexts: Sequence[Ids]
    then_commit: Ids | None = None


class StoreTrial:
    """Distributions of fresh forward passes, to compare with a store's: a text, branches of it, and a longer draft."""

    def __init__(self, model: Model, length: int) -> None:
        ids = tuple(junk(model, length))
        start, own = ids[: length - LENGTH // 2], ids[length - LENGTH // 2 :]
        other = own[::-1]
        committed = start + own[:3]
        draft = committed + tuple(junk(model, _MORE_STEPS, stride=17))
        self._rounds = [
            _Round([start]),
            _Round([start + other[:1], start + own[:2]]),  # two branches of unequal length
            _Round([start + own[:3], start + other[:2]]),  # both one token longer
            _Round([start + own[:1] + other[:2]], then_commit=committed),  # a third branch inside of the first
            _Round([committed + other[:1]]),
            _Round([committed + own[3:], committed + own[4:]]),
            *(_Round([draft[: len(committed) + step]]) for step in range(1, _MORE_STEPS + 1)),
        ]
        self._start = start
        self._dtype = model.module.dtype
        contexts = [context for each in self._rounds[:-_MORE_STEPS] for context in each.contexts]
        self._expected = {context: logprobs(model, context, 1)[0] for context in contexts}
        for step, expected in enumerate(logprobs(model, draft, _MORE_STEPS), 1):
            self._expected[draft[: len(committed) + step]] = expected

    def problem(self, store: Store) -> str | None:
        """What is wrong with a store's answers."""
        self.memo = Memo(self._start)
        for each in self._rounds:
            request = ReadRequest(self.memo, each.contexts)
            while not request.is_answered():
                store.read([request])
            for context in each.contexts:
                known = self.memo.known(context)
                if known is None or not agree(known.table[known.row], self._expected[context], self._dtype):
                    return "its distributions differ from those of fresh passes"
            if each.then_commit is not None:
                store.commit(self.memo, each.then_commit)
        return None


@dataclass(frozen=True)
class _Turn:
    """One sequence's turn in a trial: it is read on to `length` tokens beyond its start, along some of its texts."""

    sequence: int
    length: int
    texts: Sequence[int]


class CacheTrial:
    """Drafts of two sequences in turn, to compare a cache that only grows with fresh forward passes."""

    def __init__(self, model: Model) -> None:
        window = max(windows(model.module.config.get_text_config()), default=0)
        self._model = model
        ids = tuple(junk(model, max(LENGTH, window + LENGTH // 2)))
        steps = tuple(junk(model, _STEPS + 1))
        # One comes to the end of its attention window in the trial, the other is beyond it.
        self._starts = ids[: max(LENGTH, window) - _STEPS // 2], ids[::-1]
        self._texts = [[start + steps[:-1], start + steps[:0:-1]] for start in self._starts]
        self._expected: dict[Ids, torch.Tensor] = {}

    def problem(self, use: CacheUse) -> str | None:
        """What is wrong with the answers of a store that uses the cache like this."""
        try:
            for text in (text for texts in self._texts for text in texts if text not in self._expected):
                self._expected[text] = logprobs(self._model, text, _STEPS + 1)
            return self._problem(PrefillStore(self._model, use), use)
        except Exception as error:  # whatever a model does with its cache
            return f"{type(error).__name__}: {error}"

    def _problem(self, store: PrefillStore, use: CacheUse) -> str | None:
        memos = [Memo(start) for start in self._starts]
        for turn in _turns(use):
            start, memo, texts = len(self._starts[turn.sequence]), memos[turn.sequence], self._texts[turn.sequence]
            contexts = {texts[text][: start + turn.length]: texts[text] for text in turn.texts}
            before = self._model.tokens
            request = ReadRequest(memo, contexts)
            while not request.is_answered():
                store.read([request])
            if turn.length and self._model.tokens - before >= start:
                return "it hands out no cache"
            for context, text in contexts.items():
                known, expected = memo.known(context), self._expected[text][turn.length]
                if known is None or not agree(known.table[known.row], expected, self._model.module.dtype):
                    return "what its cache goes on with differs from fresh passes"
        return None


def _turns(use: CacheUse) -> list[_Turn]:
    """Drafts of two sequences in turn; the second text of each is a branch of it."""
    many = 2 if use.several_tokens else 1
    one, other, both = (0,), (1,), (0, 1)
    turns = [_Turn(0, 0, one), _Turn(1, 0, one)]
    if not use.several_rows:
        lengths = [(0, many), (1, many), (0, 2 * many), (1, 2 * many), (0, 2 * many + 1)]
        return turns + [_Turn(sequence, length, one) for sequence, length in lengths]
    turns += [_Turn(0, 1, both), _Turn(1, 1, both)]
    return [*turns, _Turn(0, 1 + many, both), _Turn(1, 1 + many, other), _Turn(0, 2 + many, other)]


def windows(config: object) -> Sequence[int]:
    """Lengths of the sliding windows and attention chunks that are shorter than the longest context."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return []
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    return [window for window in found if isinstance(window, int) and window < longest]


def junk(model: Model, length: int, stride: int = 31) -> list[int]:
    """Some token ids, spread over the vocabulary; neighbours differ."""
    return [(7 + stride * index) % model.vocab_size for index in range(length)]


def logprobs(model: Model, text: Ids, last: int) -> torch.Tensor:
    """Log-probabilities of a fresh pass after each of the last tokens, `[last, vocab]`."""
    return torch.log_softmax(model.forward([text], last=last)[0].double(), dim=-1)


def agree(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors of logits differ by no more than rounding in a model of this dtype."""
    first, second = first.double(), second.double()
    spread = second.std().clamp(min=1e-6)
    return bool(((first - second).abs().max() / spread) < _TOLERANCE.get(dtype, _HALF_TOLERANCE))
