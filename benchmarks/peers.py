"""What comparisons with other libraries' classes share: situations, and what they are seen with."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import prepare, show
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from adafuse_core import small_models

PATIENCE = 5.0  # seconds after which a stream that brings nothing counts as hanging


@dataclass(frozen=True)
class Seen:
    """What happened, and whether it is what a caller would want."""

    outcome: str
    good: bool


def begin(args: argparse.Namespace, packages: Sequence[str]) -> dict[str, Any]:
    """As `common.prepare`, with the versions of packages where they are installed; and nothing logs or warns."""
    about = prepare(args)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None  # a thread of a peer dies while its stream is read
    about["versions"] |= {name: version for name in packages if (version := installed(name))}
    return about


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


def show_situations(rows: Sequence[dict[str, Any]], sides: Sequence[Any]) -> None:
    """Print them."""
    names = [side.name for side in sides]
    cells = [[row["situation"], *(row[name]["outcome"] for name in names)] for row in rows]
    show("The same situations, the same small model", ["situation", *names], cells)


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


def with_start_token(folder: Path) -> str:
    """A copy of birch whose tokenizer begins every text with its start token, as its template does anyway."""
    shutil.copytree(small_models.path("birch"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    assert start in tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return str(folder)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object, replaced for a while."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def slowed(module: Any) -> Iterator[None]:
    """A model whose passes take at least 20 ms, as those of a large one do."""
    hook = module.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    try:
        yield
    finally:
        hook.remove()


def installed(package: str) -> str | None:
    """The version of a package, None if it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
