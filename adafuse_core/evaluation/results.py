"""Results of one task: what each system scored, how far it is from the best member, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adafuse_core.evaluation.answers import Answer
from adafuse_core.evaluation.metrics import Metric
from adafuse_core.evaluation.questions import Question
from adafuse_core.evaluation.statistics import Estimate, mcnemar, paired_bootstrap
from adafuse_core.evaluation.tasks.base import Task

Answers = Mapping[tuple[int, str], Answer]
Traces = Callable[[tuple[int, str]], Sequence[Mapping[str, Any]] | None]


def no_traces(key: tuple[int, str]) -> None:
    """The traces of answers whose rounds were not recorded."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """A system beside the best member, on the same questions.

    Args:
        differences: Score minus the best member's, by metric, with paired bootstrap intervals.
        won: Number of questions with a better answer than the best member's, by the first metric.
        lost: Number of questions with a worse one.
        p_value: Of McNemar's exact test; None if the first metric is not right or wrong.
    """

    differences: Mapping[str, Estimate]
    won: int
    lost: int
    p_value: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        differences = {name: estimate.to_dict() for name, estimate in self.differences.items()}
        return {"differences": differences, "won": self.won, "lost": self.lost, "p_value": self.p_value}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the answers of a system cost. Ratios are None where nothing was counted.

    Args:
        seconds: Elapsed time of all answers.
        cpu_seconds: CPU time of all answers.
        words: Words of all answers.
        ms_per_word: Milliseconds per word, elapsed.
        cpu_ms_per_word: Milliseconds of CPU time per word.
        read_per_word: Tokens that the models of all members read, per word.
        rounds: Number of rounds.
        round_words: Number of rounds by the number of words they committed, as text.
        confident: Share of the rounds with a margin in which every member was confident of the first word, 0..1.
        cut: Number of answers that the token budget or a context window cut.
        refused: Number of questions that were too long for a member, which count as wrong.
    """

    seconds: float
    cpu_seconds: float
    words: int
    ms_per_word: float | None
    cpu_ms_per_word: float | None
    read_per_word: float | None
    rounds: int
    round_words: Mapping[str, int]
    confident: float | None
    cut: int
    refused: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "round_words": dict(self.round_words)}


@dataclass(frozen=True, kw_only=True)
class SystemResults:
    """The results of one system.

    Args:
        name: Name of the system.
        is_single: Whether it is one member alone.
        scores: Score by metric, with interval.
        lead: Comparison with the best member; None for this member, and if no member answered alone.
        cost: What its answers cost.
    """

    name: str
    is_single: bool
    scores: Mapping[str, Estimate]
    lead: Lead | None
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "is_single": self.is_single,
            "scores": {name: estimate.to_dict() for name, estimate in self.scores.items()},
            "lead": None if self.lead is None else self.lead.to_dict(),
            "cost": self.cost.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one task.

    Args:
        task: The task.
        metrics: Its metrics; the first one decides which member is the best.
        systems: The results of each system, in the order of the evaluation.
        best: Name of the best member alone; None if no member answered alone.
        oracle: Mean over the questions of the best answer of any member alone, by the first metric; None without
            members alone, and for metrics of a whole set.
        questions: The questions that all systems have answered. Only these count.
        total: Number of selected questions.
        answers: The answers.
        traces: The recorded rounds of an answer, by question and system.
        facts: What the answers depend on.
        notes: The hardware, where the data lies, and which part of it was selected.
    """

    task: Task
    metrics: Sequence[Metric]
    systems: Sequence[SystemResults]
    best: str | None
    oracle: float | None
    questions: Sequence[Question]
    total: int
    answers: Answers
    traces: Traces = no_traces
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_metric(self) -> Metric:
        """The metric that decides."""
        return self.metrics[0]

    def value(self, question: Question, system: str) -> float:
        """What an answer is worth, by the first metric."""
        return self.answers[question.place, system].metrics[self.first_metric.name]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without questions and answers."""
        return {
            "task": self.task.name,
            "questions": len(self.questions),
            "total": self.total,
            "metrics": [metric.name for metric in self.metrics],
            "best": self.best,
            "oracle": self.oracle,
            "systems": {system.name: system.to_dict() for system in self.systems},
            "facts": dict(self.facts),
            "notes": dict(self.notes),
        }


def summarize(
    task: Task,
    metrics: Sequence[Metric],
    questions: Sequence[Question],
    systems: Mapping[str, bool],
    answers: Answers,
    *,
    traces: Traces = no_traces,
    facts: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Results:
    """Summarize answers.

    Args:
        task: The task.
        metrics: Its metrics.
        questions: The selected questions.
        systems: For each system whether it is one member alone.
        answers: The answers so far. Questions that a system has not answered yet are left out for all systems.
        traces: Passed on to the results.
        facts: Passed on to the results.
        notes: Passed on to the results.

    Raises:
        ValueError: No question was answered by all systems.
    """
    asked = [question for question in questions if all((question.place, name) in answers for name in systems)]
    if not asked:
        raise ValueError("no question was answered by all systems")
    of_system = {name: [answers[question.place, name] for question in asked] for name in systems}
    golds = [question.golds for question in asked]
    rows = {
        name: {metric.name: metric.rows([task.answer(answer.text) for answer in given], golds) for metric in metrics}
        for name, given in of_system.items()
    }
    scores = {name: {metric.name: metric.estimate(rows[name][metric.name]) for metric in metrics} for name in systems}
    alone = [name for name, single in systems.items() if single]
    best = max(alone, key=lambda name: scores[name][metrics[0].name].value, default=None)
    return Results(
        task=task,
        metrics=metrics,
        systems=[
            SystemResults(
                name=name,
                is_single=single,
                scores=scores[name],
                lead=None if best in (None, name) else _lead(metrics, rows[name], rows[best or name]),
                cost=cost(of_system[name]),
            )
            for name, single in systems.items()
        ],
        best=best,
        oracle=_oracle(metrics[0], [rows[name] for name in alone]),
        questions=asked,
        total=len(questions),
        answers=answers,
        traces=traces,
        facts=facts or {},
        notes=notes or {},
    )


def cost(answers: Sequence[Answer]) -> Cost:
    """What answers of one system cost."""
    words, seconds = sum(answer.words for answer in answers), sum(answer.seconds for answer in answers)
    cpu_seconds = sum(answer.cpu_seconds for answer in answers)
    counted: Counter[str] = Counter()
    for answer in answers:
        counted.update(answer.round_words)
    confident = [answer for answer in answers if answer.confident_rounds is not None]
    return Cost(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        words=words,
        ms_per_word=_ratio(1000 * seconds, words),
        cpu_ms_per_word=_ratio(1000 * cpu_seconds, words),
        read_per_word=_ratio(sum(sum(answer.read_tokens.values()) for answer in answers), words),
        rounds=sum(answer.rounds for answer in answers),
        round_words={count: counted[count] for count in sorted(counted, key=int)},
        confident=_ratio(
            sum(answer.confident_rounds or 0 for answer in confident), sum(answer.margin_rounds for answer in confident)
        ),
        cut=sum(answer.reason == "length" for answer in answers),
        refused=sum(answer.reason == "refused" for answer in answers),
    )


def _lead(metrics: Sequence[Metric], ours: Mapping[str, list[Any]], theirs: Mapping[str, list[Any]]) -> Lead:
    differences = {
        metric.name: paired_bootstrap(ours[metric.name], theirs[metric.name], metric.score) for metric in metrics
    }
    first = metrics[0]
    pairs = [
        (first.score(mine), first.score(other))
        for mine, other in zip(ours[first.name], theirs[first.name], strict=True)
    ]
    won, lost = sum(mine > other for mine, other in pairs), sum(mine < other for mine, other in pairs)
    return Lead(
        differences=differences, won=won, lost=lost, p_value=mcnemar(won, lost) if first.kind == "share" else None
    )


def _oracle(metric: Metric, alone: Sequence[Mapping[str, list[Any]]]) -> float | None:
    """The mean of the best answers of any member alone."""
    if not alone or metric.kind == "corpus":
        return None
    best = [max(metric.score(row) for row in rows) for rows in zip(*(rows[metric.name] for rows in alone), strict=True)]
    return sum(best) / len(best)


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None
