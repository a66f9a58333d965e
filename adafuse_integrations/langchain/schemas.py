"""JSON schemas of the tools, functions, classes, typed dicts and dicts that LangChain users pass.

LangChain's own converter supplies names and descriptions only, because it drops parts of nested classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired, Required, get_args, get_origin, get_type_hints, is_typeddict

from langchain_core.tools import BaseTool, Tool
from langchain_core.tools.base import create_schema_from_function
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from typing_extensions import TypedDict
from typing_extensions import is_typeddict as is_typeddict_of_extensions

from adafuse_core.chat import openai
from adafuse_core.checks import expect
from adafuse_core.errors import ConfigError
from adafuse_integrations.common.python_schemas import (
    inline_root,
    is_object,
    strict_schema,
    type_schema,
    without_title,
)

VALUE = "value"  # the argument that wraps a value which is not a JSON object
_TYPES = ("function", "custom", "object")  # `type` of dicts that may be functions: of OpenAI, Anthropic, JSON Schema


def function_tool(tool: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """Convert a tool to OpenAI's form.

    Args:
        tool: A function, LangChain tool, class, typed dict, or dict in any form that LangChain accepts.
        strict: Whether all properties are required, additional properties are forbidden, and a part of the schema that
            can't be enforced is an error.

    Raises:
        ConfigError: The tool is not a function, for example a tool that only a provider can run.
    """
    parameters = _parameters(tool)
    if isinstance(tool, Mapping) and tool.get("type", "function") not in _TYPES:
        return openai.function_tool(tool)
    if parameters is None:
        return openai.function_tool(convert_to_openai_tool(tool, strict=strict))
    described = _described(tool, strict)
    function = {**described["function"], "parameters": strict_schema(parameters) if strict else dict(parameters)}
    return openai.function_tool({**described, "function": function})


def schema_tool(schema: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """A tool whose arguments are a value of the schema. A value that is not an object is wrapped as `value`."""
    if not (is_other_type(schema) or is_wrapped(schema) or _is_json_schema(schema)):
        return function_tool(schema, strict=strict)
    name, parameters = named_schema(schema, strict=strict)
    description = str(parameters.get("description", "")) if isinstance(schema, Mapping) else _doc(schema)
    if is_object(parameters):
        parameters = without_title(parameters)
    else:
        defs: dict[str, Any] = {key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters}
        parameters = {"type": "object", "properties": {VALUE: parameters}, "required": [VALUE], **defs}
    strictness = {"strict": True} if strict else {}
    function = {"name": name, "description": description, "parameters": parameters, **strictness}
    return openai.function_tool({"type": "function", "function": function})


def is_wrapped(schema: Any) -> bool:
    """Whether values of the schema are not objects, so that a call wraps them as the argument `value`."""
    own = is_other_type(schema) or is_class(schema) or _is_json_schema(schema)
    return own and not is_object(inline_root(named_schema(schema)[1]))


def named_schema(schema: Any, *, strict: bool | None = None) -> tuple[str, dict[str, Any]]:
    """The name and the JSON schema of an answer format."""
    if _is_json_schema(schema):
        json_schema = inline_root(dict(schema))
        return str(json_schema.get("title", "answer")), strict_schema(json_schema) if strict else json_schema
    if is_other_type(schema):
        json_schema = _type_schema(schema)
        return _name(schema), strict_schema(json_schema) if strict else json_schema
    function = function_tool(schema, strict=strict)["function"]
    return function["name"], {"title": function["name"], **function["parameters"]}


def traceable_schema(schema: Any) -> Any:
    """A schema in a form that LangChain can report to tracers."""
    if isinstance(schema, Mapping) or is_class(schema):
        return schema
    name, json_schema = named_schema(schema)
    description = {"description": text} if (text := _doc(schema)) else {}
    return {"title": name, **description, **json_schema}


def _is_json_schema(schema: Any) -> bool:
    """Whether a schema is a dict that is not a tool in the form of a provider."""
    return isinstance(schema, Mapping) and not schema.keys() & {"name", "function", "toolSpec"}


def is_class(schema: Any) -> bool:
    """Whether a schema is a pydantic class (version 1 or 2)."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def is_other_type(schema: Any) -> bool:
    """Whether a schema is a type that LangChain can't convert, such as a union, `list[A]`, or a dataclass."""
    if isinstance(schema, Mapping | BaseTool) or is_class(schema) or _is_typed_dict(schema):
        return False
    return isinstance(schema, type) or get_origin(schema) is not None or not callable(schema)


def _parameters(tool: Any) -> Mapping[str, Any] | None:
    """The JSON schema of a tool's arguments; None if only LangChain's converter can make it."""
    if isinstance(tool, Mapping):
        return _dict_parameters(tool)
    if isinstance(tool, BaseTool):
        if isinstance(tool, Tool) and not tool.args_schema:  # takes one string
            return None
        schema = tool.tool_call_schema
        return without_title(schema if isinstance(schema, Mapping) else type_schema(schema))
    if is_class(tool):
        return without_title(type_schema(tool))
    if _is_typed_dict(tool):
        return _typed_dict_parameters(tool)
    return without_title(_type_schema(tool) if is_other_type(tool) else type_schema(_arguments_class(tool)))


def _dict_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any] | None:
    function = tool.get("function") if tool.get("type") == "function" else None
    if isinstance(function, Mapping):
        return _checked_parameters(function.get("parameters"))
    if "name" in tool and tool.get("type", "function") in _TYPES:
        return _checked_parameters(tool.get("input_schema") or tool.get("parameters"))
    inlined = inline_root(dict(tool))
    return without_title(inlined) if "title" in inlined and "toolSpec" not in tool else None


def _checked_parameters(parameters: Any) -> dict[str, Any]:
    expect(parameters is None or isinstance(parameters, Mapping), "parameters", parameters, "a JSON schema")
    return dict(parameters or openai.NO_PARAMETERS)


def _typed_dict_parameters(kind: Any) -> dict[str, Any] | None:
    """The schema of a typed dict, with the descriptions and defaults that LangChain reads from its annotations."""
    try:
        schema = without_title(type_schema(kind))
    except PydanticUserError:  # before Python 3.12, pydantic supports only the `TypedDict` of typing_extensions
        return None
    annotated = _described(kind, None)["function"].get("parameters", {})
    if not annotated:
        return schema
    for name, part in schema.get("properties", {}).items():
        note = annotated.get("properties", {}).get(name, {})
        part.update({key: note[key] for key in ("description", "default") if key in note and key not in part})
    required = [name for name in schema.get("required", ()) if name in annotated.get("required", ())]
    return {**schema, "required": required}


def _type_schema(kind: Any) -> dict[str, Any]:
    try:
        return type_schema(kind)
    except (PydanticUserError, PydanticSchemaGenerationError) as error:
        raise ConfigError(
            f"got {kind!r} as a schema, but it has no JSON schema: {str(error).splitlines()[0]}",
            hint="give a pydantic class, a typed dict, a dataclass, a type such as list[int], or a JSON schema",
        ) from error


def _described(tool: Any, strict: bool | None) -> dict[str, Any]:
    """A tool in OpenAI's form with name and description, from LangChain's converter if it can convert the tool."""
    if is_other_type(tool):
        strictness = {} if strict is None else {"strict": strict}
        return {"type": "function", "function": {"name": _name(tool), "description": _doc(tool), **strictness}}
    reduced = _with_untyped_fields(tool) if _is_typed_dict(tool) else _without_parameters(tool)
    return convert_to_openai_tool(reduced, strict=strict)


def _without_parameters(tool: Any) -> Any:
    """Reduce a tool that is a dict to name and description, in the one form that LangChain's converter checks."""
    if not isinstance(tool, Mapping) or _dict_parameters(tool) is None:
        return tool
    source = tool["function"] if isinstance(tool.get("function"), Mapping) else inline_root(dict(tool))
    named = {"name": source.get("name", source.get("title")), "description": source.get("description") or ""}
    strictness = {"strict": source["strict"]} if "strict" in source else {}
    return {**named, "parameters": dict(openai.NO_PARAMETERS), **strictness}


def _with_untyped_fields(kind: Any) -> Any:
    """A typed dict with the same descriptions whose fields have any type: LangChain's converter supports few types."""
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:  # the class is defined inside a function
        hints = dict.fromkeys(kind.__annotations__, Any)
    untyped: Any = TypedDict(kind.__name__, {name: _untyped(hint) for name, hint in hints.items()})  # type: ignore[misc]
    untyped.__doc__ = kind.__doc__ or ""  # otherwise LangChain would read the docstring of `dict`
    return untyped


def _untyped(hint: Any) -> Any:
    """`Any`, with the default and the description in a field's annotation, which LangChain reads."""
    if get_origin(hint) in (Required, NotRequired):
        hint = get_args(hint)[0]
    notes: tuple[Any, ...] = hint.__metadata__ if get_origin(hint) is Annotated else ()
    return Annotated[Any, notes[0], notes[1]] if len(notes) > 1 and isinstance(notes[1], str) else Any


def _arguments_class(function: Callable[..., Any]) -> Any:
    """A pydantic class with the arguments of a function and their descriptions from its docstring."""
    name = getattr(function, "__name__", type(function).__name__)
    return create_schema_from_function(
        name,
        function,
        filter_args=(),
        parse_docstring=True,
        error_on_invalid_docstring=False,
        include_injected=False,
    )


def _is_typed_dict(kind: Any) -> bool:
    return is_typeddict(kind) or is_typeddict_of_extensions(kind)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else "answer"


def _doc(kind: Any) -> str:
    return (inspect.getdoc(kind) or "") if isinstance(kind, type) else ""
