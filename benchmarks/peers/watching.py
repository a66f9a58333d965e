"""Observes and disturbs the underlying model: records, slows or fails its passes, changes its tokenizer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from adafuse_core import small_models


@contextmanager
def passes(module: Any) -> Iterator[list[list[int]]]:
    """Records the token ids of each forward pass of a model."""
    seen: list[list[int]] = []

    def note(_: Any, given: Any, options: Any) -> None:
        ids = options.get("input_ids") if options.get("input_ids") is not None else given[0]
        seen.append(ids.flatten().tolist())

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def slowed(module: Any) -> Iterator[None]:
    """Makes each pass take at least 20 ms, like a large model's."""
    hook = module.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def failing(module: Any) -> Iterator[None]:
    """Makes every pass fail."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    module.forward = fail
    try:
        yield
    finally:
        del module.forward


def with_start_token(folder: Path) -> tuple[str, int]:
    """A copy of birch whose tokenizer adds a BOS token to every text, although its template writes one too.

    Returns:
        Path of the copy, and the id of the BOS token.
    """
    shutil.copytree(small_models.path("birch"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    assert start in tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return str(folder), int(tokenizer.bos_token_id)
