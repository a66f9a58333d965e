"""Compares two classes: observes the outcome of each situation, describes it and shows a table."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
from adafuse_core import small_models

PATIENCE = 5.0  # seconds without output after which a stream counts as hanging


@dataclass(frozen=True)
class Seen:
    """The outcome, and whether it is what a caller wants."""

    outcome: str
    good: bool


def begin(args: argparse.Namespace, packages: Sequence[str]) -> dict[str, Any]:
    """Like `common.prepare`, with the versions of the installed packages, and without log output and warnings."""
    about = common.prepare(args)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None  # a thread of a peer fails during its stream
    about["versions"] |= {name: version for name in packages if (version := installed(name))}
    return about


def installed(package: str) -> str | None:
    """The version of a package, None if it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def situation(check: Callable[..., Seen]) -> str:
    """The description of a check: its docstring."""
    return (check.__doc__ or "").strip()


def compare(sides: Sequence[Any], checks: Sequence[Callable[[Any], Seen]]) -> list[dict[str, Any]]:
    """The outcome of each situation for each side."""
    rows = []
    for check in checks:
        seen = {side.name: check(side) for side in sides}
        gc.collect()
        rows.append({"situation": situation(check)} | {name: vars(one) for name, one in seen.items()})
    return rows


def show(rows: Sequence[dict[str, Any]], sides: Sequence[Any]) -> None:
    """Print the outcomes as a table."""
    names = [side.name for side in sides]
    cells = [[row["situation"], *(row[name]["outcome"] for name in names)] for row in rows]
    common.show("The same situations, the same small model", ["situation", *names], cells)


def attempt(action: Callable[[], Any]) -> Any:
    """The result of an action, or its exception."""
    try:
        return action()
    except Exception as error:
        return error


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """Like `attempt`, but None if the action takes too long; it then continues in the background."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(attempt(action)), daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def in_words(outcome: Any) -> str:
    """A short description of the result of an attempt."""
    if not isinstance(outcome, Exception):
        return repr(outcome) if isinstance(outcome, str) else str(outcome)
    first = portable((str(outcome).splitlines() or [""])[0])[:120]
    return f"{type(outcome).__name__}: {first}" if first else type(outcome).__name__


def portable(text: str) -> str:
    """Replaces paths of the small models with their names."""
    for name in small_models.NAMES:
        text = text.replace(str(small_models.path(name)), name)
    return text


def refused(outcome: Any, otherwise: str, error: type[Exception] = Exception) -> Seen:
    """Good if the attempt raised `error`; `otherwise` describes the outcome if nothing was raised."""
    return Seen(in_words(outcome) if isinstance(outcome, Exception) else otherwise, isinstance(outcome, error))


def succeeded(outcome: Any, words: str) -> Seen:
    """Good if the attempt raised nothing; `words` describe that outcome."""
    failed = isinstance(outcome, Exception)
    return Seen(in_words(outcome) if failed else words, not failed)
