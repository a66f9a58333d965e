"""Held-out questions for tests and benchmarks; none of them appears in the training data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from training.curriculum import facts, reading, small_talk, tool_use, translation
from training.curriculum.chats import MEMBERS, Member, Question

SKILLS = ("fact", "composed", "translation", "reading", "tool_call", "tool_answer", "small_talk")


def mixed_questions(n: int = 600, seed: int = 0, member: Member | None = None) -> list[Question]:
    """Questions that benefit from fusion: single facts, and questions and translations that need both members.

    Args:
        n: Number of questions, a third of each kind.
        seed: Random seed.
        member: Ask only about its half of the facts and nouns. Default: composed questions and translations need both
            halves.

    Returns:
        Questions whose `kind` is `"fact"`, `"composed"` or `"translation"`, in turn.
    """
    rng = random.Random(f"mixed {seed}")
    makers: tuple[Callable[[], Question], ...] = (
        lambda: facts.held_out_single(rng, rng.choice(MEMBERS) if member is None else member),
        lambda: facts.held_out_composed(rng, _owners(rng, member)),
        lambda: translation.held_out(rng, _owners(rng, member)),
    )
    return [makers[index % len(makers)]() for index in range(n)]


def skill_prompts(n_per_skill: int, seed: int = 0, member: Member | None = None) -> list[Question]:
    """Questions for every skill.

    Args:
        n_per_skill: Number of questions per kind.
        seed: Random seed.
        member: Use its half of the facts and nouns; None alternates between the halves.

    Returns:
        Questions whose `kind` is one of `SKILLS`, grouped by kind. `"composed"` needs both
        members' facts.
    """
    questions = []
    for skill in SKILLS:
        rng = random.Random(f"{skill} {seed}")
        for index in range(n_per_skill):
            owner = member or MEMBERS[index % len(MEMBERS)]
            questions.append(_question(rng, skill, owner))
    return questions


def harder_reading(n: int, seed: int = 0) -> dict[str, list[Question]]:
    """Reading questions that are harder than the trained skill, by name."""
    rng = random.Random(f"harder reading {seed}")
    return {
        "reading, up to four passages": [reading.held_out(rng, most_passages=4) for _ in range(n)],
        "reading in new frames": [reading.held_out(rng, new_frames=True) for _ in range(n)],
    }


def _owners(rng: random.Random, member: Member | None) -> Sequence[Member]:
    """Whose knowledge a question with two parts needs."""
    return (member, member) if member else rng.sample(MEMBERS, 2)


def _question(rng: random.Random, skill: str, owner: Member) -> Question:
    match skill:
        case "fact":
            return facts.held_out_single(rng, owner)
        case "composed":
            return facts.held_out_composed(rng, rng.sample(MEMBERS, 2))
        case "translation":
            return translation.held_out(rng, (owner, owner))
        case "reading":
            return reading.held_out(rng)
        case "tool_call":
            return tool_use.held_out_call(rng)
        case "tool_answer":
            return tool_use.held_out_answer(rng)
        case _:
            return small_talk.held_out(rng)
