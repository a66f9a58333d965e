"""A backend without a model, which counts token bigrams. It consists of this file and a row of `BACKENDS`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from adafuse_core.backends.base import Abilities, SessionTokens, TopTokens
from adafuse_core.checks import expect

UNSEEN = 1e-3  # count of a bigram that is not in the text


@dataclass(frozen=True, kw_only=True)
class Stub:
    """Options of a bigram model.

    Args:
        text: Training text.
        place: The place that it reports.
        vocab_size: The size that it reports. Default: the size of the tokenizer.
    """

    text: str
    place: str = "stub:1"
    vocab_size: int | None = None

    honours: ClassVar[frozenset[str]] = frozenset({"dtype"})

    def __post_init__(self):
        expect(bool(self.text), "text", self.text, "some text")

    def open_backend(self, config, files, shared):
        ids = [*files.tokenizer.encode(self.text), files.tokenizer.eos_token_id]
        size = self.vocab_size or len(files.tokenizer)
        return StubBackend(ids, size, config.dtype, self.place, shared(self.place, Counter))


class StubBackend:
    def __init__(self, ids, size, dtype, place, calls):
        self.pairs, self.size, self.dtype, self.place, self.calls = defaultdict(Counter), size, dtype, place, calls
        self.closed = False
        for first, second in pairwise(ids):
            self.pairs[first][second] += 1

    def open(self, context, *, window, lookup, raise_if_cancelled, allowed=None, namespace=""):
        assert allowed is None  # backends without masks never get one
        self.calls["open"] += 1
        return StubSession(self, raise_if_cancelled)

    def abilities(self):
        return Abilities(
            vocab_size=self.size,
            dtype=self.dtype,
            device="counts",
            place=self.place,
            top=5,
            full_distribution=False,
            masks=False,
            cache="none",
        )

    def forget(self, namespace=None):
        self.calls["forget"] += 1

    def close(self):
        self.closed = True

    def logprob(self, context, token):
        seen = self.pairs[context[-1]]
        return math.log((seen[token] + UNSEEN) / (seen.total() + UNSEEN * self.size))

    def likeliest(self, context, top):
        ids = sorted(range(self.size), key=lambda token: (-self.pairs[context[-1]][token], token))[:top]
        return TopTokens(tuple(ids), tuple(self.logprob(context, token) for token in ids))


class StubSession:
    def __init__(self, backend, raise_if_cancelled):
        self.backend, self.raise_if_cancelled = backend, raise_if_cancelled

    def draft(self, contexts, max_new, top, until, guesses=()):
        self.raise_if_cancelled()
        return [self.continued(row, context, max_new, top, until) for row, context in enumerate(contexts)]

    def continued(self, row, context, max_new, top, until):
        steps = []
        while len(steps) < max_new:
            steps.append(self.backend.likeliest(context, top))
            if until(row, steps):
                break
            context += steps[-1].ids[:1]
        return steps

    def score(self, contexts, continuations, guesses=()):
        self.raise_if_cancelled()
        return [
            [self.backend.logprob(context + ids[:place], token) for place, token in enumerate(ids)]
            for context, ids in zip(contexts, continuations, strict=True)
        ]

    def commit(self, context):
        self.backend.calls["commit"] += 1

    def tokens(self):
        return SessionTokens()

    def close(self):
        self.backend.calls["close"] += 1
