"""Which models should answer: each member alone, each pair and all together answer a sample of questions.

From Python:

    advice = determine(Ensemble.from_pretrained("A", "B", "C"), "questions.jsonl", "runs/questions")
    print(advice.reason)
    advised(ensemble, advice).save("advised.yaml")
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from adafuse_core.checks import expect_mapping
from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.evaluation.advice import Advice, advise
from adafuse_core.evaluation.answers import Answer
from adafuse_core.evaluation.comparisons import Group, Marks, joined
from adafuse_core.evaluation.results import Results, Traces
from adafuse_core.evaluation.runner import Evaluation
from adafuse_core.evaluation.systems import System, checked_systems


def determine(
    ensemble: Ensemble,
    data: str | Path,
    folder: str | Path,
    *,
    task: str = "jsonl",
    metric: str | None = None,
    restart: bool = False,
    on_answer: Callable[[Answer], object] | None = None,
    **options: Any,
) -> Advice:
    """Let all groups of members answer the questions, and advise one of them.

    Args:
        ensemble: At least two members, and the strategy that fuses them.
        data: The file with the questions, or a folder with the file of the task.
        folder: Where answers are kept. The same call continues a run that was stopped.
        task: Name of the task.
        metric: Name of the metric that decides; None for the first one of the task.
        restart: Whether answers of an earlier run in the folder are deleted.
        on_answer: Called with each new answer.
        options: Further options of `Evaluation`, such as `selection=Selection(limit=200)`.

    Raises:
        ConfigError: An option is wrong, or the folder has answers of a run with other settings.
        AdaFuseError: A member failed.
    """
    evaluation = measurement(ensemble, data, task=task, metric=metric, **options)
    return advice_from(evaluation.run(folder, restart=restart, on_answer=on_answer), ensemble, metric)


def measurement(ensemble: Ensemble, data: str | Path, *, metric: str | None = None, **options: Any) -> Evaluation:
    """The evaluation whose results `advice_from` reads; arguments are those of `determine`.

    Raises:
        ConfigError: An option is wrong, or one that the advice is made of.
    """
    generation = options.pop("generation", {})
    expect_mapping("generation", generation)
    for name in ("systems", "metrics"):
        if name in options:
            raise ConfigError(f"got {name}, which `determine` sets", hint="choose the metric that decides with metric=")
    if not options.get("trace", True) or not generation.get("logprobs", True):
        raise ConfigError(
            "got trace=False or logprobs=False, but they show how sure members are of answers", hint="leave it out"
        )
    return Evaluation(
        systems=every_system(ensemble),
        data=data,
        metrics=() if metric is None else (metric,),
        generation={**generation, "logprobs": True},
        **{"task": "jsonl", **options},
    )


def every_system(ensemble: Ensemble) -> tuple[System, ...]:
    """Each member alone with greedy decoding, then each pair, and last all members with the ensemble's strategy."""
    names = ensemble.names
    if len(names) < 2 or ensemble.config.strategy.name == "single":
        raise ConfigError(
            f"got {ensemble!r}, but only an ensemble of at least two members can be compared with its members",
            hint="name two or more models, and a strategy that fuses them",
        )
    groups = [(name,) for name in names] + groups_of(names)
    return checked_systems([System(name=joined(group), ensemble=part(ensemble, group)) for group in groups])


def groups_of(names: Sequence[str]) -> list[Group]:
    """All pairs, and all names if there are more than two."""
    return [*combinations(names, 2), *([tuple(names)] if len(names) > 2 else [])]


def part(ensemble: Ensemble, names: Group) -> Ensemble:
    """An ensemble of some of the members; one member decodes greedily.

    Raises:
        ConfigError: These members can't be an ensemble with the options of all.
    """
    chosen = [place for place, name in enumerate(ensemble.names) if name in names]
    members = [ensemble.config.members[place] for place in chosen]
    config = ensemble.config.alone(names[0]) if len(names) == 1 else ensemble.config
    try:
        smaller = config.updated({"members": members})
        return Ensemble(smaller, members=[ensemble.members[place] for place in chosen] if ensemble.ready_made else None)
    except ConfigError as error:
        raise ConfigError(
            f"{joined(names)}, which is compared with the other groups of members, can't have these options: "
            f"{error.message}",
            hint="leave the option out; `adafuse eval` compares all members together with each of them alone",
        ) from error


def advised(ensemble: Ensemble, advice: Advice) -> Ensemble:
    """The ensemble, or the member alone, that the advice names."""
    return part(ensemble, tuple(advice.advised))


def advice_from(results: Results, ensemble: Ensemble, metric: str | None = None) -> Advice:
    """The advice that follows from the results of a `measurement`."""
    costs = {system.name: system.cost for system in results.systems}
    return dataclasses.replace(
        advise(marks_of(results, ensemble, metric or results.first_metric.name)),
        refused={name: cost.refused for name, cost in costs.items() if cost.refused},
        cut={name: cost.cut for name, cost in costs.items() if cost.cut},
    )


def marks_of(results: Results, ensemble: Ensemble, metric: str) -> Marks:
    """The marks of all systems, and whether members were sure of their answers.

    A member is sure of an answer that it gives a probability of at least one half: if it were sampled, it would repeat
    this answer more often than it would give all others together.
    """

    def answers(group: Group) -> list[Answer]:
        return [results.answers[question.place, joined(group)] for question in results.questions]

    def marks(group: Group) -> list[float]:
        return [answer.metrics[metric] / 100 for answer in answers(group)]

    return Marks(
        members={name: marks((name,)) for name in ensemble.names},
        ensembles={group: marks(group) for group in groups_of(ensemble.names)},
        sure={name: [_is_sure(answer, results.traces) for answer in answers((name,))] for name in ensemble.names},
    )


def _is_sure(answer: Answer, traces: Traces) -> bool:
    """Whether a member that answers alone is sure of its answer. A refused question has no answer."""
    rounds = traces(answer.key) or ()
    likelihood = math.fsum(value for played in rounds for values in played["logprobs"].values() for value in values)
    return answer.error is None and likelihood >= math.log(0.5)
