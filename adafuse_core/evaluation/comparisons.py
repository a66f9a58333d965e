"""Ensembles beside their members, by the marks of a sample of questions: what they gain, and could gain at most.

Pure functions of marks. `determine.py` lets the systems answer the questions, `advice.py` draws the conclusion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, variance
from typing import Any

from adafuse_core.evaluation.statistics import Estimate, clopper_pearson, mcnemar, mean, paired_difference, wilson

LEVEL = 0.05  # probability of advising an ensemble although it is no better than the best member, at most
POWER = 0.8  # of the sample sizes: probability of showing a difference of the size that was observed

Group = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What the answers of each member and of each ensemble are worth, on the same questions in the same order.

    Args:
        members: For each member alone the marks of its answers: 1 is right, 0 is wrong, or a grade between them.
        ensembles: The marks of ensembles, by the names of their members.
        sure: For each member whether it was sure of each answer; members that are left out are always sure.

    Raises:
        ValueError: There is no member, no question, an unknown member, a mark outside 0..1, or numbers of marks differ.
    """

    members: Mapping[str, Sequence[float]]
    ensembles: Mapping[Group, Sequence[float]] = field(default_factory=dict)
    sure: Mapping[str, Sequence[bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        marks = [*self.members.values(), *self.ensembles.values()]
        named = {name for group in self.ensembles for name in group} | set(self.sure)
        counts = {len(row) for row in [*marks, *self.sure.values()]}
        if not self.members or not named <= set(self.members):
            raise ValueError(
                f"got marks of the members {list(self.members)}, expected those of {sorted(named)} at least"
            )
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"got {sorted(counts)} marks of each system, expected the same number, at least 1")
        if not all(0 <= mark <= 1 for row in marks for mark in row):
            raise ValueError("expected marks from 0 to 1")

    @property
    def questions(self) -> int:
        """Number of questions."""
        return len(next(iter(self.members.values())))

    @property
    def graded(self) -> bool:
        """Whether there are marks between right and wrong."""
        return any(mark not in (0, 1) for row in [*self.members.values(), *self.ensembles.values()] for mark in row)

    def score(self, marks: Sequence[float]) -> Estimate:
        """The mean of marks, with Wilson's interval, or a bootstrap interval for grades."""
        return mean(marks) if self.graded else wilson(round(sum(marks)), len(marks))

    def best(self, names: Sequence[str]) -> str:
        """The member with the highest mean; the first of several."""
        return max(names, key=lambda name: fmean(self.members[name]))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An ensemble beside one of its members, on the same questions.

    Args:
        member: Name of the member.
        difference: Mean of the ensemble's marks minus the member's, with a paired bootstrap interval.
        won: Number of questions on which the ensemble has the better mark.
        lost: Number of questions on which it has the worse mark.
        p_value: Of McNemar's exact test; with grades, of the sign test.
        needed: About as many questions would show this difference with a probability of `POWER`; None if the ensemble
            is not ahead.
    """

    member: str
    difference: Estimate
    won: int
    lost: int
    p_value: float
    needed: int | None


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What is known about members together.

    Args:
        members: Their names.
        score: Mean mark of their ensemble.
        union: Mean of the best mark that any of them has alone: 1 - beta, the most that a choice among their whole
            answers can reach on these questions (arXiv 2606.27288).
        contradiction: Share of the questions that one answers correctly and another one surely wrong: there, a
            confident error competes with the right answer (arXiv 2510.05077). None with grades.
        beta: Share of the questions that all of them answer incorrectly. `low` is Clopper and Pearson's lower bound at
            95%. None with grades.
        beyond: Number of questions that only the ensemble answers correctly: its answer joins words of several
            members, which no choice among whole answers can do. None with grades.
        own: Comparison with the best of these members.
        overall: Comparison with the best of all members, with an interval that allows for the number of ensembles.
    """

    members: Group
    score: Estimate
    union: float
    contradiction: float | None
    beta: Estimate | None
    beyond: int | None
    own: Comparison
    overall: Comparison

    @property
    def name(self) -> str:
        """The names of the members, such as `"aspen + birch"`."""
        return joined(self.members)

    @property
    def most_by_choice(self) -> float:
        """The most that a choice among whole answers reaches, with 95% confidence; with grades, on these questions."""
        return self.union if self.beta is None else 1 - self.beta.low

    @property
    def choice_gain(self) -> float:
        """The most that a choice among whole answers gains over the best of these members, on these questions."""
        return self.union - (self.score.value - self.own.difference.value)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            **dataclasses.asdict(self),
            "most_by_choice": self.most_by_choice,
            "choice_gain": self.choice_gain,
        }


def combination(marks: Marks, group: Group, best: str) -> Combination:
    """What the marks show of an ensemble.

    Args:
        marks: The marks.
        group: Names of its members.
        best: Name of the best of all members.
    """
    ours, alone = marks.ensembles[group], [marks.members[name] for name in group]
    top = [max(row) for row in zip(*alone, strict=True)]
    right_or_wrong = not marks.graded
    strongest, tried = marks.best(group), len(marks.ensembles)
    own = _comparison(marks, group, strongest, 1)
    return Combination(
        members=group,
        score=marks.score(ours),
        union=fmean(top),
        contradiction=_contradiction(marks, group) if right_or_wrong else None,
        beta=_bounded(sum(mark == 0 for mark in top), len(top)) if right_or_wrong else None,
        beyond=sum(mine > other for mine, other in zip(ours, top, strict=True)) if right_or_wrong else None,
        own=own,
        overall=own if (best, tried) == (strongest, 1) else _comparison(marks, group, best, tried),
    )


def questions_needed(differences: Sequence[float], tried: int = 1) -> int | None:
    """About how many questions show a difference as large as the observed one, with a probability of `POWER`.

    Args:
        differences: Difference of the marks of each question.
        tried: Number of comparisons that share the level.

    Returns:
        None if the mean difference is not above zero.
    """
    ahead = fmean(differences)
    if ahead <= 0:
        return None
    z = NormalDist().inv_cdf(1 - LEVEL / tried / 2) + NormalDist().inv_cdf(POWER)
    by_spread = z * z * variance(differences) / ahead**2 if len(differences) > 1 else 0.0
    deciding = fmean(difference != 0 for difference in differences)
    by_test = math.log2(2 * tried / LEVEL) / deciding  # McNemar's test needs so many questions, even if all are won
    return math.ceil(max(by_spread, by_test))


def joined(members: Sequence[str]) -> str:
    """The name of an ensemble of these members."""
    return " + ".join(members)


def _contradiction(marks: Marks, group: Group) -> float:
    def against(place: int) -> bool:
        right = [marks.members[name][place] == 1 for name in group]
        sure = [name not in marks.sure or marks.sure[name][place] for name in group]
        return any(right) and any(certain and not correct for certain, correct in zip(sure, right, strict=True))

    return fmean(against(place) for place in range(marks.questions))


def _bounded(failures: int, questions: int) -> Estimate:
    """A share with its exact one-sided bounds at 95%."""
    return clopper_pearson(failures, questions, confidence=1 - 2 * LEVEL)


def _comparison(marks: Marks, group: Group, member: str, tried: int) -> Comparison:
    ours, theirs = marks.ensembles[group], marks.members[member]
    won = sum(mine > other for mine, other in zip(ours, theirs, strict=True))
    lost = sum(mine < other for mine, other in zip(ours, theirs, strict=True))
    return Comparison(
        member=member,
        difference=paired_difference(ours, theirs, confidence=1 - LEVEL / tried),
        won=won,
        lost=lost,
        p_value=mcnemar(won, lost),
        needed=questions_needed([mine - other for mine, other in zip(ours, theirs, strict=True)], tried),
    )
