"""OpenAI's forms, read in one place for all adapters: messages and roles, tools, tool choice, response format, names.

What clients send is taken as it is meant; what members could not be told is refused, never left out in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import ROLES, Message
from adafuse_core.errors import ConfigError, PromptError

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}

_ASSISTANTS = dict.fromkeys(("ai", "chatbot", "model"), "assistant")
_ROLES = {"developer": "system", "human": "user", "function": "tool", **_ASSISTANTS}
_MAX_TOKENS = ("max_tokens", "max_completion_tokens")
_OF_THE_ANSWER = ("reasoning", "reasoning_content", "annotations")  # told with an answer; no part of what was said


def messages(values: Iterable[Mapping[str, Any] | Message]) -> list[Message]:
    """A conversation; tool results get the name of the tool whose call they answer."""
    return with_tool_names(map(message, values))


def message(value: Mapping[str, Any] | Message) -> Message:
    """A message from a dictionary, also one that an answer came in.

    Thoughts of earlier turns and annotations of a text are left out: chat templates show neither.

    Raises:
        PromptError: The role or a key is unknown, or it holds what has no text, such as audio.
    """
    if isinstance(value, Message) or not isinstance(value, Mapping):
        return Message.from_any(value)
    turn = {key: part for key, part in value.items() if part is not None}
    turn["role"] = role(value.get("role"))
    if turn["role"] == "assistant":
        turn = {key: part for key, part in turn.items() if key not in _OF_THE_ANSWER}
        call = turn.pop("function_call", None)  # of the time before tools
        turn["tool_calls"] = turn.get("tool_calls") or ([] if call is None else [call])
        turn["content"] = _said(turn.get("content"), turn.pop("refusal", None))
    return Message.from_any(turn)


def role(name: Any) -> str:
    """One of the core's roles, by any of its names."""
    known = _ROLES.get(name, name) if isinstance(name, str) else name
    if known not in ROLES:
        raise PromptError(f"got a message of role {name!r}, expected one of {', '.join((*ROLES, *_ROLES))}")
    return str(known)


def with_tool_names(turns: Iterable[Message]) -> list[Message]:
    """The messages; tool results that say only which call they answer, with the name of its tool."""
    named: list[Message] = []
    names: dict[str, str] = {}  # by the id of the call
    for turn in turns:
        if turn.role == "tool" and turn.name is None and turn.tool_call_id in names:
            turn = dataclasses.replace(turn, name=names[turn.tool_call_id])
        names |= {call.id: call.name for call in turn.tool_calls if call.id}
        named.append(turn)
    return named


def function_tool(tool: Any) -> dict[str, Any]:
    """A tool with what members are told of it; `ConfigError` if only a provider could run it."""
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise ConfigError(f"got {tool!r} as a tool, expected a function with a name", hint="members run no tools")
    told = {"name": function["name"], "description": function.get("description") or ""}
    strict = {"strict": True} if function.get("strict") else {}
    return {
        "type": "function",
        "function": {**told, "parameters": function.get("parameters") or NO_PARAMETERS, **strict},
    }


def tool_choice(choice: Any) -> str | None:
    """What must be called: "auto", "any", "none" or a tool's name; None if nothing was said.

    Args:
        choice: The same, "required", a bool, or a dict in the form of OpenAI or Anthropic.
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
    """What the text of the answer must obey; None if it is free.

    Args:
        response_format: None, or `{"type": "text"}`, `{"type": "json_object"}` or
            `{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}`. What can't be enforced of a schema
            is named in the log, or is an error with `"strict": True` beside the schema.
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
        hint="of a pydantic class, give the JSON schema",
    )


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with `max_tokens` and `max_completion_tokens` by the core's name, `max_new_tokens`."""
    given = [name for name in (*_MAX_TOKENS, "max_new_tokens") if name in options]
    if len(given) > 1:
        raise ConfigError(f"got both {' and '.join(given)}", hint="they mean the same: give one of them")
    return {"max_new_tokens" if name in _MAX_TOKENS else name: value for name, value in options.items()}


def _said(content: Any, refusal: Any) -> Any:
    """An assistant's text with its words of refusal, which OpenAI keeps apart from it."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    parts = [*parts, {"type": "refusal", "refusal": refusal}] if refusal else parts
    return [{"type": "text", "text": part["refusal"]} if _refuses(part) else part for part in parts]


def _refuses(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "refusal" and "refusal" in part
