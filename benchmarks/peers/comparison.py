"""A comparison of two classes: what each does in each situation, seen, told in words and shown as a table."""

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

PATIENCE = 5.0  # seconds after which a stream that brings nothing counts as hanging


@dataclass(frozen=True)
class Seen:
    """What happened, and whether it is what a caller would want."""

    outcome: str
    good: bool


def begin(args: argparse.Namespace, packages: Sequence[str]) -> dict[str, Any]:
    """As `common.prepare`, with the versions of packages where they are installed; and nothing logs or warns."""
    about = common.prepare(args)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None  # a thread of a peer dies while its stream is read
    about["versions"] |= {name: version for name in packages if (version := installed(name))}
    return about


def installed(package: str) -> str | None:
    """The version of a package, None if it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def situation(check: Callable[..., Seen]) -> str:
    """What a check is about, in words."""
    return (check.__doc__ or "").strip()


def compare(sides: Sequence[Any], checks: Sequence[Callable[[Any], Seen]]) -> list[dict[str, Any]]:
    """What each side does in each situation."""
    rows = []
    for check in checks:
        seen = {side.name: check(side) for side in sides}
        gc.collect()
        rows.append({"situation": situation(check)} | {name: vars(one) for name, one in seen.items()})
    return rows


def show(rows: Sequence[dict[str, Any]], sides: Sequence[Any]) -> None:
    """Print them."""
    names = [side.name for side in sides]
    cells = [[row["situation"], *(row[name]["outcome"] for name in names)] for row in rows]
    common.show("The same situations, the same small model", ["situation", *names], cells)


def attempt(action: Callable[[], Any]) -> Any:
    """What an action returns, or what it raises."""
    try:
        return action()
    except Exception as error:
        return error


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """The same, or None if it takes too long; it then goes on in the background."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(attempt(action)), daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def in_words(outcome: Any) -> str:
    """What an attempt gave, in a few words."""
    if not isinstance(outcome, Exception):
        return repr(outcome) if isinstance(outcome, str) else str(outcome)
    first = portable((str(outcome).splitlines() or [""])[0])[:120]
    return f"{type(outcome).__name__}: {first}" if first else type(outcome).__name__


def portable(text: str) -> str:
    """A text with the names of the small models in place of this machine's paths to them."""
    for name in small_models.NAMES:
        text = text.replace(str(small_models.path(name)), name)
    return text


def refused(outcome: Any, otherwise: str, error: type[Exception] = Exception) -> Seen:
    """Good if the attempt raised such an error; `otherwise` tells what happened if nothing was raised."""
    return Seen(in_words(outcome) if isinstance(outcome, Exception) else otherwise, isinstance(outcome, error))


def managed(outcome: Any, words: str) -> Seen:
    """Good if the attempt raised nothing; `words` tell that."""
    failed = isinstance(outcome, Exception)
    return Seen(in_words(outcome) if failed else words, not failed)
