"""Texts on which a store's distributions are held against those of fresh forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefill import CacheUse, PrefillStore
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store
from adafuse_core.text.ids import Ids

LENGTH = 12  # tokens that a trial needs, beyond any window

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 3e-4}  # of the logits' spread; norms run in float32 anyway
_HALF_TOLERANCE = 0.15
_STEPS = 6  # of a draft that is tried out with a cache that only grows
_MORE_STEPS = 12  # of a draft that is tried out with any store: some models go wrong after some tokens only


class StoreTrial:
    """Distributions of fresh forward passes, to hold a store against: a text, branches of it, and a longer draft."""

    def __init__(self, model: Model, length: int) -> None:
        ids = tuple(junk(model, length))
        self.start, rest = ids[: length - LENGTH // 2], ids[length - LENGTH // 2 :]
        other = rest[::-1]
        # In this order: two branches of unequal length, one of them lengthened, and a third one by two tokens.
        self.rounds = [[self.start], [self.start + other[:1], self.start + rest[:2]]]
        self.rounds += [[self.start + rest[:3], self.start + other[:2]], [self.start + rest[:1] + other[:2]]]
        self.committed = self.start + rest[:3]
        self.rounds += [[self.committed + other[:1]], [self.committed + rest[3:], self.committed + rest[4:]]]
        self.expected = {context: logprobs(model, context, 1)[0] for contexts in self.rounds for context in contexts}
        draft = self.committed + tuple(junk(model, _MORE_STEPS, stride=17))
        for step, expected in enumerate(logprobs(model, draft, _MORE_STEPS), len(self.committed) + 1):
            self.rounds.append([draft[:step]])
            self.expected[draft[:step]] = expected
        self._dtype = model.module.dtype

    def problem(self, store: Store) -> str | None:
        """What is wrong with a store's answers."""
        self.memo = Memo(self.start)
        for number, contexts in enumerate(self.rounds):
            request = ReadRequest(self.memo, contexts)
            while not request.is_answered():
                store.read([request])
            for context in contexts:
                known = self.memo.known(context)
                if known is None or not agree(known.table[known.row], self.expected[context], self._dtype):
                    return "its distributions differ from those of fresh passes"
            if number == 3:
                store.commit(self.memo, self.committed)
        return None


class CacheTrial:
    """Drafts of two sequences in turn, to hold a cache that only grows against fresh forward passes."""

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
        """What is wrong with the answers of a store that goes on like this."""
        try:
            for text in (text for texts in self._texts for text in texts if text not in self._expected):
                self._expected[text] = logprobs(self._model, text, _STEPS + 1)
            return self._problem(PrefillStore(self._model, use), use)
        except Exception as error:  # whatever a model does with its cache
            return f"{type(error).__name__}: {error}"

    def _problem(self, store: PrefillStore, use: CacheUse) -> str | None:
        memos = [Memo(start) for start in self._starts]
        for which, length, texts in _plan(use):
            start, memo = len(self._starts[which]), memos[which]
            contexts = {self._texts[which][text][: start + length]: text for text in texts}
            before = self._model.tokens
            request = ReadRequest(memo, contexts)
            while not request.is_answered():
                store.read([request])
            if length and self._model.tokens - before >= start:
                return "it hands out no cache"
            for context, text in contexts.items():
                known = memo.known(context)
                expected = self._expected[self._texts[which][text]][length]
                if known is None or not agree(known.table[known.row], expected, self._model.module.dtype):
                    return "what its cache goes on with differs from fresh passes"
        return None


def _plan(use: CacheUse) -> list[tuple[int, int, tuple[int, ...]]]:
    """Drafts of two sequences in turn: which one, how many tokens beyond its start, along which of its texts."""
    many = 2 if use.several_tokens else 1
    one, other, both = (0,), (1,), (0, 1)
    if use.several_rows:
        lengths = [(0, 1, both), (1, 1, both), (0, 1 + many, both), (1, 1 + many, other), (0, 2 + many, other)]
    else:
        lengths = [(0, many, one), (1, many, one), (0, 2 * many, one), (1, 2 * many, one), (0, 2 * many + 1, one)]
    return [(0, 0, one), (1, 0, one), *lengths]


def windows(config: object) -> Sequence[int]:
    """Lengths beyond which some layers do not look, where a context can be longer."""
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
    """What a fresh pass says after each of so many last tokens, `[last, vocab]`."""
    return torch.log_softmax(model.forward([text], last=last)[0].double(), dim=-1)


def agree(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors of logits differ by no more than rounding in a model of this dtype."""
    first, second = first.double(), second.double()
    spread = second.std().clamp(min=1e-6)
    return bool(((first - second).abs().max() / spread) < _TOLERANCE.get(dtype, _HALF_TOLERANCE))
