"""Structured output: the answer format that a schema asks for, and the parsers that read the answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import Generation
from langchain_core.runnables import AddableDict, Runnable, RunnableGenerator, RunnableLambda, RunnablePassthrough
from langchain_core.utils.json import parse_partial_json
from pydantic import ConfigDict, TypeAdapter

from adafuse_core.errors import ConfigError
from adafuse_integrations.langchain.schemas import (
    VALUE,
    is_class,
    is_other_type,
    is_wrapped,
    named_schema,
    traceable_schema,
)

METHODS = ("json_schema", "function_calling", "json_mode")


class AnswerParser(BaseCumulativeTransformOutputParser[Any]):
    """Parses a JSON answer, and validates it with a pydantic class or type adapter if given.

    While an answer streams, the parser yields the object so far. A finished answer must be complete JSON.
    """

    schema_class: Any = None
    adapter: Any = None  # `pydantic.TypeAdapter` of a type that is not a pydantic class

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer. For a partial answer that can't be parsed yet, return None.

        Raises:
            OutputParserException: The answer is not valid JSON, or does not validate.
        """
        text = result[0].text
        try:
            if partial:
                return self._validate_partial(parse_partial_json(text))
            if self.adapter is not None:
                return self.adapter.validate_json(text)
            return json.loads(text) if self.schema_class is None else _validate_json(self.schema_class, text)
        except (ValueError, TypeError) as error:
            if partial:
                return None
            raise OutputParserException(f"can't read the answer {text!r}: {error}", llm_output=text) from error

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        """The objects so far. An answer that shows none, such as `null`, has one at its end."""
        texts: list[str] = []
        found = False
        for found_value in super()._transform(_noted(input, texts)):
            found = True
            yield found_value
        if not found:
            yield self.parse("".join(texts))

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        texts: list[str] = []
        found = False
        async for found_value in super()._atransform(_noted_async(input, texts)):
            found = True
            yield found_value
        if not found:
            yield self.parse("".join(texts))

    def _validate_partial(self, value: Any) -> Any:
        if self.adapter is not None:
            return self.adapter.validate_python(value)
        if self.schema_class is None:
            return value
        validate = getattr(self.schema_class, "model_validate", None) or self.schema_class.parse_obj
        return validate(value)

    def parse(self, text: str) -> Any:
        """Parse the text of an answer."""
        return self.parse_result([Generation(text=text)])


def tracing_options(schema: Any, method: str, *, strict: bool | None) -> dict[str, Any]:
    """Call options by which LangChain reports a schema to tracers."""
    if schema is None:
        return {}
    kwargs = {"method": method, "strict": strict}
    return {"ls_structured_output_format": {"kwargs": kwargs, "schema": traceable_schema(schema)}}


def as_response_format(schema: Any, method: str, *, strict: bool | None) -> dict[str, Any]:
    """The schema of an answer as a `response_format` in OpenAI's form."""
    if schema is None:
        if method != "json_mode":
            raise ConfigError(f"got no schema for method={method!r}", hint="only json_mode works without a schema")
        return {"type": "json_object"}
    name, parameters = named_schema(schema, strict=strict)
    options = {} if strict is None else {"strict": strict}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": parameters, **options}}


def answer_parser(schema: Any) -> OutputParserLike[Any]:
    """The parser of answers whose text is JSON."""
    if is_class(schema):
        return AnswerParser(schema_class=schema)
    if schema is not None and is_other_type(schema):
        return AnswerParser(adapter=TypeAdapter(schema))
    return AnswerParser()


def call_parser(schema: Any, tool: Mapping[str, Any]) -> OutputParserLike[Any]:
    """The parser of answers that call a tool made from the schema."""
    wrapped = is_wrapped(schema)
    if is_class(schema) and not wrapped:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    arguments = JsonOutputKeyToolsParser(key_name=tool["function"]["name"], first_tool_only=True)
    if not (wrapped or is_other_type(schema)):
        return arguments
    adapter = TypeAdapter(Any if isinstance(schema, Mapping) else schema)
    return arguments | RunnableLambda(lambda given: _argument_value(adapter, given, wrapped))


def with_raw(model: Runnable[Any, AIMessage], parser: OutputParserLike[Any]) -> Runnable[Any, Any]:
    """A chain whose result has the message as `raw`, the object as `parsed`, and an error as `parsing_error`.

    The model is its first step, since a chain passes the options of a call to that step only.
    """
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    as_raw: RunnableGenerator[AIMessage, Any] = RunnableGenerator(_as_raw, _as_raw_async)
    return model | as_raw | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _as_raw(messages: Iterator[AIMessage]) -> Iterator[AddableDict]:
    for message in messages:
        yield AddableDict({"raw": message})


async def _as_raw_async(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AddableDict]:
    async for message in messages:
        yield AddableDict({"raw": message})


def _noted(chunks: Iterator[str | BaseMessage], texts: list[str]) -> Iterator[str | BaseMessage]:
    """The chunks of a stream; their texts are added to the list."""
    for chunk in chunks:
        texts.append(chunk if isinstance(chunk, str) else chunk.text)
        yield chunk


async def _noted_async(chunks: AsyncIterator[str | BaseMessage], texts: list[str]) -> AsyncIterator[str | BaseMessage]:
    async for chunk in chunks:
        texts.append(chunk if isinstance(chunk, str) else chunk.text)
        yield chunk


def _argument_value(adapter: TypeAdapter[Any], arguments: Any, wrapped: bool) -> Any:
    """The value in the arguments of a call; None for a partial answer without arguments yet."""
    if not arguments:
        return None
    try:
        return adapter.validate_json(json.dumps(arguments[VALUE] if wrapped else arguments))
    except (ValueError, KeyError) as error:
        raise OutputParserException(f"can't read the call's arguments {arguments!r}: {error}") from error


def _validate_json(kind: Any, text: str) -> Any:
    """Make an object of a pydantic class (version 1 or 2) from a complete answer."""
    return kind.model_validate_json(text) if hasattr(kind, "model_validate_json") else kind.parse_raw(text)
