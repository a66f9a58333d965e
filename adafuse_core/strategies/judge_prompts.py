"""The prompts of a judge: the request of the user, the answers of all members, and what to do with them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace

from adafuse_core.chat.messages import Message
from adafuse_core.members.base import Prompt

LABELS = string.ascii_uppercase


def pick_prompt(prompt: Prompt, answers: Sequence[str]) -> Prompt:
    """A prompt whose likeliest next text is the label of the best answer after a blank, such as `" B"`.

    A conversation ends with a begun message of the assistant, which the label continues.
    """
    if isinstance(prompt, str):
        return f"{_with_continuations(prompt, answers)}The best continuation is continuation"
    question = f"{_listed('Answer', answers)}Which answer is the best? Reply with its letter."
    begun = Message(role="assistant", content="The best answer is answer")
    return (*_with_request(prompt, f"Here are {len(answers)} answers to this:\n\n{question}"), begun)


def merge_prompt(prompt: Prompt, answers: Sequence[str]) -> Prompt:
    """A prompt that asks for a new answer, written from all answers. After a plain text, it ends with this text."""
    if isinstance(prompt, str):
        return (
            f"{_with_continuations(prompt, answers)}"
            f"The text with its best continuation, written from what is right in these continuations:\n{prompt}"
        )
    request = (
        f"Here are {len(answers)} answers to this. Each may be wrong.\n\n{_listed('Answer', answers)}"
        "Write the best answer, from what is right in these answers. Reply with the answer only."
    )
    return _with_request(prompt, request)


def _with_continuations(prompt: str, answers: Sequence[str]) -> str:
    return f"Text:\n{prompt}\n\nPossible continuations of this text:\n\n{_listed('Continuation', answers)}"


def _listed(kind: str, answers: Sequence[str]) -> str:
    return "".join(f"{kind} {label}:\n{answer.strip()}\n\n" for label, answer in zip(LABELS, answers, strict=False))


def _with_request(messages: Sequence[Message], request: str) -> tuple[Message, ...]:
    """A conversation whose last message of the user is followed by a request, in the same message if it is the last."""
    *before, last = messages
    if last.role != "user":
        return (*messages, Message(role="user", content=request))
    return (*before, replace(last, content=f"{last.content}\n\n{request}"))
