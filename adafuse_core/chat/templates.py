"""Renders a conversation with one member's own chat template, and loses none of it.

Templates differ in what they accept: some refuse a system message, some want user and assistant
to alternate, some drop tool messages in silence. So a conversation is offered in its own form first, then
in ever plainer ones, and the first rendering that contains all of its texts is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from adafuse_core.chat.messages import Message
from adafuse_core.errors import TemplateError

Messages = tuple[Message, ...]
Render = Callable[[Messages], str]


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    mark: Callable[[Any], Any] = lambda value: value,
    variables: dict[str, Any] | None = None,
    member: str | None = None,
) -> str:
    """The prompt for a conversation, ready for the assistant's answer.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: The conversation.
        tools: JSON schemas of tools, in OpenAI's form.
        mark: Applied to every text the user controls before it is rendered (`Codec.as_text`).
        variables: Further template variables.
        member: Name for errors.

    Raises:
        TemplateError: No form of the conversation can be rendered whole, or tools are ignored.
    """

    def render(form: Messages, tools: Sequence[dict[str, Any]] | None = tools) -> str:
        text = tokenizer.apply_chat_template(
            [mark(message.to_dict()) for message in form],
            tools=mark(list(tools)) if tools else None,
            tokenize=False,
            add_generation_prompt=True,
            **(variables or {}),
        )
        return str(text)

    problems = []
    for form in _forms(tuple(messages)):
        try:
            text = render(form)
        except Exception as error:  # templates are programs: they fail in any way
            problems.append(str(error) or type(error).__name__)
            continue
        if (lost := _lost(list(_texts(form)), text, mark)) is not None:
            problems.append(f"it drops {lost[:60]!r}")
            continue
        without_calls = tuple(replace(message, tool_calls=()) for message in form)
        if without_calls != form and _gives(text, render, without_calls):
            problems.append("it drops tool calls")
            continue
        if tools and _gives(text, render, form, None):
            raise TemplateError("the chat template ignores tools", member=member, hint="use a template that shows them")
        return text
    raise TemplateError(
        f"the chat template can't render this conversation: {problems[0]}",
        member=member,
        hint="pass another one with MemberConfig(chat_template=...)",
    )


def _forms(messages: Messages) -> Iterable[Messages]:
    """The conversation as it is, then plainer and plainer."""
    yield messages
    gathered = _gather_system(messages)
    yield gathered
    without_tools = _gather_system(_tools_as_text(messages))
    for form in (gathered, _fold_system(gathered), without_tools, _fold_system(without_tools)):
        yield _merge_runs(form)
        yield _open_with_user(_merge_runs(form))


def _gather_system(messages: Messages) -> Messages:
    """One system message, in front."""
    system = "\n\n".join(message.content for message in messages if message.role == "system" and message.content)
    rest = tuple(message for message in messages if message.role != "system")
    return (Message(role="system", content=system), *rest) if system else rest


def _merge_runs(messages: Messages) -> Messages:
    """No two neighbours of one role, but for tool results."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        mergeable = last and last.role == message.role != "tool" and not last.tool_calls and not message.tool_calls
        if last and mergeable:
            texts = [text for text in (last.content, message.content) if text]
            merged[-1] = replace(last, content="\n\n".join(texts))
        else:
            merged.append(message)
    return tuple(merged)


def _open_with_user(messages: Messages) -> Messages:
    """An empty user turn before an assistant's greeting."""
    system = messages[:1] if messages and messages[0].role == "system" else ()
    rest = messages[len(system) :]
    if rest and rest[0].role == "assistant":
        return (*system, Message(role="user"), *rest)
    return messages


def _fold_system(messages: Messages) -> Messages:
    """The system message as the opening of the first user turn."""
    if not messages or messages[0].role != "system":
        return messages
    system, rest = messages[0], messages[1:]
    if rest and rest[0].role == "user":
        return (replace(rest[0], content=f"{system.content}\n\n{rest[0].content}"), *rest[1:])
    return (replace(system, role="user"), *rest)


def _tools_as_text(messages: Messages) -> Messages:
    """Tool calls and results as ordinary turns."""
    plain = []
    for message in messages:
        if message.role == "tool":
            label = f"Result of {message.name}" if message.name else "Tool result"
            plain.append(Message(role="user", content=f"{label}: {message.content}"))
        elif message.tool_calls:
            calls = "\n".join(
                f"Call of {call.name}: {json.dumps(call.arguments, ensure_ascii=False)}" for call in message.tool_calls
            )
            plain.append(Message(role="assistant", content=f"{message.content}\n{calls}".strip()))
        else:
            plain.append(message)
    return tuple(plain)


def _lost(parts: Sequence[str], text: str, mark: Callable[[Any], Any]) -> str | None:
    """A part that stands in the text less often than in all parts together."""
    for part in parts:
        shown = {mark(part), _in_json(mark(part))}
        if sum(map(text.count, shown)) < sum(mark(other).count(mark(part)) for other in parts):
            return part
    return None


def _gives(text: str, render: Callable[..., str], *arguments: Any) -> bool:
    """Whether a poorer conversation is rendered as the same text, so that the template ignores the difference."""
    try:
        return text == render(*arguments)
    except Exception:
        return False


def _in_json(text: str) -> str:
    """A text as templates show it that dump tool results as JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _texts(messages: Messages) -> Iterable[str]:
    """Every text that a rendering must contain. Templates may trim."""
    for message in messages:
        content = message.content.strip()
        if message.role == "assistant":  # templates of reasoning models leave old thoughts out
            content = content.rpartition("</think>")[2].strip()
        if content:
            yield content
        for call in message.tool_calls:
            yield call.name
