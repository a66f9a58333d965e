"""Answers in a given form: from a schema to what is asked of the members, and from their text back to an object."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict

from adafuse_core.errors import ConfigError

METHODS = ("json_schema", "function_calling", "json_mode")


class AnswerParser(BaseCumulativeTransformOutputParser[Any]):
    """Reads an answer that is JSON; as an object of a pydantic class if one is given.

    Of a stream it yields what can be read so far, but a whole answer must be whole.
    """

    schema_class: Any = None

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The object; of a partial answer, None as long as there is none.

        Raises:
            OutputParserException: The answer is not JSON, or is refused by the class.
        """
        text = result[0].text
        try:
            value = parse_partial_json(text) if partial else json.loads(text)
            return value if self.schema_class is None else _made(self.schema_class, value)
        except (ValueError, TypeError) as error:
            if partial:
                return None
            raise OutputParserException(f"can't read the answer {text!r}: {error}", llm_output=text) from error

    def parse(self, text: str) -> Any:
        """The object in a text."""
        return self.parse_result([Generation(text=text)])


def as_response_format(schema: Any, method: str, *, strict: bool | None) -> dict[str, Any]:
    """The `response_format` that a schema asks for."""
    if schema is None:
        if method != "json_mode":
            raise ConfigError(f"got no schema for method={method!r}", hint="only json_mode needs none")
        return {"type": "json_object"}
    name, parameters = _named_schema(schema, strict)
    told = {} if strict is None else {"strict": strict}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": parameters, **told}}


def answer_parser(schema: Any) -> OutputParserLike[Any]:
    """What reads an answer that is JSON."""
    return AnswerParser(schema_class=schema if _is_class(schema) else None)


def call_parser(schema: Any, name: str) -> OutputParserLike[Any]:
    """What reads an answer that is a call of the tool that stands for the schema."""
    if _is_class(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def with_raw(model: Runnable[Any, AIMessage], parser: OutputParserLike[Any]) -> Runnable[Any, Any]:
    """A chain that gives the message as `raw`, the object as `parsed`, and what went wrong as `parsing_error`."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _named_schema(schema: Any, strict: bool | None) -> tuple[str, dict[str, Any]]:
    if isinstance(schema, dict) and not schema.keys() & {"title", "name", "function"}:  # a JSON schema without a name
        if strict:
            raise ConfigError("got strict=True for a JSON schema without a title", hint="give it a title")
        return "answer", schema
    converted = convert_to_json_schema(schema, strict=strict)
    return str(converted["title"]), converted


def _is_class(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _made(kind: Any, value: Any) -> Any:
    """The object of a pydantic class, of either version."""
    return kind.model_validate(value) if hasattr(kind, "model_validate") else kind.parse_obj(value)
