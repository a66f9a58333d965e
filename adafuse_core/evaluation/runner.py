"""The runner: all systems answer all questions in turn, and every answer is recorded at once.

A run that was stopped, even by `kill -9`, continues where it stopped when it is started again. From Python:

    systems = systems_of(Ensemble.from_pretrained("A", "B"), {"bytes": {"scoring": "byte"}})
    evaluation = Evaluation(systems=systems, task="nq", data="data/nq.jsonl", selection=Selection(limit=100))
    results = evaluation.run("runs/nq")
    results.systems[2].lead.differences["exact"]  # the ensemble minus the better member, with its interval
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adafuse_core.checks import expect, expect_choice, expect_integer, expect_mapping, without_secrets
from adafuse_core.config import GenerationParams
from adafuse_core.disk_cache import versions
from adafuse_core.errors import ConfigError, ContextOverflowError
from adafuse_core.evaluation.answers import Answer, cost_of
from adafuse_core.evaluation.hardware import hardware
from adafuse_core.evaluation.journal import Journal, write_json
from adafuse_core.evaluation.metrics import METRICS, Metric
from adafuse_core.evaluation.questions import Question, Selection, data_file, digest, read_questions
from adafuse_core.evaluation.results import Results, summarize
from adafuse_core.evaluation.systems import System, checked_systems
from adafuse_core.evaluation.tasks import TASKS
from adafuse_core.evaluation.tasks.base import FORMS, Prompt, Task
from adafuse_core.generation import Generation

RESULTS = "results.json"
SET_BY_TASK = ("max_new_tokens", "stop")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Systems, and the questions that they answer.

    Args:
        systems: The systems, in the order of the tables; see `systems_of`.
        task: A task or its name.
        data: The file with the questions, or a folder that has it under one of the names in the task.
        selection: Which questions are asked.
        form: `"raw"` (few-shot text), `"chat"` (messages), or `"auto"`: chat if all members have chat templates.
        shots: Number of examples in the prompt; None for the task's number.
        metrics: Names of metrics beside those of the task, such as `("spbleu",)`.
        generation: Generation options of all systems that replace those of the task, such as `{"max_new_tokens": 64}`.
        trace: Whether the rounds of every answer are recorded, for the traces in reports.
        isolate: Whether the systems share nothing in the prefix cache, so that the time and the tokens of a system
            include its prompts and do not depend on other systems. Otherwise each prompt is read once per member,
            before the clock starts, and a system also profits from the beginnings of earlier systems' answers.
        batch_size: How many questions a system answers at the same time. More are faster; the times of an answer are
            then an equal share of its batch's, and if models compute in float32 or less, a near tie may be decided
            otherwise than alone.
    """

    systems: Sequence[System]
    task: Task | str
    data: str | Path
    selection: Selection = field(default_factory=Selection)
    form: str = "auto"
    shots: int | None = None
    metrics: Sequence[str] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    trace: bool = True
    isolate: bool = False
    batch_size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "systems", checked_systems(self.systems))
        if not isinstance(self.task, Task):
            expect_choice("task", self.task, TASKS)
        expect(isinstance(self.selection, Selection), "selection", self.selection, "Selection(limit=..., ...)")
        expect_choice("form", self.form, ("auto", *FORMS))
        expect_mapping("generation", self.generation)
        for name in ("trace", "isolate"):
            expect(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        expect_integer("batch_size", self.batch_size, at_least=1)
        self.rules.checked_shots(self.shots)
        for system in self.systems:
            _check_generation(system, self.generation)
            namespace = system.ensemble.config.generation.updated(self.generation).cache_namespace
            if self.isolate and namespace != GenerationParams().cache_namespace:
                raise ConfigError("got isolate=True and a cache_namespace", hint="leave one of them out")
        for metric in self.used_metrics:
            if reason := metric.unavailable():
                raise ConfigError(f"the metric {metric.name!r} can't be computed", hint=reason)

    @property
    def rules(self) -> Task:
        """The task."""
        return TASKS[self.task] if isinstance(self.task, str) else self.task

    @cached_property
    def used_metrics(self) -> tuple[Metric, ...]:
        """The metrics, those of the task first."""
        for name in self.metrics:
            expect_choice("metrics", name, METRICS)
        return tuple(METRICS[name] for name in dict.fromkeys([*self.rules.metrics, *self.metrics]))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """The selected questions."""
        return self.selection.of(read_questions(self._file, split_context=self.rules.split_context))

    @cached_property
    def used_form(self) -> str:
        """The form of the prompts. Loads tokenizers, but no weights.

        Raises:
            ConfigError: Messages are asked for, but a member has no chat template.
        """
        without = [system.ensemble for system in self.systems if not system.ensemble.supports_chat()]
        if self.form == "chat" and without:
            raise ConfigError(
                f"got form='chat', but of the members {', '.join(without[0].names)}, at least one has no chat template",
                hint="use form='raw', or set chat_template of this member (`adafuse doctor` names it)",
            )
        return self.form if self.form != "auto" else "raw" if without else "chat"

    @property
    def total(self) -> int:
        """Number of answers of the whole run."""
        return len(self.questions) * len(self.systems)

    def facts(self) -> dict[str, Any]:
        """What the answers depend on, as JSON values. Which part of the questions is asked is not among them."""
        return {
            "task": dataclasses.asdict(self.rules),
            "data": digest(self._file),
            "form": self.used_form,
            "shots": self.rules.checked_shots(self.shots),
            "metrics": [metric.name for metric in self.used_metrics],
            "generation": dict(self._options),
            "isolate": self.isolate,
            "batch_size": self.batch_size,
            "systems": {system.name: _described(system) for system in self.systems},
            "versions": versions("torch", "transformers", "tokenizers", "sacrebleu"),
        }

    def play(self, journal: Journal) -> Iterator[Answer]:
        """Answer what the journal does not have, batch by batch of questions; yields each new answer.

        Raises:
            AdaFuseError: A member failed. Answers that were given before are in the journal.
        """
        open_questions = [each for each in self.questions if any(self._missing(each, journal))]
        for start in range(0, len(open_questions), self.batch_size):
            asked = open_questions[start : start + self.batch_size]
            prompts = [self.rules.prompt(each, self.used_form, self.rules.checked_shots(self.shots)) for each in asked]
            missing = [self._missing(question, journal) for question in asked]
            systems = [system for system in self.systems if any(system in each for each in missing)]
            if not self.isolate:
                _read(prompts, systems, {**self._options, "max_new_tokens": 1})
            for system in systems:
                given = zip(asked, prompts, missing, strict=True)
                for answer in self._answers(
                    system, [(question, prompt) for question, prompt, of in given if system in of]
                ):
                    journal.add(answer)
                    yield answer

    def run(
        self, folder: str | Path, *, restart: bool = False, on_answer: Callable[[Answer], object] | None = None
    ) -> Results:
        """Run, or resume; the results are also written into `results.json` in the folder.

        Args:
            folder: Where answers are kept; a later run with the same settings continues it.
            restart: Whether answers of an earlier run in the folder are deleted.
            on_answer: Called with each new answer.

        Raises:
            ConfigError: The folder has answers of a run with other settings.
            AdaFuseError: A member failed.
        """
        with self.journal(folder, restart=restart) as journal:
            for answer in self.play(journal):
                if on_answer is not None:
                    on_answer(answer)
            return self.results(journal)

    def journal(self, folder: str | Path, *, restart: bool = False) -> Journal:
        """Open the folder of a run, with the answers that it already has."""
        return Journal(folder, self.facts(), {"hardware": hardware(), "data": str(self._file)}, restart=restart)

    def missing(self, journal: Journal) -> int:
        """Number of answers that are still to be given. A journal may have more, from a run with another selection."""
        return sum(len(self._missing(question, journal)) for question in self.questions)

    def results(self, journal: Journal) -> Results:
        """The results so far, on the selected questions that all systems have answered.

        Raises:
            ValueError: There is no such question.
        """
        results = summarize(
            self.rules,
            self.used_metrics,
            self.questions,
            {system.name: system.is_single for system in self.systems},
            journal.answers,
            traces=journal.trace,
            facts=journal.facts,
            notes={**journal.notes, "selection": dataclasses.asdict(self.selection)},
        )
        write_json(journal.folder / RESULTS, results.to_dict())
        return results

    @cached_property
    def _file(self) -> Path:
        return data_file(self.data, self.rules.files)

    @cached_property
    def _options(self) -> Mapping[str, Any]:
        """The generation options of every answer."""
        own = {"max_new_tokens": self.rules.max_new_tokens, "stop": self.rules.stop(self.used_form)}
        return {**own, **self.generation}

    def _missing(self, question: Question, journal: Journal) -> list[System]:
        """The systems whose answers the journal does not have."""
        return [system for system in self.systems if (question.place, system.name) not in journal.answers]

    def _answers(self, system: System, asked: Sequence[tuple[Question, Prompt]]) -> Iterator[Answer]:
        """Let a system answer, and judge its answers. A question that is too long for a member counts as wrong.

        Raises:
            AdaFuseError: A member failed. Raised after the other answers.
        """
        options = {**self._options, **({"cache_namespace": f"evaluation of {system.name}"} if self.isolate else {})}
        clock, cpu_clock = time.perf_counter(), time.process_time()
        given = _batch(system, [prompt for _, prompt in asked], options)
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu_clock
        played = max(1, sum(isinstance(each, Generation) for each in given))
        times = {"seconds": seconds / played, "cpu_seconds": cpu_seconds / played}
        for (question, _), each in zip(asked, given, strict=True):
            if isinstance(each, Generation | ContextOverflowError):
                yield self._record(system, question, each, times)
        _raise_failure(given)

    def _record(
        self, system: System, question: Question, given: Generation | ContextOverflowError, times: Mapping[str, Any]
    ) -> Answer:
        where: dict[str, Any] = {"place": question.place, "label": question.label, "system": system.name}
        if isinstance(given, ContextOverflowError):
            return Answer(**where, text="", metrics=self._judge("", question), reason="refused", error=str(given))
        return Answer(
            **where,
            **times,
            text=given.text,
            metrics=self._judge(given.text, question),
            trace=[played.to_dict() for played in given.rounds] if self.trace else None,
            **cost_of(given, getattr(system.ensemble.config.strategy, "tau", None)),
        )

    def _judge(self, text: str, question: Question) -> dict[str, float]:
        judged = self.rules.answer(text)
        return {metric.name: metric.of(judged, question.golds) for metric in self.used_metrics}


def _read(prompts: Sequence[Prompt], systems: Sequence[System], options: Mapping[str, Any]) -> None:
    """Let every member read the prompts, so that no system's clock pays for what later systems have for nothing."""
    known: set[str] = set()
    for system in systems:
        if not system.load_keys <= known:
            known |= system.load_keys
            _raise_failure(_batch(system, prompts, options))  # prompts that are too long are recorded by the answers


def _batch(system: System, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[Generation | Exception]:
    """Answers to prompts at the same time, or the errors in their place."""
    return [*system.ensemble.batch(prompts, return_exceptions=True, max_concurrency=len(prompts), **options)]


def _raise_failure(given: Sequence[Generation | Exception]) -> None:
    """Raise the first error that is not about the length of a prompt, if there is one."""
    for each in given:
        if not isinstance(each, Generation | ContextOverflowError):
            raise each


def _described(system: System) -> Any:
    return without_secrets(system.ensemble.config.to_dict(), [])


def _check_generation(system: System, options: Mapping[str, Any]) -> None:
    """Refuse generation options that the task would replace, and options that a system can't have."""
    generation = system.ensemble.config.generation
    system.ensemble.config.check_choice(generation.updated(options))
    for name in SET_BY_TASK:
        if name not in options and getattr(generation, name) != getattr(GenerationParams(), name):
            raise ConfigError(
                f"the config of {system.name!r} sets {name}={getattr(generation, name)!r}, which the task sets, too",
                hint=f"to replace the task's, give it for all systems: generation={{{name!r}: ...}}, on the command "
                f"line --{name.replace('_', '-')}",
            )
