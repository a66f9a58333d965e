"""`AdaFuseLLM`: an ensemble as a LlamaIndex language model.

Each of the eight endpoints calls `Ensemble.stream` directly, never another endpoint. A call is therefore one event for
callbacks, traces and rate limiters. `prompts` makes the prompt, `endpoint_call` runs the generation, `answers` makes
the responses, and `tool_calling` implements function calling and structured output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from pydantic import ConfigDict, Field, PrivateAttr, WithJsonSchema

from adafuse_core.chat.grammar import Grammar
from adafuse_core.config import GenerationParams
from adafuse_core.errors import ConfigError
from adafuse_integrations.common.adapter_model import CALL_OPTIONS
from adafuse_integrations.common.deadline import check_call_options
from adafuse_integrations.common.options import read_call_options
from adafuse_integrations.common.running_calls import MakePrompt
from adafuse_integrations.llama_index.answers import Chunk
from adafuse_integrations.llama_index.capabilities import Capabilities
from adafuse_integrations.llama_index.endpoint_call import EndpointCall, OnWord, Response, checked_listeners
from adafuse_integrations.llama_index.model import EnsembleModel
from adafuse_integrations.llama_index.prompts import chat_prompt, completion_prompt, has_custom_template
from adafuse_integrations.llama_index.tool_calling import ToolCalling

_CHAT_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")  # call options of the chat endpoints only


class AdaFuseLLM(EnsembleModel, CustomLLM, ToolCalling):
    """LlamaIndex LLM in which several open language models generate one answer together, word by word.

    Example:
        ```python
        llm = AdaFuseLLM(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])
        llm.complete("Name a river.")
        ```

    The first call loads the models. All objects in a process share the loaded models. The LLM is thread-safe.

    **Call options.** Every field of `GenerationParams`, such as `max_new_tokens` (or `max_tokens`), and `grammar`
    override the fields for one call. The chat endpoints also accept `tools`, `tool_choice` and `parallel_tool_calls`,
    as in `Ensemble.stream`. `timeout` is the time limit of a call in seconds, including the time that it waits; a
    longer call raises `DeadlineError`, a `TimeoutError`. The time of a stream starts at its first `next()`. `cancel` is
    a `threading.Event` that ends a call with `CancelledError` within one step once it is set. Other options
    raise `ConfigError`.

    **Prompts.** Each member reads messages through its own chat template. `complete(prompt)` sends the prompt as a user
    message, or as plain text if a member has no template. `complete(prompt, formatted=True)` always sends plain text.
    Custom `messages_to_prompt` and `completion_to_prompt` functions replace the templates: their result is the whole
    prompt of every member.

    **System prompt.** `system_prompt` starts the prompt of every `chat()` and unformatted `complete()` whose messages
    don't contain it. A custom `completion_to_prompt` must write it itself.

    **Responses.** `raw` of the last (or only) response is plain JSON: `usage` in tokens of the first member,
    `usage_by_member`, `finish_reason` (`"stop"`, `"length"` or `"tool_calls"`), `stop` (the stop string that ended the
    answer, or None), and the trace. The trace has `words` with a row per round: the `text`, the indices in `members` of
    the members that proposed it (`by`), and the number of candidates (`of`). With `trace="full"` it has `rounds` with
    all candidates and scores instead, and `raw` of each earlier chunk has its `round`. `library_text` is present if the
    token budget or a context window was too small for a grammar, and contains the text that AdaFuse wrote instead of
    the members. `dropped_members` is present if members failed, and the answer went on without them
    (`on_member_failure="drop"`).

    **Words.** Every endpoint calls `on_word` with an `EnsembleWord` for each round, before it returns the text of the
    round: on the caller's thread, or on a worker thread for async endpoints. An exception in `on_word` ends the call
    and reaches the caller. LlamaIndex's instrumentation receives the same value as `EnsembleWordEvent`, and swallows
    exceptions of its handlers.

    **Tools and structured output.** `chat_with_tools`, agents and `structured_predict` work as with any function
    calling LLM. Constrained decoding makes the arguments of every call and every object valid against its JSON schema,
    except for parts of a schema that the log reports as not enforceable. Messages carry calls as blocks and in
    `additional_kwargs["tool_calls"]`.

    **Settings.** Query engines replace the callback manager of the LLM, so set yours as `Settings.callback_manager`.
    Set `Settings.tokenizer = llm.tokenizer_fn` to make LlamaIndex count tokens like the members.

    Args:
        members: The models: names, paths, `MemberConfig` objects, or mappings of `MemberConfig` fields. Default: the
            two small models of the package.
        **ensemble options: Every other field of `EnsembleConfig`, such as `strategy`, and every field of
            `MemberConfig` that can apply to all members, such as `dtype`.
        **generation options: Every field of `GenerationParams`, such as `max_new_tokens` (or `max_tokens`) and `stop`.
        context_window: Tokens that LlamaIndex may use for prompt and answer. Default: the smallest context window in
            the members' config files, less 64 tokens for chat templates; 3900 if no file declares one.
        is_chat_model: Whether LlamaIndex sends messages. Set it to False for members without a chat template:
            conversations are then converted to plain text.
        is_function_calling_model: Whether LlamaIndex offers tools. `"auto"` (default) means yes if every member has a
            chat template and LlamaIndex sends messages; the log reports how members see tools, or why function
            calling is off. Without function calling, agents and routers describe tools in plain text.
        grammar: Grammar of every answer, such as `Grammar.json_schema(...)` or `react_grammar(tools)`.
        on_word: A callable, or several, that receive each `EnsembleWord`. Not part of `to_dict()`.
        timeout: Time limit of a call in seconds, including the time that it waits.
        max_retries: How often a call is retried if a member fails before the first word.
        max_async_requests: Maximum number of concurrent async calls; further calls wait.
        trace: What `raw` reports of each round: a `"summary"` (default), `"full"` (or True) for all candidates with
            their scores, or False for nothing. `on_word` does not depend on it.

    Raises:
        ValidationError: An option is unknown or out of range. If a field is set to such a value later, the next call
            raises `ConfigError`. Both are `ValueError`s.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    if TYPE_CHECKING:  # type checkers don't see the inherited options, which are created at run time

        def __init__(self, **options: Any) -> None: ...

    stop: str | tuple[str, ...] | None = Field(
        default=GenerationParams.stop, description="Strings that end the answer."
    )
    context_window: int | None = Field(
        default=None, gt=0, description="Tokens that LlamaIndex may use for prompt and answer."
    )
    is_chat_model: bool = Field(default=True, description="Whether LlamaIndex sends messages.")
    is_function_calling_model: bool | Literal["auto"] = Field(
        default="auto", description="Whether LlamaIndex offers tools."
    )
    grammar: Grammar | None = Field(default=None, description="Grammar of every answer.")
    on_word: Annotated[OnWord | Sequence[OnWord] | None, WithJsonSchema({"type": "string"})] = Field(
        default=None, description="Called with each word.", exclude=True
    )

    _cached_capabilities: Capabilities | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Check the fields together."""
        super().model_post_init(context)
        self._config()
        checked_listeners(self.on_word)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialized LLMs."""
        return "AdaFuseLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The LLM's properties as LlamaIndex reads them. The first access reads the members' files, but no weights."""
        return LLMMetadata(
            context_window=self.context_window or self._capabilities.usable_window(chat=self.is_chat_model),
            num_output=-1 if self.max_new_tokens is None else self.max_new_tokens,
            is_chat_model=self.is_chat_model,
            is_function_calling_model=self._supports_function_calling(),
            model_name=f"adafuse({'+'.join(self.ensemble.names)})",
        )

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """A function for `Settings.tokenizer`, which LlamaIndex uses to count tokens.

        It returns a list with as many entries as the largest token count among the members. The entries are positions,
        because the members have no common token ids. The first call reads the tokenizers, but no weights.
        """
        return self._tokenize

    def cancel(self) -> int:
        """Cancel all running and waiting calls of this LLM, on any thread. Each call ends within one step.

        Cancelled calls raise `CancelledError`. To cancel a single call, pass it an event as `cancel`.

        Returns:
            Number of cancelled calls.
        """
        return self._running_calls.cancel()

    # The endpoints. LlamaIndex's base class documents their arguments.

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt."""
        return self._completion(prompt, formatted, kwargs).result()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Stream the answer to a prompt. Generation starts at the first `next()`; closing ends it."""
        return self._completion(prompt, formatted, kwargs).stream()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._chat(messages, kwargs).result()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Stream the answer to a conversation. Generation starts at the first `next()`; closing ends it."""
        return self._chat(messages, kwargs).stream()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Async form of `complete`."""
        return await self._completion(prompt, formatted, kwargs).aresult()

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Async form of `stream_complete`."""
        return self._completion(prompt, formatted, kwargs).astream()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Async form of `chat`."""
        return await self._chat(messages, kwargs).aresult()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Async form of `stream_chat`."""
        return self._chat(messages, kwargs).astream()

    # The common steps of the endpoints, in order of execution.

    def _completion(self, prompt: str, formatted: bool, options: dict[str, Any]) -> EndpointCall[CompletionResponse]:
        if chat_options := options.keys() & set(_CHAT_OPTIONS):
            raise ConfigError(f"got {sorted(chat_options)} for a completion", hint="use chat() for tools")
        make_prompt = completion_prompt(self, prompt, formatted=formatted, chat=self.is_chat_model)
        return self._call(make_prompt, options, Chunk.as_completion)

    def _chat(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> EndpointCall[ChatResponse]:
        return self._call(chat_prompt(self, messages, chat=self.is_chat_model), options, Chunk.as_chat)

    def _call(
        self, make_prompt: MakePrompt, options: dict[str, Any], to_response: Callable[[Chunk], Response]
    ) -> EndpointCall[Response]:
        listeners = checked_listeners(self.on_word)
        given = {name: options[name] for name in CALL_OPTIONS if name in options}
        limits: dict[str, Any] = {"timeout": self.timeout, **given}
        check_call_options(**limits)
        return EndpointCall(
            self.ensemble,
            make_prompt,
            self._stream_options({name: value for name, value in options.items() if name not in CALL_OPTIONS}),
            listeners,
            to_response,
            running_calls=self._running_calls,
            retries=self.max_retries,
            threads=self.max_async_requests,
            trace=self.trace,
            **limits,
        )

    def _stream_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Options of `Ensemble.stream`: the fields, overridden by the options of a call."""
        given = read_call_options(given, (*_CHAT_OPTIONS, "grammar"))
        other = {name: given.pop(name) for name in (*_CHAT_OPTIONS, "grammar") if name in given}
        return {**vars(self._config().generation.updated(given)), "grammar": self.grammar, **other}

    def _supports_function_calling(self) -> bool:
        if self.is_function_calling_model != "auto":
            return self.is_function_calling_model
        sends_messages = self.is_chat_model and not has_custom_template(self)
        return self._capabilities.supports_function_calling(sends_messages=sends_messages)

    @property
    def _capabilities(self) -> Capabilities:
        """The capabilities of the members, read once per set of members."""
        ensemble, cached = self.ensemble, self._cached_capabilities
        if cached is None or cached.members != ensemble.config.members:
            cached = self._cached_capabilities = Capabilities.of(ensemble, max_new_tokens=self.max_new_tokens)
        return cached

    def _tokenize(self, text: str) -> list[int]:
        return list(range(max(self.ensemble.count_text_tokens(text).values())))
