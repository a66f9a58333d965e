"""Short requests that warm up an ensemble: kernels are compiled, caches and thread pools are created."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from adafuse_core.chat.grammar import Grammar

logger = logging.getLogger(__name__)

_TOKENS = 8  # of each answer: enough for a few rounds


def warm_up(generate: Callable[..., Any], prompt: Any = None, *, chat: bool, grammar: bool) -> None:
    """Read a prompt, or generate short answers that use chat templates, prefill, drafts, scores and maybe a grammar.

    Args:
        generate: `Ensemble.generate`.
        prompt: The prompt; None for short answers.
        chat: Whether every member has a chat template.
        grammar: Whether every member can mask tokens.
    """
    started = time.monotonic()
    if prompt is not None:
        generate(prompt, max_new_tokens=1)
        return
    prompt = [{"role": "user", "content": "Hello"}] if chat else "Hello"
    generate(prompt, max_new_tokens=_TOKENS, stop=(), logprobs=True)
    if grammar:
        generate(prompt, max_new_tokens=_TOKENS, stop=(), grammar=Grammar.regex("(?s:.+)"))
    logger.info("warmed up after %.1f s", time.monotonic() - started)
