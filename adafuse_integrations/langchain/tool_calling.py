"""`ToolCalling`: the part of `ChatAdaFuse` that binds tools and answer formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable

from adafuse_core.errors import ConfigError
from adafuse_integrations.langchain.call_options import as_choice, as_tools
from adafuse_integrations.langchain.schemas import schema_tool
from adafuse_integrations.langchain.structured import (
    METHODS,
    answer_parser,
    as_response_format,
    call_parser,
    tracing_options,
    with_raw,
)


class ToolCalling(BaseChatModel):
    """A chat model with `bind_tools` and `with_structured_output`."""

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Make a runnable whose answers may call tools.

        Args:
            tools: Functions, LangChain tools, pydantic classes, typed dicts, or dicts in any form that LangChain
                accepts.
            tool_choice: `"auto"` (default) allows calls; `"any"`, `"required"` or True requires a call; a tool's name,
                or OpenAI's dict with a name, requires a call of that tool; `"none"` forbids calls.
            strict: Whether all properties are required, additional properties are forbidden, and a part of a schema
                that can't be enforced is an error. Otherwise the log names such parts.
            parallel_tool_calls: False allows at most one call per answer.
            response_format: Format of an answer that calls no tool, in OpenAI's form.
            kwargs: Further options of a call.

        Raises:
            ConfigError: `tool_choice` names an unknown tool, or a tool is not a function.
        """
        formatted = as_tools(tools, strict=strict)
        bound = {
            "tools": formatted or None,
            "tool_choice": as_choice(tool_choice, formatted),
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
        }
        return self.bind(**{name: value for name, value in bound.items() if value is not None}, **kwargs)

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Make a runnable whose answers are objects of a schema.

        Constrained decoding enforces the schema with every method, and the JSON is always complete within the token
        budget. If AdaFuse has to write a part of the JSON instead of the members, the log and the message's
        `response_metadata["adafuse"]["library_text"]` contain that text. The log also names the parts of a schema that
        can't be enforced.

        Args:
            schema: A type or a schema. For a pydantic class, or another type such as `list[A]`, `A | B`, a `Literal` or
                a dataclass, answers are values of the type. For a typed dict, a JSON schema or an OpenAI function,
                answers are dicts.
            method: `"json_schema"` constrains the text of the answer. `"function_calling"` shows the schema to the
                members as a tool and requires a call. `"json_mode"` is like `"json_schema"`, but allows
                any JSON object if there is no schema.
            include_raw: Whether to return a dict with the message as `raw`, the object as `parsed`, and an error of
                the parser as `parsing_error`, instead of raising the error.
            strict: Whether all properties are required, additional properties are forbidden, and a part of the schema
                that can't be enforced is an error.
            kwargs: Further options of a call.

        Raises:
            ConfigError: The method is unknown, the schema is missing or has no JSON schema, or `strict` is given for
                `"json_mode"`.
        """
        if method not in METHODS:
            raise ConfigError(f"got method={method!r}, expected one of {', '.join(METHODS)}")
        if strict is not None and method == "json_mode":
            raise ConfigError("got strict for json_mode", hint="use method='json_schema'")
        kwargs |= tracing_options(schema, method, strict=strict)
        if method == "function_calling":
            tool = schema_tool(schema, strict=strict)
            name = tool["function"]["name"]
            options = {"parallel_tool_calls": False, "complete_calls": True, **kwargs}
            model = self.bind_tools([tool], tool_choice=name, **options)
            parser = call_parser(schema, tool)
        else:
            model = self.bind(response_format=as_response_format(schema, method, strict=strict), **kwargs)
            parser = answer_parser(schema)
        return with_raw(model, parser) if include_raw else model | parser
