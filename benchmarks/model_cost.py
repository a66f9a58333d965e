"""CPU time of given models together, relative to their own `generate`: `cost.py --models`.

Contestants: each member's own `generate` of transformers, each member alone through the engine (`strategy="single"`),
and the ensemble with one and with three branches, in each engine mode. They take turns at each prompt, with
the same token budget; everything is divided by the words that were written. A time covers the whole request: reading
the prompt, and the answer. The ratios are medians over the repeats; in each repeat, a member alone is compared with its
own `generate`, and the ensemble with the sum over its members' `generate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import common
from adafuse_core import Ensemble
from free_text import Prompts, prompt_sets
from own_generate import OwnGenerate

BRANCHES = (1, 3)
WARM_UP = 4  # tokens of an answer that is not measured


@dataclass
class Turn:
    """One answer, and what it took."""

    text: str
    cpu: float
    spent: common.Counts


@dataclass
class Contestant:
    """One way to answer.

    Args:
        name: Name in the table.
        answer: Answers a prompt in at most so many tokens.
        counts: Reads forward passes and tokens so far, per member.
        members: The members whose own `generate` it is compared with; none for `generate` itself.
        rounds: All rounds of an ensemble.
        turns: The answers: those to all prompts, as often as the prompts are repeated.
    """

    name: str
    answer: Callable[[Any, int], str]
    counts: Callable[[], common.Counts]
    members: Sequence[str] = ()
    rounds: list[Any] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def take_turn(self, prompt: Any, budget: int) -> None:
        """Answer a prompt, and note CPU time and counters."""
        before, began = self.counts(), time.process_time()
        text = self.answer(prompt, budget)
        self.turns.append(Turn(text, time.process_time() - began, self.counts() - before))

    def words(self, n: int) -> int:
        """Words of the answers to all n prompts."""
        return sum(common.count_words(turn.text) for turn in self.turns[:n])

    def texts(self, n: int) -> list[str]:
        """The answers to all n prompts."""
        return [turn.text for turn in self.turns[:n]]

    def cpu(self, n: int) -> list[float]:
        """CPU seconds per word, of each repeat of the n prompts."""
        repeats = (self.turns[at : at + n] for at in range(0, len(self.turns), n))
        return [sum(turn.cpu for turn in turns) / self.words(n) for turns in repeats]

    def per_word(self, prompt_tokens: dict[str, int], n: int) -> dict[str, dict[str, float]]:
        """Forward passes and tokens per word and member, without the first pass over each prompt."""
        turns, words = self.turns[:n], self.words(n)
        return {
            "forwards": {
                name: (sum(turn.spent.forwards[name] for turn in turns) - n) / words for name in turns[0].spent.forwards
            },
            "tokens": {
                name: (sum(turn.spent.tokens[name] for turn in turns) - prompt_tokens[name]) / words
                for name in turns[0].spent.tokens
            },
        }


def run(args: Any, result: dict[str, Any]) -> None:
    """Fill the result and print a table per set of prompts."""
    n, budget, repeats = (1, 6, 1) if args.quick else (args.prompts or 3, args.budget, args.repeats)
    bench = Bench(args.models, args.device, args.dtype or "auto", args.modes, budget)
    chat = bench.supports_chat if args.chat is None else args.chat
    result |= {"models": args.models, "budget": budget, "repeats": repeats, "chat": chat, "members": bench.describe()}
    result["sets"] = {}
    for name, prompts in prompt_sets(n, chat=chat, only=args.sets).items():
        result["sets"][name] = bench.measure(prompts, repeats)
        show(name, result["sets"][name], result)


class Bench:
    """Loads the models twice: as members, and for `generate`."""

    def __init__(self, models: Sequence[str], device: str, dtype: str, modes: Sequence[str], budget: int) -> None:
        self.budget = budget
        self.ensembles = {
            (mode, branches): common.ensemble(models, device, dtype, mode, branches=branches, **common.TIMED)
            for mode in modes
            for branches in BRANCHES
        }
        self.first = next(iter(self.ensembles.values()))
        self.own = {
            name: OwnGenerate(model, device, dtype) for name, model in zip(self.first.names, models, strict=True)
        }

    @property
    def supports_chat(self) -> bool:
        """Whether every member has a chat template."""
        return self.first.supports_chat()

    def describe(self) -> list[dict[str, Any]]:
        """Each member with its dtype and KV store."""
        keys = ("name", "dtype", "cache", "vocab_size")
        return [{key: member[key] for key in keys} for member in self.first.describe()["members"]]

    def contestants(self) -> list[Contestant]:
        """All ways to answer."""
        found = []
        for name, own in self.own.items():
            found += [self._generate(name, own), self._ensemble(f"{name} alone", self._single(name), [name])]
        for (mode, branches), ensemble in self.ensembles.items():
            found.append(self._ensemble(f"together, B={branches}, {mode}", ensemble, self.first.names))
        return found

    def measure(self, prompts: Prompts, repeats: int) -> dict[str, Any]:
        """Let the contestants take turns."""
        contestants = self.contestants()
        for one in contestants:
            one.answer(prompts[0], WARM_UP)
        for prompt in [*prompts] * repeats:
            for one in contestants:
                one.take_turn(prompt, self.budget)
        return {
            "prompts": len(prompts),
            "share": common.share_confident(contestants[-1].rounds, self.first.config.strategy.tau),
            "rows": self._rows(contestants, prompts),
        }

    def _rows(self, contestants: Sequence[Contestant], prompts: Prompts) -> list[dict[str, Any]]:
        n, by_name = len(prompts), {one.name: one for one in contestants}
        tokens = {name: sum(self.first.count_tokens(prompt)[name] for prompt in prompts) for name in self.own}
        rows = []
        for one in contestants:
            baselines = [by_name[generate(name)] for name in one.members]
            sums = map(sum, zip(*(base.cpu(n) for base in baselines), strict=True))
            ratios = [cpu / base for cpu, base in zip(one.cpu(n), sums, strict=False)]
            pairs = zip(one.texts(n), baselines[0].texts(n), strict=True) if len(baselines) == 1 else None
            rows.append(
                {
                    "contestant": one.name,
                    "cpu_seconds_per_word": median(one.cpu(n)),
                    "ratio": median(ratios) if ratios else None,
                    "ratios": ratios,
                    "words": one.words(n),
                    "same_texts": pairs and sum(text == own for text, own in pairs),
                    **one.per_word(tokens, n),
                    "texts": one.texts(n),
                }
            )
        return rows

    def _generate(self, name: str, own: OwnGenerate) -> Contestant:
        return Contestant(
            generate(name),
            own.answer,
            lambda: common.Counts({name: own.forwards}, {name: own.tokens}),
        )

    def _single(self, name: str) -> Ensemble:
        return Ensemble(self.first.config, strategy="single", member=name)

    def _ensemble(self, title: str, ensemble: Ensemble, members: Sequence[str]) -> Contestant:
        def counts() -> common.Counts:
            now = common.counts(ensemble)
            return common.Counts(*({name: kind[name] for name in members} for kind in (now.forwards, now.tokens)))

        def answer(prompt: Any, budget: int) -> str:
            answered = ensemble.generate(prompt, max_new_tokens=budget)
            rounds.extend(answered.rounds)
            return answered.text

        rounds: list[Any] = []
        return Contestant(title, answer, counts, members, rounds=rounds)


def generate(name: str) -> str:
    """The title of a member's own `generate`."""
    return f"{name} generate"


def show(name: str, found: dict[str, Any], result: dict[str, Any]) -> None:
    """Print the table of one set of prompts."""
    rows = [
        [
            row["contestant"],
            row["cpu_seconds_per_word"],
            row["ratio"] and f"{row['ratio']:.2f}x",
            *(" + ".join(f"{value:.2f}" for value in row[kind].values()) for kind in ("forwards", "tokens")),
            row["words"],
            None if row["same_texts"] is None else f"{row['same_texts']} of {found['prompts']}",
        ]
        for row in found["rows"]
    ]
    members = ", ".join(f"{member['name']} {member['dtype']}" for member in result["members"])
    common.show(
        f"{name}, {'chat' if result['chat'] else 'raw'}: {found['prompts']} prompts, at most {result['budget']} "
        f"tokens ({members}); {found['share']:.2f} of the word starts are confident",
        ["per word", "CPU s", "ratio", "forwards", "tokens", "words", "text of generate"],
        rows,
        "ratio: a member alone to its own generate, together to the sum of the members' generate; forwards and tokens "
        "without the prompt",
    )
