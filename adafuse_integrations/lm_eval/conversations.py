"""Conversations as texts: the harness passes every context as one string, but each member has its own chat template.

So `EnsembleLM.apply_chat_template` does not render a conversation: it writes the messages as JSON behind a marker, and
the requests are turned into messages again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adafuse_core import PromptError

MARKER = "\x1fadafuse conversation\x1f"  # no prompt of a task contains the unit separator


@dataclass(frozen=True, kw_only=True)
class Context:
    """The context of a request.

    Args:
        prompt: A plain text, or messages.
        continues: Whether the answer continues the last message, which is the assistant's.
    """

    prompt: str | list[dict[str, Any]]
    continues: bool = False


def as_text(messages: Sequence[dict[str, Any]], *, continues: bool) -> str:
    """A conversation as a text for `context_of`."""
    return MARKER + json.dumps({"messages": list(messages), "continues": continues}, ensure_ascii=False)


def context_of(text: str) -> Context:
    """The context that a text of the harness stands for.

    Raises:
        PromptError: The text of a conversation was changed on its way through the harness.
    """
    if MARKER not in text:
        return Context(prompt=text)
    try:
        found = json.loads(text.removeprefix(MARKER))
    except ValueError as error:
        raise PromptError(
            f"the text of a conversation was changed by the task: {text[:80]!r}",
            hint="run this task without a chat template",
        ) from error
    return Context(prompt=found["messages"], continues=found["continues"])
