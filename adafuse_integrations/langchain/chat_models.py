"""`ChatAdaFuse`: an ensemble as a LangChain chat model, messages in and messages out, with tools.

A thin shell: it translates arguments, messages and events, and joins the core at `Ensemble.stream`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage, get_buffer_string
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

from adafuse_core.checks import several
from adafuse_core.errors import ConfigError, PromptError
from adafuse_integrations.common.deadline import Cancellation
from adafuse_integrations.common.options import call_options
from adafuse_integrations.langchain.asking import OPTIONS, as_choice, as_tools, asked
from adafuse_integrations.langchain.message_chunks import message_chunks, whole
from adafuse_integrations.langchain.messages import countable, to_messages
from adafuse_integrations.langchain.model import OWN_OPTIONS, EnsembleModel
from adafuse_integrations.langchain.named_runs import NamedRuns, taken_names
from adafuse_integrations.langchain.profile import profile
from adafuse_integrations.langchain.schemas import schema_tool, traced_schema
from adafuse_integrations.langchain.structured import (
    METHODS,
    answer_parser,
    as_response_format,
    call_parser,
    with_raw,
)


class ChatAdaFuse(EnsembleModel, NamedRuns):
    """Several open LLMs that decode together, word by word, and answer as one: chat model with tools.

    Messages go to every member through its own chat template. Models are loaded at the first call and shared by the
    whole process: copies, `bind`, pickles and `configurable_fields` never load them again.

    Setup:
        `pip install "adafuse[langchain]"`. Without arguments it runs the two small models that ship with it.

    Key init args:
        members: Model names, paths, mappings of `MemberConfig` fields, or `MemberConfig`s.
        model: Names of the members that answer, joined by `+`; all by default. Also an option of a call. Without
            `members` it names the models to load.
        **ensemble options: Every other field of `EnsembleConfig`, such as `strategy`; and options of all members, such
            as `dtype`.
        **generation options: Every field of `GenerationParams`, such as `max_new_tokens` (or `max_tokens`) and `stop`.
            Also options of a call.
        timeout: Most seconds that a call may take, from its start to its last chunk, waiting included. A stream
            starts with its first `next()`, an item of a batch when LangChain begins it (see `max_concurrency`). Also
            an option of a call, as is `cancel`: a `threading.Event` that ends it within a step.
        max_retries: How often a call is tried again if a member fails before the first word.
        max_async_requests: Most async calls that run at the same time; the others wait.
        api_key: Hugging Face token for gated models, where a member's `model_kwargs` has none.
        trace: What answers tell of each round: a `"summary"`, `"full"` (or True) for all candidates with their scores,
            or False for nothing.
        streaming: Whether `invoke` streams, so that callbacks hear each word.
        ensemble: A ready-made `Ensemble`; what is not set here is read from its config.

    Instantiate:
        ```python
        from adafuse_integrations.langchain import ChatAdaFuse

        llm = ChatAdaFuse(
            members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"],
            max_tokens=128,
        )
        ```

    Invoke:
        ```python
        llm.invoke([("system", "Be brief."), ("human", "Name a river.")], stop=["\\n"])
        ```

    Stream:
        ```python
        for chunk in llm.stream("Name a river."):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        await llm.ainvoke("Name a river.")
        async for chunk in llm.astream("Name a river."):
            print(chunk.text, end="")
        ```
        Generation runs on threads of its own; a task that is cancelled ends it within a step.

    Cancel:
        ```python
        llm.cancel()  # all calls of this object, on any thread
        llm.cancel("user-17")  # those with `config={"tags": ["user-17"]}`, also of a chain or graph around it
        ```

    Tool calling:
        ```python
        def get_weather(city: str) -> str:
            "Get the weather in a city."

        llm.bind_tools([get_weather]).invoke("What is the weather in Paris?").tool_calls
        llm.bind_tools([get_weather], tool_choice="any")  # a call that obeys the tool's schema, whatever is asked
        ```

    Structured output:
        ```python
        class River(BaseModel):
            name: str
            length_km: int

        llm.with_structured_output(River).invoke("Name a river.")
        ```

    Usage:
        ```python
        llm.invoke("Name a river.").usage_metadata
        ```
        counts in tokens of one member, the first; `response_metadata["adafuse"]` tells which in `["counted_by"]`, and
        what the other members count in `["usage"]`.

    Response metadata:
        ```python
        llm.invoke("Name a river.").response_metadata
        ```
        has `finish_reason` (`"stop"`, `"length"` or `"tool_calls"`), the `stop` string that was hit, `model_name`, and
        in `["adafuse"]["words"]` who proposed each word: `by` holds places in `["adafuse"]["members"]`, `of` is the
        number of candidates. With `trace="full"`, `["adafuse"]["rounds"]` has all candidates and scores in its place.
        `["adafuse"]["library_text"]` is there if the budget or a context window was too small for what a grammar wants,
        and tells what AdaFuse wrote in the members' place. Chunks carry the words or rounds since the last one. What a
        reasoning model thinks is in `additional_kwargs["reasoning_content"]`, and a reasoning block of
        `content_blocks`. Messages of `stream_events(version="v3")` keep the trace of the last chunk only.

    Raises:
        ValidationError: An argument is unknown or out of range.
        ConfigError: At a call, for an unknown option or one out of range.
        PromptError: At a call, for messages with images, audio, video or files, which members can't read.
        ContextOverflowError, ModelNotFoundError, ModelTimeoutError: As LangChain's errors of these names.
    """

    streaming: bool = Field(default=False, description="Whether `invoke` streams, so that callbacks hear each word.")

    model_config = EnsembleModel.model_config

    if TYPE_CHECKING:  # most options are inherited from where type checkers don't see them

        def __init__(self, **options: Any) -> None: ...

    # --- generation ---

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[whole(list(self._stream(messages, stop, run_manager, **kwargs)))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(
            generations=[whole([chunk async for chunk in self._astream(messages, stop, run_manager, **kwargs)])]
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # the base class tells it of each chunk
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        names = taken_names(kwargs, run_manager)
        call, wanted = self._call(stop, kwargs)
        with call._begun(names) as cancel, closing(call._chunks(messages, wanted, cancel)) as chunks:
            yield from chunks

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        names = taken_names(kwargs, run_manager)
        call, wanted = self._call(stop, kwargs)
        with call._begun(names) as cancel:
            start = partial(call._chunks, messages, wanted, cancel)
            async with aclosing(self._runs.on_thread(start, cancel, self.max_async_requests)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _call(self, stop: list[str] | None, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy with a call's options as its fields, and what else it asks for."""
        call_options(options, (*OPTIONS, *OWN_OPTIONS, "stream"))
        wanted = {name: value for name, value in options.items() if name in OPTIONS}
        rest = {name: value for name, value in options.items() if name not in (*OPTIONS, "stream")}
        return self._with_options(stop, rest), wanted

    def _chunks(
        self,
        messages: list[BaseMessage],
        wanted: Mapping[str, Any],
        cancel: Cancellation,
    ) -> Generator[ChatGenerationChunk]:
        with closing(self._events(lambda _: to_messages(messages), cancel, **asked(wanted))) as events:
            yield from message_chunks(events, self.model_name, trace=self.trace, logprobs=self.logprobs)

    # --- tools and structured answers ---

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
        """The model with tools that it may call.

        Args:
            tools: Functions, LangChain tools, pydantic classes, typed dicts, or dicts in any form LangChain knows.
            tool_choice: `"auto"` leaves it to the model, `"any"`, `"required"` or True has it call some tool, a name
                (or OpenAI's dict with one) that tool, and `"none"` none of them.
            strict: Whether every property is required, no other is allowed, and what can't be enforced of a schema is
                an error. Otherwise the log names it.
            parallel_tool_calls: False for at most one call per answer.
            response_format: In OpenAI's form: what the answer must obey if it calls no tool.
            kwargs: Further options of a call.

        Raises:
            ConfigError: There is no tool of the name in `tool_choice`, or one can't be run by the application.
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
        """The model with answers in a given form.

        Whatever the method, the members can write nothing but what obeys the schema, and it is complete before the
        budget ends. What AdaFuse had to write itself for that is named in the log, and in the message's
        `response_metadata["adafuse"]["library_text"]`. What can't be enforced of a schema is named in the log.

        Args:
            schema: A pydantic class (answers are objects of it), another type such as `list[A]`, `A | B`, a `Literal`
                or a dataclass (answers are its values), or a typed dict, a JSON schema or an OpenAI function (answers
                are dicts).
            method: `"json_schema"` constrains the text of the answer, `"function_calling"` shows the schema to the
                members as a tool and has them call it, `"json_mode"` is as `"json_schema"`, or any JSON object if
                there is no schema.
            include_raw: Whether to return a dict with the message as `raw`, the object as `parsed`, and the error as
                `parsing_error` instead of raising it.
            strict: Whether every property is required, no other is allowed, and what can't be enforced is an error.
            kwargs: Further options of a call.
        """
        if method not in METHODS:
            raise ConfigError(f"got method={method!r}, expected one of {', '.join(METHODS)}")
        if strict is not None and method == "json_mode":
            raise ConfigError("got strict for json_mode", hint="use method='json_schema'")
        if schema is not None:
            kwargs["ls_structured_output_format"] = {
                "kwargs": {"method": method, "strict": strict},
                "schema": traced_schema(schema),
            }
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

    # --- what LangChain asks ---

    @property
    def _llm_type(self) -> str:
        return "adafuse-chat"

    def _resolve_model_profile(self) -> ModelProfile:
        return profile(self._config().members, self.ensemble)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """As in `BaseChatModel`, but with the constructor's stop strings: they are part of the cache key."""
        return super()._get_invocation_params(self.stop if stop is None else stop, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._tracing_params(stop, kwargs)
        params["ls_model_type"] = "chat"
        return params

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Length of a conversation with its tools, in tokens of the member that needs the most, template included.

        Conversations that can't be answered are counted too. Images and the like count nothing.
        """
        messages = several("messages", messages, "write [message]; get_num_tokens() counts a text", PromptError)
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(get_buffer_string(messages)))
        if not messages:
            return 0
        return max(self._running().count_tokens(countable(messages), as_tools(tools or ()) or None).values())
