"""Renders a conversation with one member's own chat template, and loses none of it.

Templates differ in what they accept: some refuse a system message, some want user and assistant
to alternate, some drop tool messages in silence. So a conversation is offered in its own form first, then
in ever plainer ones, and the first rendering that contains all of its texts is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import THINK, ThoughtTags
from adafuse_core.chat.tool_text import calls_as_text
from adafuse_core.errors import TemplateError

Messages = tuple[Message, ...]


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    mark: Callable[[Any], Any] = lambda value: value,
    variables: dict[str, Any] | None = None,
    tags: ThoughtTags = THINK,
    member: str | None = None,
) -> str:
    """The prompt for a conversation, ready for the assistant's answer.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: The conversation.
        tools: JSON schemas of tools, in OpenAI's form.
        mark: Applied to every text the user controls before it is rendered (`Codec.mark_control_tokens`).
        variables: Further template variables.
        tags: Around thoughts in assistant messages, which the template may leave out.
        member: Name for errors.

    Raises:
        TemplateError: No form of the conversation can be rendered whole, or tools are ignored.
    """
    template = _Template(tokenizer=tokenizer, mark=mark, variables=variables or {}, tags=tags)
    problems = []
    for form in _forms(tuple(messages)):
        text, problem = template.render_whole(form, tools)
        if problem is not None:
            problems.append(problem)
        elif tools and template.renders(form, None, text):
            raise TemplateError("the chat template ignores tools", member=member, hint="use a template that shows them")
        else:
            return text
    raise TemplateError(
        f"the chat template can't render this conversation: {problems[0]}",
        member=member,
        hint="pass another one with MemberConfig(chat_template=...)",
    )


@dataclass(frozen=True, kw_only=True)
class _Template:
    """A chat template, and whether what it renders is whole. The fields are arguments of `render_chat`."""

    tokenizer: Any
    mark: Callable[[Any], Any]
    variables: dict[str, Any]
    tags: ThoughtTags

    def render_whole(self, form: Messages, tools: Sequence[dict[str, Any]] | None) -> tuple[str, str | None]:
        """The rendering of a form, and what is wrong with it; None if nothing is."""
        try:
            text = self._render(form, tools)
        except Exception as error:  # templates are programs: they fail in any way
            return "", str(error) or type(error).__name__
        if (lost := self._lost(form, text)) is not None:
            return text, f"it drops {lost[:60]!r}"
        without_calls = tuple(replace(message, tool_calls=()) for message in form)
        if without_calls != form and self.renders(without_calls, tools, text):
            return text, "it drops tool calls"
        return text, None

    def renders(self, form: Messages, tools: Sequence[dict[str, Any]] | None, text: str) -> bool:
        """Whether a poorer form has the same rendering, so that the template ignores the difference."""
        try:
            return self._render(form, tools) == text
        except Exception:
            return False

    def _render(self, form: Messages, tools: Sequence[dict[str, Any]] | None) -> str:
        text = self.tokenizer.apply_chat_template(
            [self.mark(message.to_dict()) for message in form],
            tools=self.mark(list(tools)) if tools else None,
            tokenize=False,
            add_generation_prompt=True,
            **self.variables,
        )
        return str(text)

    def _lost(self, form: Messages, text: str) -> str | None:
        """A text of the form that its rendering contains less often than all texts of the form together do."""
        parts = list(self._texts(form))
        for part in parts:
            marked = self.mark(part)
            shown = {marked, json.dumps(marked, ensure_ascii=False)[1:-1]}  # some templates dump results as JSON
            if sum(map(text.count, shown)) < sum(self.mark(other).count(marked) for other in parts):
                return part
        return None

    def _texts(self, form: Messages) -> Iterable[str]:
        """Every text that a rendering must contain. Templates may trim."""
        for message in form:
            content = message.content.strip()
            if message.role == "assistant":  # templates of reasoning models leave old thoughts out
                content = content.rpartition(self.tags.closing)[2].strip()
            if content:
                yield content
            for call in message.tool_calls:
                yield call.name


def _forms(messages: Messages) -> Iterable[Messages]:
    """The conversation as it is, then plainer and plainer."""
    yield messages
    gathered = _gather_system(messages)
    yield gathered
    without_tools = _gather_system(calls_as_text(messages))
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
