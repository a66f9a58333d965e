"""Renders a conversation with a member's chat template, without losing any of its content.

Some templates refuse a system message, some require alternating user and assistant messages, some silently drop tool
messages. The conversation is therefore tried in its original form first, then in simpler and simpler forms, each in all
shapes of tool calls. The first rendering that contains all texts and arguments is used. Only the simplest forms
describe tool calls as plain text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adafuse_core.chat.call_shapes import Turn, one_call_per_turn, shaped, shows
from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import THINK, ThoughtTags
from adafuse_core.chat.tool_text import calls_as_text
from adafuse_core.errors import TemplateError
from adafuse_core.text.ids import shared_length

logger = logging.getLogger(__name__)

Messages = tuple[Message, ...]


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    mark: Callable[[Any], Any] = lambda value: value,
    variables: dict[str, Any] | None = None,
    tags: ThoughtTags = THINK,
    continues: bool = False,
    member: str | None = None,
) -> str:
    """Render the prompt for a conversation, up to the start of a new assistant turn.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        messages: The conversation.
        tools: Tools in OpenAI's format.
        mark: Function for every text that the user controls, before rendering (`Codec.mark_control_tokens`).
        variables: Additional template variables.
        tags: Tags of thoughts in assistant messages, which the template may drop.
        continues: Whether the prompt ends inside the last message, an assistant's, instead of opening a new turn.
        member: Name of the member in errors.

    Raises:
        TemplateError: No form of the conversation can be rendered completely, or the template ignores tools.
    """
    given = tuple(messages)
    template = _Template(tokenizer=tokenizer, mark=mark, variables=variables or {}, tags=tags, continues=continues)
    problems = []
    for form in _forms(given, continues=continues):
        for turns in shaped(form):
            text, problem = template.render_whole(form, turns, tools)
            if problem is not None:
                problems.append(problem)
                continue
            if tools and template.rendered(turns, None) == text:
                raise TemplateError(
                    "the chat template ignores tools", member=member, hint="use a template that supports tools"
                )
            if _has_tools(given) and not _has_tools(form):
                logger.info("member %r: earlier tool calls and results are shown as text: %s", member, problems[0])
            return text
    raise TemplateError(
        f"the chat template can't render this conversation: {problems[0]}",
        member=member,
        hint="pass another template with MemberConfig(chat_template=...)",
    )


@dataclass(frozen=True, kw_only=True)
class _Template:
    """A chat template with checks of its renderings. The fields are arguments of `render_chat`."""

    tokenizer: Any
    mark: Callable[[Any], Any]
    variables: dict[str, Any]
    tags: ThoughtTags
    continues: bool

    def render_whole(
        self, form: Messages, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[str, str | None]:
        """The rendering of a form in one shape, and its problem; None if it is complete."""
        try:
            text = self._render(turns, tools)
        except Exception as error:  # templates are programs, which can raise anything
            return "", str(error) or type(error).__name__
        if (lost := self._lost(form, text)) is not None:
            return text, f"it drops {lost[:60]!r}"
        if (hidden := self._hidden_calls(form, turns, tools, text)) is not None:
            return text, hidden
        opens_turn = self.continues or form[-1].role != "assistant" or self._render(turns, tools, opens=False) != text
        if not opens_turn:
            return text, "it opens no new turn after a last message of the assistant"
        return text, None

    def rendered(self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None) -> str | None:
        """The rendering without any check; None if it fails."""
        try:
            return self._render(turns, tools)
        except Exception:
            return None

    def _render(
        self, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None, *, opens: bool | None = None
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            [self.mark(turn) for turn in turns],
            tools=self.mark(list(tools)) if tools else None,
            tokenize=False,
            add_generation_prompt=not self.continues if opens is None else opens,
            continue_final_message=self.continues,
            **self.variables,
        )
        return str(text)

    def _hidden_calls(
        self, form: Messages, turns: Sequence[Turn], tools: Sequence[dict[str, Any]] | None, text: str
    ) -> str | None:
        """Which part of the tool calls a rendering drops; None if it contains all of them."""
        calls = [call for message in form for call in message.tool_calls]
        if not calls:
            return None
        bare = self.rendered([{key: turn[key] for key in turn if key != "tool_calls"} for turn in turns], tools)
        if bare == text:
            return "it drops tool calls"
        shown = text if bare is None else _differing(text, bare)
        hidden = (call.name for call in calls if not shows(self.mark(call.arguments), shown))
        return next((f"it does not show the arguments of a call of {name!r} as JSON" for name in hidden), None)

    def _lost(self, form: Messages, text: str) -> str | None:
        """A text that occurs less often in the rendering than in the form; None if there is none."""
        parts = list(self._texts(form))
        for part in parts:
            marked = self.mark(part)
            shown = {marked, json.dumps(marked, ensure_ascii=False)[1:-1]}  # some templates dump results as JSON
            if sum(map(text.count, shown)) < sum(self.mark(other).count(marked) for other in parts):
                return part
        return None

    def _texts(self, form: Messages) -> Iterable[str]:
        """Every text that a rendering must contain, stripped, as templates may strip texts."""
        for message in form:
            content = message.content.strip()
            if message.role == "assistant":  # templates of reasoning models drop earlier thoughts
                content = content.rpartition(self.tags.closing)[2].strip()
            if content:
                yield content
            for call in message.tool_calls:
                yield call.name


def _differing(text: str, other: str) -> str:
    """The middle of a text, without the prefix and suffix that it shares with another text."""
    start = shared_length(text, other)
    end = shared_length(text[start:][::-1], other[start:][::-1])
    return text[start : len(text) - end]


def _has_tools(messages: Messages) -> bool:
    return any(message.tool_calls or message.role == "tool" for message in messages)


def _forms(messages: Messages, *, continues: bool) -> Iterable[Messages]:
    """All distinct forms. After a last message of the assistant, an empty user message is tried, too."""
    seen: list[Messages] = []
    for form in filter(None, _simpler_forms(messages)):
        with_user = () if continues or form[-1].role != "assistant" else ((*form, Message(role="user")),)
        for each in (form, *with_user):
            if each not in seen:
                seen.append(each)
                yield each


def _simpler_forms(messages: Messages) -> Iterable[Messages]:
    """The original conversation, then simpler and simpler forms."""
    gathered = _gather_system(messages)
    yield from (messages, gathered, one_call_per_turn(messages), one_call_per_turn(gathered))
    yield _answer_results(_merge_runs(gathered))
    without_tools = _gather_system(calls_as_text(messages))
    for form in (gathered, _fold_system(gathered), without_tools, _fold_system(without_tools)):
        yield _merge_runs(form)
        yield _open_with_user(_merge_runs(form))


def _gather_system(messages: Messages) -> Messages:
    """All system messages joined into one at the start."""
    system = "\n\n".join(message.content for message in messages if message.role == "system" and message.content)
    rest = tuple(message for message in messages if message.role != "system")
    return (Message(role="system", content=system), *rest) if system else rest


def _merge_runs(messages: Messages) -> Messages:
    """Adjacent messages of one role joined, except for tool results."""
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


def _answer_results(messages: Messages) -> Messages:
    """An empty assistant message between a tool call or result and the next user message."""
    answered: list[Message] = []
    for message in messages:
        if message.role == "user" and answered and (answered[-1].role == "tool" or answered[-1].tool_calls):
            answered.append(Message(role="assistant"))
        answered.append(message)
    return tuple(answered)


def _open_with_user(messages: Messages) -> Messages:
    """An empty user message before a leading assistant message."""
    system = messages[:1] if messages and messages[0].role == "system" else ()
    rest = messages[len(system) :]
    if rest and rest[0].role == "assistant":
        return (*system, Message(role="user"), *rest)
    return messages


def _fold_system(messages: Messages) -> Messages:
    """The system message moved to the start of the first user message."""
    if not messages or messages[0].role != "system":
        return messages
    system, rest = messages[0], messages[1:]
    if rest and rest[0].role == "user":
        return (replace(rest[0], content=f"{system.content}\n\n{rest[0].content}"), *rest[1:])
    return (replace(system, role="user"), *rest)
