"""The two plain values of the curriculum: a chat to learn from and a question to be asked.

What a chat looks like in tokens is the business of the chat templates, not of this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
Member = Literal["aspen", "birch"]
MEMBERS: tuple[Member, Member] = ("aspen", "birch")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A whole conversation; every assistant turn in it is learnt.

    Attributes:
        kind: The skill it belongs to, such as `"reading"`.
        messages: Messages in the OpenAI style.
        tools: JSON schemas of the tools on offer, or None.
    """

    kind: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A conversation that waits for its last assistant turn, and the exact text expected there.

    Attributes:
        kind: The skill it asks for.
        messages: Messages in the OpenAI style; the last one is not the assistant's.
        answer: The exact text of the right answer.
        tools: JSON schemas of the tools on offer, or None.
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
