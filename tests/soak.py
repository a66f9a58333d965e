"""Many requests with common beginnings at once, at random cancelled, closed, failing and evicted.

    python -m tests.soak 10000

runs as many requests as wanted and prints what was seen. `test_prefix_cache.py` runs a few hundred.
"""

from __future__ import annotations

import gc
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

from adafuse_core import AdaFuseError, CancelledError, Ensemble, NonFiniteLogitsError, TextDelta
from adafuse_core.chat.grammar import Grammar
from adafuse_core.engine.memo import Memo
from tests import tiny

THREADS = 12
TOKENS = 5  # of an answer
NAMESPACES = ("", "alice", "bob")
FAILURES = 0.02  # share of requests during which the weights hold NaN for a moment
GRAMMAR = Grammar.regex("[a-z ]{1,12}")


def prompts(draw, count):
    """Prompts that begin alike: rules, questions after them, and conversations that grow."""
    rules = [f"Rule {number}: " + "it is what it is, " * number for number in range(1, 7)]
    found = []
    while len(found) < count:
        base = draw.choice([*rules, *found[-40:]])
        if len(base) < 300:
            found.append(
                base + draw.choice([" What is it? ", "\n\n1984 ", " 日本 ", " x = [1,\n  ", " Smile 😀 ", "?"])
            )
    return found


class Soak:
    """Requests to an ensemble that remembers, compared with the answers of one that doesn't."""

    def __init__(self, remembers, forgets, seed):
        self.remembers, self.forgets = remembers, forgets
        self.draw = random.Random(seed)
        self.prompts = prompts(self.draw, 150)
        self.expected, self.lock = {}, threading.Lock()
        self.outcomes, self.problems, self.highest = Counter(), [], 0

    def run(self, count):
        seeds = [self.draw.random() for _ in range(count)]
        with ThreadPoolExecutor(THREADS) as pool:
            for future in [pool.submit(self.one, seed) for seed in seeds]:
                future.result()

    def answer(self, prompt, grammar):
        key = prompt, grammar is None
        with self.lock:
            if key not in self.expected:
                self.expected[key] = self.forgets.generate(prompt, max_new_tokens=TOKENS, grammar=grammar).text
            return self.expected[key]

    def one(self, seed):
        draw = random.Random(seed)
        prompt, grammar = draw.choice(self.prompts), draw.choice((None, None, None, GRAMMAR))
        expected = self.answer(prompt, grammar)
        kind = draw.choices(("finish", "cancel", "close", "forget", "too long"), (70, 12, 12, 3, 3))[0]
        if kind == "forget":
            self.remembers.forget(draw.choice((None, *NAMESPACES)))
        if kind == "too long":
            prompt += "quick brown " * 300
        cancel, moment, text = threading.Event(), draw.randrange(4), ""
        with self.failing(draw.random() < FAILURES):
            stream = self.remembers.stream(
                prompt, max_new_tokens=TOKENS, grammar=grammar, cancel=cancel, cache_namespace=draw.choice(NAMESPACES)
            )
            try:
                with closing(stream):
                    for number, event in enumerate(stream):
                        text += event.text if isinstance(event, TextDelta) else ""
                        if number == moment and kind == "cancel":
                            cancel.set()
                        elif number == moment and kind == "close":
                            break
                    else:
                        kind = "whole"
            except AdaFuseError as error:
                kind = type(error).__name__
                if not isinstance(error, CancelledError | NonFiniteLogitsError) and len(prompt) < 1000:
                    self.problems.append(repr(error))
        self.outcomes[kind] += 1
        self.highest = max(self.highest, *self.held())
        if (kind == "whole" and text != expected) or not expected.startswith(text):
            self.problems.append(f"{kind}: {text!r} after {prompt!r}, not {expected!r}")

    def failing(self, wanted):
        """Let one weight be NaN for a moment, if wanted."""
        member = self.draw.choice(self.remembers.members)
        return Poisoned(member.backend.model.module.model.norm.weight) if wanted else threading.Lock()

    def held(self):
        backends = [member.backend for member in self.remembers.members]
        return [backend.tokens_held() + backend.tokens_cached() for backend in backends]


class Poisoned:
    """One weight is NaN inside the context; contexts in several threads may overlap."""

    good: ClassVar[dict] = {}
    users: ClassVar[Counter] = Counter()
    lock: ClassVar = threading.Lock()

    def __init__(self, weight):
        self.weight = weight

    def __enter__(self):
        with self.lock:
            if not self.users[id(self.weight)]:
                self.good[id(self.weight)] = self.weight.data[0].item()
            self.users[id(self.weight)] += 1
            self.weight.data[0] = float("nan")

    def __exit__(self, *_):
        with self.lock:
            self.users[id(self.weight)] -= 1
            if not self.users[id(self.weight)]:
                self.weight.data[0] = self.good[id(self.weight)]


def soak(folders, count, seed=0, **options):
    """Run requests; returns the `Soak`, after checks of everything but its problems."""
    bounds = {"dtype": "float64", "max_kv_tokens": 1500}
    others = WeakSet(each for each in gc.get_objects() if type(each) is Memo)  # of other ensembles in this process
    members = [{"model": str(folder), **bounds, **more} for folder, more in folders]
    apart = [
        shutil.copytree(folder, Path(folder).with_name(f"{Path(folder).name}-apart"), dirs_exist_ok=True)
        for folder, _ in folders
    ]
    alone = [
        m | {"model": str(f), "prefix_cache": False} for m, f in zip(members, apart, strict=True)
    ]  # no shared weights
    with (
        Ensemble.from_pretrained(*members, max_word_tokens=6, **options) as remembers,
        Ensemble.from_pretrained(*alone, max_word_tokens=6) as forgets,
    ):
        done = Soak(remembers, forgets, seed)
        done.run(count)
        assert [member.backend.tokens_held() for member in remembers.members] == [0] * len(members)
        assert all(0 < member.backend.tokens_cached() <= 1500 for member in remembers.members)
        remembers.forget()
        assert [member.backend.tokens_cached() for member in remembers.members] == [0] * len(members)
        for _ in range(2):  # the first one closes abandoned generators, the second one frees what they held
            gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is Memo and each not in others]
        for member in remembers.members:
            fixed = getattr(member.backend._batcher.store, "_fixed", None)
            assert fixed is None or len(set(fixed.pool._free)) == fixed.pool._size - 2
    return done


def main():
    with tempfile.TemporaryDirectory() as folder:
        first = tiny.save_tiny(Path(folder) / "bytes", tiny.byte_level(), tiny.llama, seed=0)
        second = tiny.save_tiny(Path(folder) / "pieces", tiny.metaspace(), tiny.sliding_mistral, seed=1)
        done = soak([(first, {"kv_store": "tree"}), (second, {"kv_store": "fork"})], int(sys.argv[1]))
        print(dict(done.outcomes), f"most tokens held: {done.highest}", *done.problems[:10], sep="\n")
        sys.exit(bool(done.problems))


if __name__ == "__main__":
    main()
