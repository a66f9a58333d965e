"""Answers in a given form: from a schema to what is asked of the members, and from their text back to an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.json import parse_partial_json
from pydantic import ConfigDict, TypeAdapter

from adafuse_core.errors import ConfigError
from adafuse_integrations.langchain.schemas import VALUE, is_class, is_other_type, is_wrapped, named_schema

METHODS = ("json_schema", "function_calling", "json_mode")


class AnswerParser(BaseCumulativeTransformOutputParser[Any]):
    """Reads an answer that is JSON; as an object of a pydantic class if one is given.

    Of a stream it yields what can be read so far, but a whole answer must be whole.
    """

    schema_class: Any = None
    adapter: Any = None  # pydantic's, of a type that is no class

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The object; of a partial answer, None as long as there is none.

        Raises:
            OutputParserException: The answer is not JSON, or is refused by the class.
        """
        text = result[0].text
        try:
            if partial:
                return self._so_far(parse_partial_json(text))
            if self.adapter is not None:
                return self.adapter.validate_json(text)
            return json.loads(text) if self.schema_class is None else _made(self.schema_class, text)
        except (ValueError, TypeError) as error:
            if partial:
                return None
            raise OutputParserException(f"can't read the answer {text!r}: {error}", llm_output=text) from error

    def _so_far(self, value: Any) -> Any:
        if self.adapter is not None:
            return self.adapter.validate_python(value)
        if self.schema_class is None:
            return value
        made = getattr(self.schema_class, "model_validate", None) or self.schema_class.parse_obj
        return made(value)

    def parse(self, text: str) -> Any:
        """The object in a text."""
        return self.parse_result([Generation(text=text)])


def as_response_format(schema: Any, method: str, *, strict: bool | None) -> dict[str, Any]:
    """The `response_format` that a schema asks for."""
    if schema is None:
        if method != "json_mode":
            raise ConfigError(f"got no schema for method={method!r}", hint="only json_mode needs none")
        return {"type": "json_object"}
    name, parameters = named_schema(schema, strict=strict)
    told = {} if strict is None else {"strict": strict}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": parameters, **told}}


def answer_parser(schema: Any) -> OutputParserLike[Any]:
    """What reads an answer that is JSON."""
    if is_class(schema):
        return AnswerParser(schema_class=schema)
    known = schema is None or not is_other_type(schema)
    return AnswerParser() if known else AnswerParser(adapter=TypeAdapter(schema))


def call_parser(schema: Any, tool: Mapping[str, Any]) -> OutputParserLike[Any]:
    """What reads an answer that is a call of the tool that stands for the schema."""
    wrapped = is_wrapped(schema)
    if is_class(schema) and not wrapped:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    arguments = JsonOutputKeyToolsParser(key_name=tool["function"]["name"], first_tool_only=True)
    if not (wrapped or is_other_type(schema)):
        return arguments
    adapter = TypeAdapter(Any if isinstance(schema, Mapping) else schema)
    return arguments | RunnableLambda(lambda given: _value(adapter, given, wrapped))


def with_raw(model: Runnable[Any, AIMessage], parser: OutputParserLike[Any]) -> Runnable[Any, Any]:
    """A chain that gives the message as `raw`, the object as `parsed`, and what went wrong as `parsing_error`."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _value(adapter: TypeAdapter[Any], arguments: Any, wrapped: bool) -> Any:
    """A value from the arguments of a call; None as long as there are none."""
    if not arguments:
        return None
    try:
        return adapter.validate_json(json.dumps(arguments[VALUE] if wrapped else arguments))
    except (ValueError, KeyError) as error:
        raise OutputParserException(f"can't read the call's arguments {arguments!r}: {error}") from error


def _made(kind: Any, text: str) -> Any:
    """The object of a pydantic class, of either version, from a whole answer."""
    return kind.model_validate_json(text) if hasattr(kind, "model_validate_json") else kind.parse_raw(text)
