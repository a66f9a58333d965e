"""`evaluate`: runs tasks of lm-evaluation-harness on an ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from adafuse_core import ConfigError, Ensemble
from adafuse_core.checks import several
from adafuse_integrations.lm_eval.model import EnsembleLM


def evaluate(
    ensemble: Ensemble,
    tasks: Iterable[Any],
    *,
    include_path: str | Path | None = None,
    max_concurrency: int = 16,
    check_greedy: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness.

    Args:
        ensemble: The ensemble.
        tasks: Names of tasks or groups, or task configs and objects of the harness.
        include_path: Folder with further tasks as YAML files.
        max_concurrency: See `EnsembleLM`.
        check_greedy: See `EnsembleLM`.
        options: Options of `lm_eval.simple_evaluate`, such as `limit`, `num_fewshot` and `apply_chat_template`.

    Returns:
        The results of `lm_eval.simple_evaluate`; `["results"]` has the metrics of each task.

    Raises:
        ConfigError: A task is unknown, or an option of the model was given, which the ensemble already has.
    """
    for name in ("model", "model_args", "device", "task_manager"):
        if name in options:
            raise ConfigError(f"got {name}={options[name]!r}, which evaluate sets itself", hint="leave it out")
    names = several("tasks", tasks, "write tasks=[...]")
    manager = _manager(names, include_path)
    model = EnsembleLM(ensemble, max_concurrency=max_concurrency, check_greedy=check_greedy)
    found: dict[str, Any] = simple_evaluate(model=model, tasks=names, task_manager=manager, **options)
    return found


def _manager(names: Sequence[Any], include_path: str | Path | None) -> TaskManager:
    """The tasks of a folder and of the harness. Refuses a missing folder and unknown names."""
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ConfigError(f"got include_path={str(include_path)!r}, which is not a folder", hint="create it first")
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(isinstance(name, str) and name in own.all_subtasks for name in names):
            return own  # listing the harness's own tasks takes ten seconds
    manager = TaskManager(include_path=include_path)
    named = [name for name in names if isinstance(name, str) and not Path(name).is_file()]
    if unknown := [name for name in named if name not in manager.task_index]:
        raise ConfigError(
            f"unknown tasks: {', '.join(map(repr, unknown))}",
            hint="`lm_eval ls tasks` lists the tasks of the harness; include_path adds a folder with your own",
        )
    return manager
