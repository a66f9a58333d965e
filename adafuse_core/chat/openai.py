"""Parses OpenAI's formats for all adapters: messages, roles, tools, tool choice, response format and option names.

Variants that clients send are accepted; values that can't be passed on to the members raise an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import ROLES, Message
from adafuse_core.chat.tools import check_function
from adafuse_core.errors import ConfigError, PromptError

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}

_ASSISTANTS = dict.fromkeys(("ai", "chatbot", "model"), "assistant")
_ROLES = {"developer": "system", "human": "user", "function": "tool", **_ASSISTANTS}
_MAX_TOKENS = ("max_tokens", "max_completion_tokens")
_METADATA = ("reasoning", "reasoning_content", "annotations")  # of answers; chat templates show none of it


def messages(values: Iterable[Mapping[str, Any] | Message]) -> list[Message]:
    """The messages of a conversation. Tool results get the name of their tool."""
    return with_tool_names(map(message, values))


def message(value: Mapping[str, Any] | Message) -> Message:
    """A message from a dictionary, including messages of responses. Thoughts and annotations are dropped.

    Raises:
        PromptError: The role or a key is unknown, or the content is not text, such as audio.
    """
    if isinstance(value, Message) or not isinstance(value, Mapping):
        return Message.from_any(value)
    turn = {key: part for key, part in value.items() if part is not None}
    turn["role"] = role(value.get("role"))
    if turn["role"] == "assistant":
        turn = {key: part for key, part in turn.items() if key not in _METADATA}
        call = turn.pop("function_call", None)  # the predecessor of tool calls
        turn["tool_calls"] = turn.get("tool_calls") or ([] if call is None else [call])
        turn["content"] = _with_refusal(turn.get("content"), turn.pop("refusal", None))
    return Message.from_any(turn)


def role(name: Any) -> str:
    """The core's name of a role."""
    known = _ROLES.get(name, name) if isinstance(name, str) else name
    if known not in ROLES:
        raise PromptError(f"got a message of role {name!r}, expected one of {', '.join((*ROLES, *_ROLES))}")
    return str(known)


def with_tool_names(turns: Iterable[Message]) -> list[Message]:
    """The messages with the tool's name in every tool result that has only a call ID."""
    named: list[Message] = []
    names: dict[str, str] = {}  # of tools, by call ID
    for turn in turns:
        if turn.role == "tool" and turn.name is None and turn.tool_call_id in names:
            turn = dataclasses.replace(turn, name=names[turn.tool_call_id])
        names |= {call.id: call.name for call in turn.tool_calls if call.id}
        named.append(turn)
    return named


def function_tool(tool: Any) -> dict[str, Any]:
    """A tool in the core's format.

    Raises:
        ConfigError: The tool is one that only a provider can run, or a part of it is unknown or has a wrong type.
    """
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise ConfigError(
            f"got {tool!r} as a tool, expected a function with a name",
            hint="tools that run at a provider are not supported",
        )
    check_function(function)
    described = {"name": function["name"], "description": function.get("description") or ""}
    strict = {"strict": True} if function.get("strict") else {}
    return {
        "type": "function",
        "function": {**described, "parameters": function.get("parameters") or NO_PARAMETERS, **strict},
    }


def tool_choice(choice: Any) -> str | None:
    """The core's `tool_choice`: "auto", "any", "none" or the name of a tool; None if unspecified.

    Args:
        choice: None, a result of this function, "required", a bool, or a dict in the format of OpenAI or Anthropic.
    """
    if choice is None or isinstance(choice, bool):
        return "any" if choice else None
    named = choice
    if isinstance(choice, Mapping) and not choice.keys() - {"type", "name", "function"}:
        kind, function = choice.get("type"), choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        named = name if kind in ("function", "tool", None) and name else kind
    if not isinstance(named, str) or not named:
        raise ConfigError(f"got tool_choice={choice!r}, expected 'auto', 'any', 'none' or the name of a tool")
    return "any" if named == "required" else named


def response_grammar(response_format: Any) -> Grammar | None:
    """The grammar of a response format; None for free text.

    Args:
        response_format: None, or `{"type": "text"}`, `{"type": "json_object"}` or
            `{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}`. Keywords of the schema that can't
            be enforced are logged; with `"strict": True` next to the schema they raise an error.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    named = response_format.get("json_schema") if kind == "json_schema" else None
    if isinstance(named, Mapping) and isinstance(named.get("schema"), Mapping):
        name = f"JSON schema {named['name']!r}" if named.get("name") else "JSON schema"
        return Grammar.json_schema(named["schema"], lenient=not named.get("strict"), name=name)
    raise ConfigError(
        f"got response_format={response_format!r}, expected a dict of type 'text', 'json_object' or 'json_schema'",
        hint="for a pydantic class, pass its JSON schema",
    )


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with `max_tokens` and `max_completion_tokens` renamed to `max_new_tokens`."""
    given = [name for name in (*_MAX_TOKENS, "max_new_tokens") if name in options]
    if len(given) > 1:
        raise ConfigError(f"got both {' and '.join(given)}", hint="they mean the same: use one of them")
    return {"max_new_tokens" if name in _MAX_TOKENS else name: value for name, value in options.items()}


def _with_refusal(content: Any, refusal: Any) -> Any:
    """Content parts of an assistant message, including the text of a refusal, which OpenAI keeps separate."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    parts = [*parts, {"type": "refusal", "refusal": refusal}] if refusal else parts
    return [{"type": "text", "text": part["refusal"]} if _is_refusal(part) else part for part in parts]


def _is_refusal(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "refusal" and "refusal" in part
