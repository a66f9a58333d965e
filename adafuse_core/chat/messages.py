"""Messages as plain values, from dictionaries in OpenAI's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from adafuse_core.calls import ToolCall
from adafuse_core.errors import PromptError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation.

    Args:
        role: `"system"`, `"user"`, `"assistant"` or `"tool"`.
        content: Text of the message.
        tool_calls: Tool calls of an assistant message.
        tool_call_id: For tool messages: ID of the call whose result this is.
        name: For tool messages: name of the tool.
    """

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise PromptError(f"got message role {self.role!r}, expected one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise PromptError(f"got message content {self.content!r}, expected text")

    @classmethod
    def from_any(cls, value: Mapping[str, Any] | Message) -> Self:
        """A message from a `Message` or a dictionary. Unknown keys and roles raise `PromptError`."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise PromptError(f"got {value!r} as a message, expected a dict with 'role' and 'content'")
        unknown = set(value) - {"role", "content", "tool_calls", "tool_call_id", "name"}
        if unknown:
            raise PromptError(
                f"unknown message keys {sorted(map(str, unknown))} in {dict(value)!r}",
                hint="a message has 'role' and 'content'; beside them 'tool_calls', 'tool_call_id' and 'name'",
            )
        if "content" not in value and not value.get("tool_calls"):
            raise PromptError(f"the message {dict(value)!r} has no 'content'", hint="set 'content' to its text")
        role: Any = value.get("role")
        calls = value.get("tool_calls") or ()
        if not isinstance(calls, Sequence):
            raise PromptError(f"got {calls!r} as tool calls, expected a list")
        return cls(
            role=role,
            content=_text(value.get("content")),
            tool_calls=tuple(_tool_call(call) for call in calls),
            tool_call_id=value.get("tool_call_id"),
            name=value.get("name"),
        )

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for chat templates, without empty optional fields."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message


def conversation(values: Sequence[Mapping[str, Any] | Message]) -> tuple[Message, ...]:
    """Check the messages of a conversation. A conversation without text raises `PromptError`."""
    messages = tuple(Message.from_any(value) for value in values)
    if not any(message.content.strip() or message.tool_calls for message in messages):
        raise PromptError("the prompt is empty", hint="give at least one message with text")
    return messages


def countable(values: Iterable[Mapping[str, Any] | Message]) -> tuple[Message, ...]:
    """The messages of a conversation for counting tokens. Messages that `conversation` refuses are reduced to text.

    Raises:
        PromptError: A value is neither a message nor a dictionary.
    """
    return tuple(map(_countable, values))


def countable_text(text: str) -> str:
    """The text with lone surrogates, which have no UTF-8 form, replaced by question marks."""
    return text.encode("utf-8", "replace").decode()


def encodable(text: str) -> str:
    """Check that a text can be encoded in UTF-8; lone surrogates raise `PromptError`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt has a lone surrogate at character {error.start}", hint="remove or replace the character"
        ) from error
    return text


def _countable(value: Mapping[str, Any] | Message) -> Message:
    try:
        return Message.from_any(value)
    except PromptError:
        if not isinstance(value, Mapping):
            raise
    role, content, calls = value.get("role"), value.get("content"), value.get("tool_calls")
    parts = content if isinstance(content, list | tuple) else [{"text": content}]
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | Mapping)]
    text = "".join(text for text in texts if isinstance(text, str)) + (str(calls) if calls else "")
    return Message(role=role if role in ROLES else "user", content=countable_text(text))


def _text(content: Any) -> str:
    """The text of a message's content. Text parts are joined; other parts raise `PromptError`."""
    if content is None:
        return ""
    if isinstance(content, str):
        return encodable(content)
    if isinstance(content, Sequence):
        texts = []
        for part in content:
            if not isinstance(part, Mapping):
                raise PromptError(f"got content part {part!r}, expected a dict of type 'text'")
            kind = part.get("type")
            if kind != "text":
                raise PromptError(f"got a content part of type {kind!r}, expected text", hint="members read text only")
            if not isinstance(part.get("text"), str):
                raise PromptError(f"got content part {dict(part)!r}, expected a string as its 'text'")
            texts.append(encodable(part["text"]))
        return "".join(texts)
    raise PromptError(f"got message content {content!r}, expected text")


def _tool_call(value: Any) -> ToolCall:
    if isinstance(value, ToolCall):
        _check_json(value.name, value.arguments)
        return value
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping):
        raise PromptError(f"got {value!r} as a tool call, expected a name and a dict of arguments")
    name, arguments = function.get("name"), function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"the arguments of tool call {name!r} are not JSON: {arguments[:200]!r}") from error
    call_id = value.get("id")
    if not isinstance(name, str) or not isinstance(arguments, dict) or not isinstance(call_id, str | None):
        raise PromptError(f"got {value!r} as a tool call, expected a name and a dict of arguments")
    _check_json(name, arguments)
    return ToolCall(name=name, arguments=arguments, id=call_id)


def _check_json(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that JSON can't hold, and text that can't be encoded."""
    try:
        written = json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"the arguments of tool call {name!r} are no JSON values: {error}") from error
    encodable(name + written)
