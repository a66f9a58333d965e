"""Advice: the ensemble that is better than the best member beyond doubt, or else this member, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adafuse_core.evaluation.comparisons import LEVEL, Combination, Comparison, Group, Marks, combination
from adafuse_core.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The advised ensemble or member, and what the advice is based on.

    Args:
        advised: Names of the members that should answer; one name for a member alone.
        reason: Why, in plain words.
        questions: Number of questions.
        members: Mean mark of each member alone.
        combinations: The ensembles.
        best: Name of the best member.
        refused: Number of questions that were too long for a member, which count as wrong, by what should have
            answered; without zeros.
        cut: Number of answers that the token budget or a context window cut; without zeros.
    """

    advised: Group
    reason: str
    questions: int
    members: Mapping[str, Estimate]
    combinations: Sequence[Combination]
    best: str
    refused: Mapping[str, int] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        combinations = [one.to_dict() for one in self.combinations]
        return {**dataclasses.asdict(self), "combinations": combinations}


def advise(marks: Marks) -> Advice:
    """Advise an ensemble that is better than the best member alone beyond doubt, otherwise the best member.

    Beyond doubt means: the interval of the paired difference and McNemar's exact test both exclude that the ensemble is
    no better, at a level that is shared by all ensembles that were tried (Bonferroni).
    """
    best = marks.best(list(marks.members))
    combinations = tuple(combination(marks, group, best) for group in marks.ensembles)
    better = [one for one in combinations if _is_better(one.overall, len(combinations))]
    chosen = max(better, key=lambda one: (one.overall.difference.value, -len(one.members)), default=None)
    members = {name: marks.score(row) for name, row in marks.members.items()}
    return Advice(
        advised=(best,) if chosen is None else chosen.members,
        reason=_for_member(marks, best, combinations) if chosen is None else _for_ensemble(marks, chosen),
        questions=marks.questions,
        members=members,
        combinations=combinations,
        best=best,
    )


def _is_better(comparison: Comparison, tried: int) -> bool:
    return comparison.difference.low > 0 and comparison.p_value < LEVEL / tried


def _for_ensemble(marks: Marks, chosen: Combination) -> str:
    over = chosen.overall
    return (
        f"Use {chosen.name} together. On {_counted(marks)} it scores {_percent(chosen.score.value)}, {_points(over)} "
        f"more than the best member alone, {over.member}: {_evidence(marks, over)}. "
        f"Four times as many questions, {4 * marks.questions:,}, would halve this interval."
    )


def _for_member(marks: Marks, best: str, combinations: Sequence[Combination]) -> str:
    """Why the best member should answer alone."""
    counted = _counted(marks)
    every = [*marks.members.values(), *marks.ensembles.values()]
    if not any(any(row) for row in every):
        return (
            f"Nothing was answered correctly on {counted}, so members and ensembles can't be told apart, and nothing "
            f"speaks for the cost of an ensemble. Check the form of the prompts, or take easier questions. Until then, "
            f"use {best} alone."
        )
    if all(mark == 1 for mark in marks.members[best]):
        return (
            f"Use {best} alone. It answers {counted} without an error, so no ensemble can gain. Take harder questions."
        )
    if not combinations:
        return f"Use {best} alone. No ensemble was tried."
    nearest = max(combinations, key=lambda one: one.overall.difference.value)
    return f"Use {best} alone. {_doubt(marks, nearest)}"


def _doubt(marks: Marks, nearest: Combination) -> str:
    """Why the ensemble with the highest score is not advised."""
    over, counted = nearest.overall, _counted(marks)
    evidence, level = _evidence(marks, over), LEVEL / len(marks.ensembles)
    if over.difference.high < 0 and over.p_value < level:
        return f"On {counted}, the best ensemble, {nearest.name}, scores {_points(over)} less: {evidence}."
    if over.difference.value < 0:
        return (
            f"On {counted}, the best ensemble, {nearest.name}, scores {_points(over)} less, but this may be chance: "
            f"{evidence}."
        )
    if over.needed is None:
        return (
            f"On {counted}, the best ensemble, {nearest.name}, scores the same: {evidence}. More questions would make "
            f"the interval narrower: {4 * marks.questions:,} would halve it."
        )
    return (
        f"On {counted}, the best ensemble, {nearest.name}, scores {_points(over)} more, but this may be chance: "
        f"{evidence}. If it is real, about {max(over.needed, marks.questions + 1):,} questions would show it."
    )


def _counted(marks: Marks) -> str:
    return f"{marks.questions:,} questions" if marks.questions > 1 else "one question"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(comparison: Comparison) -> str:
    return f"{100 * abs(comparison.difference.value):.1f} points"


def _evidence(marks: Marks, comparison: Comparison) -> str:
    difference, test = comparison.difference, "the sign test" if marks.graded else "McNemar's test"
    return (
        f"the interval of the difference is {100 * difference.low:+.1f} to {100 * difference.high:+.1f}, won "
        f"{comparison.won}, lost {comparison.lost}, p = {comparison.p_value:.2g} by {test}"
    )
