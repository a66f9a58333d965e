"""JSON schemas of what LangChain users give: tools, functions, classes, typed dicts and dicts, each from its source.

LangChain's own converter gives name and description. It loses what a class says of itself below the first level.
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
from adafuse_core.errors import ConfigError
from adafuse_integrations.common.python_schemas import is_object, opened, strictly, type_schema

VALUE = "value"  # the argument of a call that stands for a value which is no object
_TEXTS = ("title", "description")
_KINDS = (
    "function",
    "custom",
    "object",
)  # types of dicts that may be functions: OpenAI's, Anthropic's, a JSON schema's


def function_tool(tool: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """A tool in OpenAI's form.

    Args:
        tool: A function, LangChain tool, class, typed dict, or dict in any form LangChain knows.
        strict: Whether every property is required, no other is allowed, and what can't be enforced is an error.

    Raises:
        ConfigError: It is no function, such as a tool that only a provider could run.
    """
    parameters = _parameters(tool)
    if isinstance(tool, Mapping) and tool.get("type", "function") not in _KINDS:
        return openai.function_tool(tool)
    if parameters is None:
        return openai.function_tool(convert_to_openai_tool(_opened(tool), strict=strict))
    made = _made(tool, strict)
    function = {**made["function"], "parameters": strictly(parameters) if strict else dict(parameters)}
    return openai.function_tool({**made, "function": function})


def schema_tool(schema: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """A tool whose call stands for a value of a schema; values that are no objects are its argument `value`."""
    if not (is_other_type(schema) or is_wrapped(schema) or _is_json_schema(schema)):
        return function_tool(schema, strict=strict)
    name, whole = named_schema(schema, strict=strict)
    text = str(whole.get("description", "")) if isinstance(schema, Mapping) else _doc(schema)
    if is_object(whole):
        whole = _without_texts(whole) or {}
    else:
        defined: dict[str, Any] = {key: whole.pop(key) for key in ("$defs", "definitions") if key in whole}
        whole = {"type": "object", "properties": {VALUE: whole}, "required": [VALUE], **defined}
    function = {"name": name, "description": text, "parameters": whole, **({"strict": True} if strict else {})}
    return openai.function_tool({"type": "function", "function": function})


def is_wrapped(schema: Any) -> bool:
    """Whether a call stands for a value that is no object, as its argument `value`."""
    own = is_other_type(schema) or is_class(schema) or _is_json_schema(schema)
    return own and not is_object(opened(named_schema(schema)[1]))


def named_schema(schema: Any, *, strict: bool | None = None) -> tuple[str, dict[str, Any]]:
    """The name and the JSON schema of an answer."""
    if _is_json_schema(schema):
        whole = opened(dict(schema))
        return str(whole.get("title", "answer")), strictly(whole) if strict else whole
    if is_other_type(schema):
        whole = _of_type(schema)
        return _name(schema), strictly(whole) if strict else whole
    function = function_tool(schema, strict=strict)["function"]
    return function["name"], {"title": function["name"], **function["parameters"]}


def traced_schema(schema: Any) -> Any:
    """A schema in a form of which LangChain can tell its tracers."""
    if isinstance(schema, Mapping) or is_class(schema):
        return schema
    name, whole = named_schema(schema)
    return {"title": name, **whole}


def _is_json_schema(schema: Any) -> bool:
    """Whether a schema is a dict that is no tool in a form of a provider."""
    return isinstance(schema, Mapping) and not schema.keys() & {"name", "function", "toolSpec"}


def is_class(schema: Any) -> bool:
    """Whether a schema is a pydantic class, of either version."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def is_other_type(schema: Any) -> bool:
    """Whether a schema is a type that LangChain does not know, such as a union, a list of something, or a dataclass."""
    if isinstance(schema, Mapping | BaseTool) or is_class(schema) or _is_typed_dict(schema):
        return False
    return isinstance(schema, type) or get_origin(schema) is not None or not callable(schema)


def _parameters(tool: Any) -> Mapping[str, Any] | None:
    """The schema of a tool's arguments from its source; None where only LangChain's converter knows it."""
    if isinstance(tool, Mapping):
        return _written_parameters(tool)
    if isinstance(tool, BaseTool):
        simple = isinstance(tool, Tool) and not tool.args_schema
        given = None if simple else tool.tool_call_schema
        return _without_texts(given) if isinstance(given, Mapping) or given is None else _of_class(given)
    if is_class(tool):
        return _of_class(tool)
    if _is_typed_dict(tool):
        return _of_typed_dict(tool)
    return _without_texts(_of_type(tool)) if is_other_type(tool) else _of_class(_arguments_of(tool))


def _written_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any] | None:
    function = tool.get("function") if tool.get("type") == "function" else None
    if isinstance(function, Mapping):
        return dict(function.get("parameters") or openai.NO_PARAMETERS)
    if "name" in tool and tool.get("type", "function") in _KINDS:
        return dict(tool.get("input_schema") or tool.get("parameters") or openai.NO_PARAMETERS)
    return _without_texts(opened(dict(tool))) if "title" in opened(dict(tool)) and "toolSpec" not in tool else None


def _of_class(kind: Any) -> dict[str, Any]:
    return _without_texts(type_schema(kind)) or {}


def _without_texts(schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The schema without what is said of the whole: a tool has name and description beside it."""
    return None if schema is None else {key: value for key, value in schema.items() if key not in _TEXTS}


def _of_typed_dict(kind: Any) -> dict[str, Any] | None:
    """The schema of a typed dict, with the descriptions and defaults that LangChain reads from it."""
    try:
        schema = _of_class(kind)
    except PydanticUserError:  # before Python 3.12, pydantic knows those of typing_extensions only
        return None
    noted = _made(kind, None)["function"].get("parameters", {})
    if not noted:
        return schema
    for name, part in schema.get("properties", {}).items():
        note = noted.get("properties", {}).get(name, {})
        part.update({key: note[key] for key in ("description", "default") if key in note and key not in part})
    required = [name for name in schema.get("required", ()) if name in noted.get("required", ())]
    return {**schema, "required": required}


def _of_type(kind: Any) -> dict[str, Any]:
    try:
        return type_schema(kind)
    except (PydanticUserError, PydanticSchemaGenerationError) as error:
        raise ConfigError(
            f"got {kind!r} as a schema, but there is no JSON schema of it: {str(error).splitlines()[0]}",
            hint="give a pydantic class, a typed dict, a dataclass, a type such as list[int], or a JSON schema",
        ) from error


def _made(tool: Any, strict: bool | None) -> dict[str, Any]:
    """A tool in OpenAI's form, by LangChain's converter, for its name and description."""
    if is_other_type(tool):
        return _plain(tool, strict)
    return convert_to_openai_tool(_with_simple_fields(tool) if _is_typed_dict(tool) else _opened(tool), strict=strict)


def _plain(kind: Any, strict: bool | None) -> dict[str, Any]:
    told = {"name": _name(kind), "description": _doc(kind), **({} if strict is None else {"strict": strict})}
    return {"type": "function", "function": told}


def _opened(tool: Any) -> Any:
    """A tool that is a dict as name and description alone, the form in which LangChain looks at them."""
    written = _written_parameters(tool) if isinstance(tool, Mapping) else None
    if written is None:
        return tool
    told = tool["function"] if isinstance(tool.get("function"), Mapping) else opened(dict(tool))
    named = {"name": told.get("name", told.get("title")), "description": told.get("description") or ""}
    strict = {"strict": told["strict"]} if "strict" in told else {}
    return {**named, "parameters": dict(openai.NO_PARAMETERS), **strict}


def _with_simple_fields(kind: Any) -> Any:
    """A typed dict with the same texts whose fields take anything: LangChain knows few types of fields."""
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:  # of a class inside a function
        hints = dict.fromkeys(kind.__annotations__, Any)
    simple: Any = TypedDict(kind.__name__, {name: _noted(hint) for name, hint in hints.items()})  # type: ignore[misc]
    simple.__doc__ = kind.__doc__ or ""  # else that of `dict` would be found
    return simple


def _noted(hint: Any) -> Any:
    """Any type, with what a field's annotation says of it for LangChain: its default, then its description."""
    if get_origin(hint) in (Required, NotRequired):
        hint = get_args(hint)[0]
    notes: tuple[Any, ...] = hint.__metadata__ if get_origin(hint) is Annotated else ()
    return Annotated[Any, notes[0], notes[1]] if len(notes) > 1 and isinstance(notes[1], str) else Any


def _arguments_of(function: Callable[..., Any]) -> Any:
    """A class with the arguments of a function and what its docstring says of them."""
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
