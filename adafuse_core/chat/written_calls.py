"""Parses answers that consist of tool calls in another format than the one shown to the members.

Models fall back on formats from their training, such as bare or fenced JSON. `FORMS` lists the formats that are read,
whatever the dialect of the request.
"""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import regex

from adafuse_core.calls import ToolCall
from adafuse_core.chat.dialects.base import JSON, quoted
from adafuse_core.chat.schema_paths import part_at, reference_target
from adafuse_core.chat.tools import Tools

logger = logging.getLogger(__name__)

# Keys of calls in JSON: for the name, the arguments, other values, and lists of calls.
_NAMES = ("name", "function", "tool", "tool_name", "function_name", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs", "tool_input", "action_input")
_BESIDE = ("id", "type", "index", "call_id")
_WRAPPERS = ("tool_calls", "function_calls", "tool_call", "function_call")

_DEFINITIONS = r"""(?(DEFINE)
    (?P<string>"(?:[^"\\]|\\.)*+")
    (?P<json>[\[{](?:[^\[\]{}"]++|(?&string)|(?&json))*+[\]}])
    (?P<python>\((?:[^()"']++|(?&string)|'(?:[^'\\]|\\.)*+'|(?&python))*+\))
    (?P<object>\{\s*+(?:KEY\s*+:\s*+(?:"TOOL_NAME"|\{)|OTHER_KEY\s*+:)(?:[^\[\]{}"]++|(?&string)|(?&json))*+\})
    (?P<list>\[\s*+(?&object)(?:\s*+,\s*+(?&json))*+\s*+\])
)"""
_PARTS: Mapping[str, str] = {
    "CALLS": r"(?P<calls>(?&object)|(?&list))(?:\s*+[,;]?\s*+(?P<calls>(?&object)|(?&list)))*+",
    "NAME": r"(?P<name>TOOL_NAME)",
    "OBJECT": r"(?P<arguments>(?=\{)(?&json))",
    "TAGS": r"(?P<arguments>(?:\s*+<parameter=[^>\n]++>(?:(?!</parameter>).)*+</parameter>)*+)",
    "PYTHON": r"(?P<name>TOOL_NAME)\s*+(?P<arguments>(?&python))",
}

FORMS: Mapping[str, str] = {
    "JSON": r"@CALLS",
    "fenced JSON": r"(?:```\w*+\s*+@CALLS\s*+```\s*+)++",
    "Hermes and Qwen": r"(?:<tool_call>\s*+@CALLS\s*+(?:</tool_call>)?\s*+)++",
    "Qwen Coder": r"(?:(?:<tool_call>\s*+)?<function=@NAME>@TAGS\s*+</function>\s*+(?:</tool_call>\s*+)?)++",
    "other tags": r"<(?P<tag>tools|tool_calls|function_call|functioncall)>\s*+@CALLS\s*+(?:</(?P=tag)>)?",
    "Llama": r"<\|python_tag\|>\s*+@CALLS",
    "Llama, named": r"(?:(?:<\|python_tag\|>\s*+)?<function=@NAME>\s*+@OBJECT\s*+(?:</?function>)?\s*+)++",
    "Llama, Python": r"(?:<\|python_\w+\|>\s*+)?\[\s*+@PYTHON(?:\s*+,\s*+@PYTHON)*+\s*+\](?:\s*+<\|python_end\|>)?",
    "Gemma, Python": r"```tool_code\s*+@PYTHON\s*+```",
    "Mistral": r"(?:\[TOOL_CALLS\]\s*+@CALLS\s*+)++",
    "Mistral, named": r"(?:\[TOOL_CALLS\]\s*+@NAME\s*+(?:\[CALL_ID\]\w++\s*+)?(?:\[ARGS\]\s*+)?@OBJECT\s*+)++",
    "Phi": r"functools\s*+@CALLS",
}


def _pattern(names: Sequence[str]) -> regex.Pattern[str]:
    """The pattern of all formats, for tools of these names."""
    definitions = "".join(_DEFINITIONS.split())
    pattern = f"{definitions}\\s*+(?:{'|'.join(f'(?:{form})' for form in FORMS.values())})\\s*+"
    for part, meaning in _PARTS.items():
        pattern = pattern.replace(f"@{part}", meaning)
    pattern = pattern.replace("OTHER_KEY", f'"(?:{"|".join((*_ARGUMENTS, *_BESIDE, *_WRAPPERS))})"')
    pattern = pattern.replace("KEY", f'"(?:{"|".join(_NAMES)})"')
    tools = "|".join(regex.escape(quoted(name)) for name in sorted(names, key=len, reverse=True))
    return regex.compile(pattern.replace("TOOL_NAME", f"(?:{tools})"), regex.DOTALL)


class WrittenCalls:
    """Parses a whole answer as calls.

    Args:
        tools: The tools of the request.
    """

    def __init__(self, tools: Tools) -> None:
        self._parameters = tools.parameters
        self._grammars = dict(zip(tools.names, tools.arguments(JSON), strict=True))
        self._pattern = _pattern(tools.names)
        self._parallel = tools.parallel

    def may_become(self, text: str) -> bool:
        """Whether the text is, or may become, an answer that consists of calls."""
        return self._pattern.fullmatch(text, partial=True) is not None

    def repeats_itself(self, text: str) -> bool:
        """Whether the text consists of complete calls, two of which are the same."""
        calls = self._calls(text)
        return any(call.repeats(other) for call, other in combinations(calls, 2))

    def read(self, text: str) -> list[ToolCall]:
        """The calls of an answer, without IDs.

        Returns:
            All calls, or only the first one without `parallel_tool_calls`. Empty if the answer contains anything else,
            or if arguments violate the schema of their tool.
        """
        calls = self._calls(text)
        if not all(map(self._allows, calls)):
            logger.info("an answer looks like tool calls, but violates the schema of a tool: it is kept as text")
            return []
        if len(calls) > 1 and not self._parallel:
            logger.info("parallel_tool_calls is off: only the first of %d calls is kept", len(calls))
        return calls if self._parallel else calls[:1]

    def _calls(self, text: str) -> list[ToolCall]:
        """The unchecked calls of a text; empty if it contains anything else."""
        try:
            return [ToolCall(name=name, arguments=dict(arguments)) for name, arguments in self._found(text)]
        except (ValueError, TypeError, SyntaxError, RecursionError):  # matches the pattern, but is not JSON or Python
            return []

    def _found(self, text: str) -> Iterator[tuple[str, Any]]:
        match = self._pattern.fullmatch(text)
        if match is None:
            return
        for calls in match.captures("calls"):
            yield from _json_calls(json.loads(calls))
        for name, arguments in zip(match.captures("name"), match.captures("arguments"), strict=True):
            yield name, self._arguments(name, arguments)

    def _arguments(self, name: str, text: str) -> Any:
        """Parse arguments in JSON, Python syntax, or tags."""
        if text.startswith("{"):
            return json.loads(text)
        if text.startswith("("):
            call = ast.parse(f"f{text}", mode="eval").body
            assert isinstance(call, ast.Call)
            if call.args:
                raise ValueError("arguments without names")
            return {str(argument.arg): ast.literal_eval(argument.value) for argument in call.keywords}
        properties = self._parameters.get(name, {}).get("properties", {})
        tagged = regex.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", text, regex.DOTALL)
        return {key: _tagged(value, properties.get(key)) for key, value in tagged}

    def _allows(self, call: ToolCall) -> bool:
        grammar = self._grammars.get(call.name)
        if grammar is None:
            return False
        schema = self._parameters[call.name]
        after = grammar.guide().after(JSON.write(_ordered(call.arguments, schema, schema)))
        return after is not None and after.may_end


def _json_calls(value: Any) -> Iterator[tuple[str, Any]]:
    """The calls in a JSON value; raises `ValueError` if it contains anything else."""
    if isinstance(value, list) and value:
        for item in value:
            yield from _json_calls(item)
        return
    if not isinstance(value, dict):
        raise ValueError("not a call")
    names, arguments = ([key for key in value if key in keys] for keys in (_NAMES, _ARGUMENTS))
    rest = value.keys() - {*names, *arguments, *_BESIDE}
    if len(value) == 1 and rest <= {*_WRAPPERS}:
        yield from _json_calls(next(iter(value.values())))
    elif names == ["function"] and isinstance(value["function"], dict) and not arguments and not rest:
        yield from _json_calls(value["function"])
    elif len(names) == len(arguments) == 1 and isinstance(value[names[0]], str) and not rest:
        given = value[arguments[0]]
        yield value[names[0]], (json.loads(given or "{}") if isinstance(given, str) else given or {})
    else:
        raise ValueError("not a call")


def _tagged(text: str, schema: Any) -> Any:
    """The value between two tags: a string if the schema requires one, else JSON if it can be parsed."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _ordered(value: Any, schema: Any, root: Mapping[str, Any]) -> Any:
    """A value whose object keys are in the order of the schema, which grammars require."""
    if isinstance(value, list):
        items = _resolved(value, schema, root).get("items")
        return [_ordered(item, items, root) for item in value]
    if not isinstance(value, dict):
        return value
    properties = _resolved(value, schema, root).get("properties", {})
    keys = dict.fromkeys((*(key for key in properties if key in value), *value))
    return {key: _ordered(value[key], properties.get(key), root) for key in keys}


def _resolved(value: Any, schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a schema that describes a value, behind `$ref`, `anyOf` and `oneOf`."""
    if not isinstance(schema, Mapping):
        return {}
    if (target := reference_target(schema)) is not None:
        part = part_at(root, target)
        return {} if part is schema else _resolved(value, part, root)
    options = [_resolved(value, option, root) for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))]
    kind = "properties" if isinstance(value, dict) else "items"
    fitting = [option for option in options if kind == "items" or value.keys() <= option.get("properties", {}).keys()]
    return next((option for option in (schema, *fitting) if kind in option), {})
