"""`AdaFuseLLM`: an ensemble as a LlamaIndex language model.

Each of the eight endpoints drains `Ensemble.stream` by itself; none calls another one, so a call is one
event for callbacks, traces and rate limiters. `prompts` says what members are shown, `runs` begins and stops the
generation, `answers` makes its responses, `tool_calling` speaks LlamaIndex's terms of tools and objects.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

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
from pydantic import ConfigDict, Field, PrivateAttr, WithJsonSchema, field_validator

from adafuse_core.chat.grammar import Grammar
from adafuse_core.checks import several
from adafuse_core.config import EnsembleConfig, GenerationParams, default_config
from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig
from adafuse_integrations.common.deadline import check_options
from adafuse_integrations.common.fields import OptionFields
from adafuse_integrations.common.options import as_fields, call_options, ensemble_values, generation_values
from adafuse_integrations.common.runs import OF_CALLS, CallFields, Runs
from adafuse_integrations.common.selection import checked_ensemble
from adafuse_integrations.common.trace import DEFAULT, DESCRIPTION, TraceLevel
from adafuse_integrations.llama_index.answers import Chunk
from adafuse_integrations.llama_index.declared import Declared
from adafuse_integrations.llama_index.prompts import Ask, ask_messages, ask_text, writes_messages
from adafuse_integrations.llama_index.runs import Call, OnWord, Response, checked_listeners
from adafuse_integrations.llama_index.tool_calling import ToolCalling

_OF_CHATS = ("tools", "tool_choice", "parallel_tool_calls")  # options of a call beside those


class AdaFuseLLM(OptionFields, CallFields, CustomLLM, ToolCalling):
    """Several open language models that answer as one, for LlamaIndex.

    Example:
        `AdaFuseLLM(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])`

    Models are loaded at the first answer and shared by all copies. Calls may come from many threads.
    Per call, `max_new_tokens` (or `max_tokens`), `temperature`, `stop`, `seed` and `grammar` override the fields, and
    the chat endpoints take `tools`, `tool_choice` and `parallel_tool_calls` as `Ensemble.stream` does; other keyword
    arguments raise `ConfigError`. Any endpoint takes `timeout`, in seconds from the call (of a stream: from its first
    `next()`) to the last word, waiting included, which ends it with `DeadlineError`, a `TimeoutError`; and
    `cancel`, a `threading.Event` that ends it with `CancelledError` within a step.

    **Prompts.** Messages go to every member by its own chat template. `complete(prompt)` is one user turn, or
    the text as it is if a member has no template; `complete(prompt, formatted=True)` is always the text as it
    is. A `messages_to_prompt` or `completion_to_prompt` of your own replaces the templates and writes the
    whole prompt of all members.

    **System prompt.** `system_prompt` opens every conversation, also in `chat()` and unformatted `complete()`,
    unless it stands in it already. A `completion_to_prompt` of your own must write it itself.

    **Responses.** `raw` of the last (or only) response holds `usage` in tokens of the first member,
    `usage_by_member`, `finish_reason` ("stop", "length" or "tool_calls"), the `stop` string that was hit and the
    trace. All of it is JSON. The trace is `words`: for each round its `text`, the places in `members` of those that
    proposed it (`by`), and how many candidates there were (`of`). With `trace="full"` it is `rounds`, all candidates
    with their scores, and `raw` of earlier chunks holds their `round`. `library_text` is there if the budget or a
    context window was too small for what a grammar wants, and tells what AdaFuse wrote in the members' place.

    **Words.** `on_word` callables get an `EnsembleWord` for each round, in every endpoint, before its text is
    returned: on the caller's thread, or for the async endpoints on a worker thread. What they raise ends the
    generation and reaches the consumer. The same value is sent to LlamaIndex's instrumentation
    as `EnsembleWordEvent`; errors in its handlers are swallowed there.

    **Tools and objects.** `chat_with_tools`, agents and `structured_predict` work as with any function calling LLM. A
    call that is required, and any object, is valid against its JSON schema, whatever the members would rather say; a
    call that is not required is valid once it is begun. Messages carry calls as blocks and in `additional_kwargs`;
    nothing else stands there.

    **Settings.** Engines put their own callback manager on the LLM, so give yours to
    `Settings.callback_manager`. `Settings.tokenizer = llm.tokenizer_fn` makes LlamaIndex count as the members do.

    Args:
        members: Model names, paths, mappings or `MemberConfig`s. Default: the two small models shipped
            with the package.
        **ensemble options: Every other field of `EnsembleConfig`, such as `strategy`; and options of all members, such
            as `dtype`.
        **generation options: Every field of `GenerationParams`, such as `max_new_tokens` (or `max_tokens`) and `stop`.
        context_window: What LlamaIndex may fill. Default: the smallest window that the members' config files
            declare, less 64 tokens for the chat template; 3900 if none is declared.
        is_chat_model: Whether LlamaIndex should send messages. Set it to False for members without a
            chat template: conversations are then written out as plain text.
        is_function_calling_model: Whether LlamaIndex should offer tools. `"auto"`: if every member has a chat template
            and LlamaIndex sends messages; the log tells how members are shown tools, or why not. Otherwise agents and
            routers ask for tools in plain text.
        grammar: What every answer must obey, such as `react_grammar(tools)`.
        on_word: A callable or several; see above. Not part of `to_dict()`.
        timeout: Most seconds that a call may take.
        max_retries: How often a call is tried again if a member fails before the first word.
        max_async_requests: Most async calls that run at the same time; the others wait.
        trace: What `raw` tells of each round: a `"summary"`, `"full"` (or True) for all candidates with their scores,
            or False for nothing. `on_word` hears everything anyway.

    Raises:
        ValidationError: An option is unknown or out of range. A field that is set to such a value later raises
            `ConfigError` at the next call. Both are `ValueError`s.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    if TYPE_CHECKING:  # most options are inherited from where type checkers don't see them

        def __init__(self, **options: Any) -> None: ...

    members: list[Any] | None = Field(default=None, description="Models of the ensemble.")
    stop: str | tuple[str, ...] | None = Field(default=GenerationParams.stop, description="Strings that end it.")
    context_window: int | None = Field(default=None, description="What LlamaIndex may fill.", gt=0)
    is_chat_model: bool = Field(default=True, description="Whether LlamaIndex should send messages.")
    is_function_calling_model: bool | Literal["auto"] = Field(
        default="auto", description="Whether LlamaIndex should offer tools."
    )
    grammar: Grammar | None = Field(default=None, description="What every answer must obey.")
    on_word: Annotated[OnWord | Sequence[OnWord] | None, WithJsonSchema({"type": "string"})] = Field(
        default=None, description="Called with each word.", exclude=True
    )
    trace: TraceLevel = Field(default=DEFAULT, description=DESCRIPTION)

    _given: Ensemble | None = PrivateAttr(default=None)  # by from_ensemble
    _built: Ensemble | None = PrivateAttr(default=None)  # from the fields
    _declared: Declared | None = PrivateAttr(default=None)  # by the members' files
    _runs: Runs = PrivateAttr(default_factory=Runs)

    @field_validator("members", mode="before")
    @classmethod
    def _plain_members(cls, members: Any) -> Any:
        return None if members is None else list(map(_plain, several("members", members, "write members=[...]")))

    def model_post_init(self, context: Any, /) -> None:
        """Check what the fields say together."""
        super().model_post_init(context)
        self._config()
        checked_listeners(self.on_word)

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, **options: Any) -> Self:
        """An LLM on an ensemble that exists already, whose models it uses as they are.

        Args:
            ensemble: Its members and strategy stay as they are; the defaults of generation are taken over.
            options: Fields of this class, but for those that describe the ensemble.

        Raises:
            ConfigError: An option would change the ensemble.
        """
        llm = cls(**as_fields(checked_ensemble(ensemble).config, options))
        llm._given = ensemble
        _ = llm.ensemble
        return llm

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised forms."""
        return "AdaFuseLLM"

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble that the fields describe; its models are loaded at first use."""
        config = self._config()
        if self._given is not None:
            if dataclasses.replace(self._given.config, generation=config.generation) != config:
                raise ConfigError(
                    "the members or the strategy differ from those of the ensemble that this LLM was made from",
                    hint="make an ensemble with these options and call from_ensemble again",
                )
            return self._given
        if self._built is None or self._built.config != config:
            self._built = Ensemble(config)
        return self._built

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex wants to know before it asks. Reads config and tokenizer files once; loads no weights."""
        return LLMMetadata(
            context_window=self.context_window or self._files.room(chat=self.is_chat_model),
            num_output=-1 if self.max_new_tokens is None else self.max_new_tokens,
            is_chat_model=self.is_chat_model,
            is_function_calling_model=self._calls_functions(),
            model_name=f"adafuse({'+'.join(self.ensemble.names)})",
        )

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """For `Settings.tokenizer`: as many entries as the member that needs most tokens for a text.

        The entries are no token ids, each member has its own. The first call reads the tokenizers, no weights.
        """
        return self._tokenize

    def cancel(self) -> int:
        """Stop all calls of this LLM that are running or waiting, on any thread, within a step; how many there were.

        Their consumers get `CancelledError`. One call alone is cancelled by the `threading.Event` that it was given as
        `cancel`.
        """
        return self._runs.cancel()

    def load(self) -> Self:
        """Load all models now; the log tells of each member at level INFO."""
        self.ensemble.load()
        return self

    def warm(self) -> Self:
        """Load all models now and answer short prompts, so that the first request is as fast as later ones."""
        self.ensemble.warm()
        return self

    def close(self) -> None:
        """Free the models that nobody else uses; the next call loads them again."""
        self.ensemble.close()

    # The endpoints. Their arguments are explained in LlamaIndex's base class.

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt."""
        return self._completion(prompt, formatted, kwargs).last()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt, word by word. Nothing runs before the first `next()`; closing stops within a word."""
        return self._completion(prompt, formatted, kwargs).here()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._turn(messages, kwargs).last()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation, word by word. Nothing runs before the first `next()`; closing stops within a word."""
        return self._turn(messages, kwargs).here()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt without holding up the event loop."""
        return await self._completion(prompt, formatted, kwargs).awaited()

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Answer a prompt, word by word, without holding up the event loop."""
        return self._completion(prompt, formatted, kwargs).on_thread()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without holding up the event loop."""
        return await self._turn(messages, kwargs).awaited()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Answer a conversation, word by word, without holding up the event loop."""
        return self._turn(messages, kwargs).on_thread()

    # What they share, in the order in which it happens.

    def _completion(self, prompt: str, formatted: bool, options: dict[str, Any]) -> Call[CompletionResponse]:
        if of_chats := options.keys() & set(_OF_CHATS):
            raise ConfigError(f"got {sorted(of_chats)} for a completion, which holds no calls", hint="use chat()")
        ask = ask_text(self, prompt, formatted=formatted, chat=self.is_chat_model)
        return self._start(ask, options, Chunk.as_completion)

    def _turn(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> Call[ChatResponse]:
        return self._start(ask_messages(self, messages, chat=self.is_chat_model), options, Chunk.as_chat)

    def _start(self, ask: Ask, options: dict[str, Any], form: Callable[[Chunk], Response]) -> Call[Response]:
        listeners = checked_listeners(self.on_word)
        of_call: dict[str, Any] = {
            "timeout": self.timeout,
            **{name: options[name] for name in OF_CALLS if name in options},
        }
        check_options(**of_call)
        given = self._options({name: value for name, value in options.items() if name not in OF_CALLS})
        running: dict[str, Any] = {"runs": self._runs, "retries": self.max_retries, "threads": self.max_async_requests}
        return Call(self.ensemble, ask, given, listeners, form, trace=self.trace, **running, **of_call)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The fields, overridden by a call's options, as `Ensemble.stream` takes them."""
        given = call_options(given, (*_OF_CHATS, "grammar"))
        of_the_stream = {name: given.pop(name) for name in (*_OF_CHATS, "grammar") if name in given}
        return {**vars(self._config().generation.updated(given)), "grammar": self.grammar, **of_the_stream}

    def _config(self) -> EnsembleConfig:
        """The fields as the core's config, checked."""
        given = ensemble_values(self)
        members = default_config().members if self.members is None else self.members
        return EnsembleConfig.from_any({**given, "members": members, "generation": generation_values(self)})

    def _calls_functions(self) -> bool:
        if self.is_function_calling_model != "auto":
            return self.is_function_calling_model
        return self._files.calls_functions(sends_messages=self.is_chat_model and not writes_messages(self))

    @property
    def _files(self) -> Declared:
        """What the members' files declare, read once per set of members."""
        ensemble = self.ensemble
        if self._declared is None or self._declared.members != ensemble.config.members:
            self._declared = Declared.by(ensemble, max_new_tokens=self.max_new_tokens)
        return self._declared

    def _tokenize(self, text: str) -> list[int]:
        return list(range(max(self.ensemble.count_text_tokens(text).values())))

    # Copies share the models and callbacks, but not what is running.

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._runs = Runs()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = self.__copy__()
        copied.members = copy.deepcopy(self.members, memo)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        if self._given is not None:
            self._given.__reduce__()  # refuses ready-made members
        return super(AdaFuseLLM, copy.copy(self)).__getstate__()


def _plain(member: Any) -> str | dict[str, Any]:
    """A member as plain values: what it sets itself."""
    if isinstance(member, str | Path):
        return str(member)
    return MemberConfig.from_any(member).own
