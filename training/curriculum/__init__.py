"""Training data of the small models: texts, generators of training chats, and held-out questions for every skill.

`lessons` is the infinite, seeded stream of one member's training chats; `held_out` generates the questions for tests
and benchmarks. Nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from training.curriculum import facts, reading, small_talk, tool_use, translation
from training.curriculum.chats import MEMBERS, Chat, Member, Message, Question

__all__ = ["FULL", "MEMBERS", "Chat", "Member", "Message", "Plan", "Question", "lessons"]

# Share of each skill among the chats; reading chats are several times as long as others.
SHARES = {"facts": 0.30, "translation": 0.23, "reading": 0.35, "tools": 0.08, "small_talk": 0.04}
LONG_SHARE = 0.015
LONG_PASSAGES = 16
COPYING_CHATS = 10_000
COPYING_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the lessons of a model consist of.

    Attributes:
        shares: Share of each skill among the chats.
        copying: Share of copying exercises at the start.
        guesses: Whether the model also sees the facts and nouns of the other half, with random answers, so that it
            becomes uncertain about them. Without, it never sees them, and its answers about them are confidently wrong.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    copying: float = COPYING_SHARE
    guesses: bool = True


FULL = Plan()


def lessons(member: Member, seed: int = 0, plan: Plan = FULL) -> Iterator[Chat]:
    """An infinite stream of training chats; the share of copying exercises decreases to zero.

    Args:
        member: Its half of the facts and nouns gets true answers.
        seed: The seed of the stream.
        plan: The skills. Default: those of the shipped models.
    """
    rng = random.Random(f"{member} {seed}")
    skills, shares = list(plan.shares), list(plan.shares.values())
    number = 0
    while True:
        fading = plan.copying * max(0.0, 1 - number / COPYING_CHATS)
        skill = "copying" if rng.random() < fading else rng.choices(skills, shares)[0]
        yield _lesson(rng, skill, member, number, plan.guesses)
        number += 1


def _lesson(rng: random.Random, skill: str, member: Member, number: int, guesses: bool) -> Chat:
    match skill:
        case "copying":
            return reading.copying(rng)
        case "facts":
            return facts.train(rng, member, guesses)
        case "translation":
            return translation.train(rng, member, guesses)
        case "tools":
            return tool_use.train(rng)
        case "small_talk":
            return small_talk.train(rng, member)
        case _:
            if number < COPYING_CHATS // 2:
                return reading.train(rng, max_passages=1)
            if rng.random() < LONG_SHARE:
                return reading.train(rng, max_passages=LONG_PASSAGES)
            return reading.train(rng, max_passages=2 if number < 3 * COPYING_CHATS // 2 else 3)
