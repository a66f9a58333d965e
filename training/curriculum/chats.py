"""The data types of the curriculum: a training chat and a question. Chat templates turn them into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
Member = Literal["aspen", "birch"]
MEMBERS: tuple[Member, Member] = ("aspen", "birch")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A complete conversation; the model is trained on every assistant turn.

    Attributes:
        kind: The skill, such as `"reading"`.
        messages: Messages in the OpenAI style.
        tools: JSON schemas of the available tools, or None.
    """

    kind: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A conversation without its last assistant turn, and the expected text of that turn.

    Attributes:
        kind: The skill.
        messages: Messages in the OpenAI style; the last one is not the assistant's.
        answer: The expected text.
        tools: JSON schemas of the available tools, or None.
    """

    kind: str
    messages: list[Message]
    answer: str
    tools: list[dict[str, Any]] | None = None


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """A system message."""
    return {"role": "system", "content": text}


def sentence(clause: str, end: str = ".") -> str:
    """Make a sentence of a clause: a capital first letter and a full stop."""
    return clause[:1].upper() + clause[1:] + end
