"""`ChatAdaFuse`: an ensemble as a LangChain chat model with tools.

The class only converts arguments, messages and events. The core's `Ensemble.stream` generates the answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import Field

from adafuse_core.checks import several
from adafuse_core.errors import PromptError
from adafuse_integrations.common.deadline import Cancellation
from adafuse_integrations.common.options import read_call_options
from adafuse_integrations.langchain.call_options import TOOL_OPTIONS, as_tools, stream_arguments
from adafuse_integrations.langchain.message_chunks import merge_chunks, message_chunks
from adafuse_integrations.langchain.messages import countable, to_messages
from adafuse_integrations.langchain.model import OWN_OPTIONS, EnsembleModel
from adafuse_integrations.langchain.profile import profile
from adafuse_integrations.langchain.run_identifiers import RunAwareChatModel, take_run_identifiers
from adafuse_integrations.langchain.tool_calling import ToolCalling


class ChatAdaFuse(EnsembleModel, ToolCalling, RunAwareChatModel):
    """LangChain chat model in which several open language models generate one answer together, word by word.

    Each member reads the messages through its own chat template. The first call loads the models. All objects in a
    process share the loaded models: copies, `bind`, pickles and `configurable_fields` never load a model twice.

    Setup:
        `pip install "adafuse[langchain]"`. Without arguments, `ChatAdaFuse()` runs the two small models of the package.

    Key init args:
        members: The models: names, paths, `MemberConfig` objects, or mappings of `MemberConfig` fields.
        model: Names of the members that answer, joined by `+`. Default: all members. Without `members`, the names of
            the models to load. Also an option of a call.
        **ensemble options: Every other field of `EnsembleConfig`, such as `strategy`, and every field of
            `MemberConfig` that can apply to all members, such as `dtype`.
        **generation options: Every field of `GenerationParams`, such as `max_new_tokens` (or `max_tokens`) and `stop`.
            Also options of a call.
        timeout: Time limit of a call in seconds, from its start to its last chunk, including the time that it waits.
            The time of a stream starts at its first `next()`, the time of a batch item when LangChain starts the item
            (see `max_concurrency`). Also an option of a call.
        cancel: Only an option of a call: a `threading.Event` that ends the call within a step once it is set.
        max_retries: How often a call is retried if a member fails before the first word.
        max_async_requests: Maximum number of concurrent async calls; further calls wait.
        trace: What `response_metadata` reports of each round: a `"summary"` (default), `"full"` (or True) for all
            candidates with their scores, or False for nothing.
        streaming: Whether `invoke` streams internally, so that callbacks receive each word.
        api_key: Hugging Face token for gated models. A token in a member's `model_kwargs` takes precedence.
        ensemble: A ready-made `Ensemble`. Its config supplies all options that are not given here.

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
        Generation runs on worker threads. Cancelling the task ends it within a step.

    Cancel:
        ```python
        llm.cancel()  # all calls of this object, on any thread
        llm.cancel("user-17")  # calls with `config={"tags": ["user-17"]}`, also inside a chain or graph with this tag
        ```

    Tool calling:
        ```python
        def get_weather(city: str) -> str:
            "Get the weather in a city."

        llm.bind_tools([get_weather]).invoke("What is the weather in Paris?").tool_calls
        llm.bind_tools([get_weather], tool_choice="any")  # always a call, and its arguments obey the tool's schema
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
        counts the tokens of the first member. `response_metadata["adafuse"]` contains its name as `counted_by`, and
        the counts of all members as `usage`.

    Response metadata:
        ```python
        llm.invoke("Name a river.").response_metadata
        ```
        contains `finish_reason` (`"stop"`, `"length"` or `"tool_calls"`), `stop` (the stop string that ended the
        answer, or None), `model_name`, and the trace in `["adafuse"]`. The trace has `words` with a row per round: the
        `text`, the indices in `members` of the members that proposed it (`by`), and the number of candidates (`of`).
        With `trace="full"`, the trace has `rounds` with all candidates and scores instead. `library_text` is present if
        the token budget or a context window was too small for a grammar, and contains the text that AdaFuse wrote
        instead of the members. `dropped_members` is present if members failed, and the answer went on without them
        (`on_member_failure="drop"`). A chunk carries the trace since the previous chunk; messages of
        `stream_events(version="v3")` keep the trace of the last chunk only.

    Reasoning:
        The reasoning of a model is in a block of `content_blocks` and in `additional_kwargs["reasoning_content"]`.

    Raises:
        ValidationError: An argument of the constructor is unknown or out of range.
        ConfigError: An option of a call is unknown or out of range.
        PromptError: A message contains an image, audio, video or file, which members can't read.
        ContextOverflowError, ModelNotFoundError, ModelTimeoutError: Subclasses of LangChain's errors of these names.
    """

    streaming: bool = Field(
        default=False, description="Whether `invoke` streams internally, so that callbacks receive each word."
    )

    model_config = EnsembleModel.model_config

    if TYPE_CHECKING:  # type checkers don't see the inherited options, which are created at run time

        def __init__(self, **options: Any) -> None: ...

    # --- generation ---

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[merge_chunks(list(self._stream(messages, stop, run_manager, **kwargs)))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chunks = [chunk async for chunk in self._astream(messages, stop, run_manager, **kwargs)]
        return ChatResult(generations=[merge_chunks(chunks)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # the base class reports each chunk to it
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        identifiers = take_run_identifiers(kwargs, run_manager)
        call, tool_options = self._split_call(stop, kwargs)
        with call._track(identifiers) as cancel, closing(call._chunks(messages, tool_options, cancel)) as chunks:
            yield from chunks

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        identifiers = take_run_identifiers(kwargs, run_manager)
        call, tool_options = self._split_call(stop, kwargs)
        with call._track(identifiers) as cancel:
            start = partial(call._chunks, messages, tool_options, cancel)
            async with aclosing(self._running_calls.on_thread(start, cancel, self.max_async_requests)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _split_call(self, stop: list[str] | None, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy whose fields have the values of the call options, and the options for tools and answer formats."""
        read_call_options(options, (*TOOL_OPTIONS, *OWN_OPTIONS, "stream"))
        tool_options = {name: value for name, value in options.items() if name in TOOL_OPTIONS}
        rest = {name: value for name, value in options.items() if name not in (*TOOL_OPTIONS, "stream")}
        return self._copy_for_call(stop, rest), tool_options

    def _chunks(
        self, messages: list[BaseMessage], tool_options: Mapping[str, Any], cancel: Cancellation
    ) -> Generator[ChatGenerationChunk]:
        arguments = stream_arguments(tool_options)
        with closing(self._events(lambda _: to_messages(messages), cancel, **arguments)) as events:
            yield from message_chunks(events, self.model_name, trace=self.trace, logprobs=self.logprobs)

    # --- LangChain's hooks ---

    @property
    def _llm_type(self) -> str:
        return "adafuse-chat"

    def _resolve_model_profile(self) -> ModelProfile:
        return profile(self.model_name, self._config(), self.ensemble)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """As in `BaseChatModel`, plus the constructor's stop strings, so that the cache key contains them."""
        return super()._get_invocation_params(self.stop if stop is None else stop, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._tracing_params(stop, kwargs)
        params["ls_model_type"] = "chat"
        return params

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Length of a conversation and its tools in tokens, including the members' chat templates.

        The result is the largest count among the members. Conversations that can't be answered are counted, too.
        Images, audio, video and files count as empty.
        """
        messages = several("messages", messages, "write [message]; get_num_tokens() counts a text", PromptError)
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(get_buffer_string(messages)))
        if not messages:
            return 0
        return max(self._get_ensemble().count_tokens(countable(messages), as_tools(tools or ()) or None).values())
