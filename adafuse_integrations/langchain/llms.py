"""`AdaFuseLLM`: an ensemble as a LangChain LLM, text in and text out.

The class only converts arguments, chunks and errors. The core's `Ensemble.stream` generates the answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.prompt_values import PromptValue
from pydantic import Field, model_validator

from adafuse_core.checks import several
from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError, PromptError
from adafuse_core.request import PromptLike
from adafuse_integrations.common.deadline import Cancellation
from adafuse_integrations.langchain.messages import check_text
from adafuse_integrations.langchain.model import EnsembleModel
from adafuse_integrations.langchain.run_identifiers import run_identifiers
from adafuse_integrations.langchain.text_chunks import llm_result, merge_chunks, text_chunks

_LANGCHAIN_OPTIONS = ("tags", "metadata", "run_name", "run_id")  # arguments of a call that LangChain reads itself


class AdaFuseLLM(EnsembleModel, BaseLLM):
    """LangChain LLM in which several open language models generate one text together, word by word.

    The first call loads the models. All objects in a process share the loaded models: copies, `bind`, pickles and
    `configurable_fields` never load a model twice.

    Setup:
        `pip install "adafuse[langchain]"`. Without arguments, `AdaFuseLLM()` runs the two small models of the package.

    Key init args:
        members: The models: names, paths, `MemberConfig` objects, or mappings of `MemberConfig` fields.
        model: Names of the members that answer, joined by `+`. Default: all members. Without `members`, the names of
            the models to load. Also an option of a call.
        **ensemble options: Every other field of `EnsembleConfig`, such as `strategy`, and every field of
            `MemberConfig` that can apply to all members, such as `dtype`.
        **generation options: Every field of `GenerationParams`, such as `max_new_tokens` (or `max_tokens`) and `stop`.
            Also options of a call.
        prompt_format: `"chat"` sends the prompt as a user message through each member's chat template, `"raw"`
            continues the prompt without a template, and `"auto"` (default) means chat if every member has a template.
        system: System message before the prompt, in chat format.
        timeout: Time limit of a call in seconds, including the time that it waits. Also an option of a call.
        cancel: Only an option of a call: a `threading.Event` that ends the call within a step once it is set.
        max_retries: How often a call is retried if a member fails before the first word.
        max_async_requests: Maximum number of concurrent async calls; further calls wait.
        trace: What `generation_info` reports of each round: a `"summary"` (default), `"full"` (or True) for all
            candidates with their scores, or False for nothing.
        api_key: Hugging Face token for gated models. A token in a member's `model_kwargs` takes precedence.
        ensemble: A ready-made `Ensemble`. Its config supplies all options that are not given here.

    Instantiate:
        ```python
        from adafuse_integrations.langchain import AdaFuseLLM

        llm = AdaFuseLLM(
            members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"],
            max_tokens=128,
        )
        ```

    Invoke and stream:
        ```python
        llm.invoke("Name a river.", stop=["\\n"])
        for text in llm.stream("Name a river."):
            print(text, end="")
        await llm.ainvoke("Name a river.", max_tokens=8)
        ```

    Usage and trace:
        ```python
        llm.generate(["Name a river."]).generations[0][0].generation_info
        ```
        contains `finish_reason` (`"stop"` or `"length"`), `stop` (the stop string that ended the answer, or None),
        `usage` (tokens per member), and in `["adafuse"]["words"]` the members that proposed each word. With
        `trace="full"`, `["adafuse"]["rounds"]` contains all candidates with their scores instead.

    Raises:
        ValidationError: An argument of the constructor is unknown or out of range.
        ConfigError: An option of a call is unknown or out of range.
        ContextOverflowError, ModelNotFoundError, ModelTimeoutError: Subclasses of LangChain's errors of these names.
    """

    prompt_format: Literal["auto", "chat", "raw"] = Field(
        default="auto",
        description="'chat' sends a prompt as a user message through each member's chat template, 'raw' continues the "
        "prompt without a template, 'auto' means chat if every member has a template.",
    )
    system: str | None = Field(default=None, description="System message before the prompt, in chat format.")

    model_config = EnsembleModel.model_config

    if TYPE_CHECKING:  # type checkers don't see the inherited options, which are created at run time

        def __init__(self, **options: Any) -> None: ...

    @model_validator(mode="after")
    def _check_prompt_format(self) -> Self:
        if self.system is not None and self.prompt_format == "raw":
            raise ConfigError("got a system message with prompt_format='raw'", hint="write it into the prompt")
        return self

    # --- generation ---

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """As in `BaseLLM`. Call options become fields of a copy, so that they are part of the cache key."""
        llm, rest = self._split_call(stop, kwargs)
        return super(AdaFuseLLM, llm).generate(_texts(prompts), llm.stop or None, callbacks, **rest)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Async form of `generate`."""
        llm, rest = self._split_call(stop, kwargs)
        return await super(AdaFuseLLM, llm).agenerate(_texts(prompts), llm.stop or None, callbacks, **rest)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        self._assert_no_options(stop, kwargs)
        reporter = run_manager if len(prompts) == 1 else None  # the manager belongs to the first prompt only
        with self._track(run_identifiers(run_manager)) as cancel:
            answers = [merge_chunks(list(self._reported(prompt, cancel, reporter))) for prompt in prompts]
        return llm_result(answers, self.model_name)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        self._assert_no_options(stop, kwargs)
        reporter = run_manager if len(prompts) == 1 else None
        with self._track(run_identifiers(run_manager)) as cancel:
            answers = [
                merge_chunks([chunk async for chunk in self._areported(prompt, cancel, reporter)]) for prompt in prompts
            ]
        return llm_result(answers, self.model_name)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call = self._copy_for_call(stop, kwargs)
        with call._track(run_identifiers(run_manager)) as cancel:
            yield from call._reported(prompt, cancel, run_manager)

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call = self._copy_for_call(stop, kwargs)
        with call._track(run_identifiers(run_manager)) as cancel:
            async with aclosing(call._areported(prompt, cancel, run_manager)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _reported(
        self, prompt: str, cancel: Cancellation, reporter: CallbackManagerForLLMRun | None
    ) -> Generator[GenerationChunk]:
        """Yield the chunks of an answer, after reporting each to callbacks."""
        with closing(self._chunks(prompt, cancel)) as chunks:
            for chunk in chunks:
                if reporter is not None:
                    reporter.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _areported(
        self, prompt: str, cancel: Cancellation, reporter: AsyncCallbackManagerForLLMRun | None
    ) -> AsyncGenerator[GenerationChunk]:
        """As `_reported`, generated on a worker thread."""
        start = partial(self._chunks, prompt, cancel)
        async with aclosing(self._running_calls.on_thread(start, cancel, self.max_async_requests)) as chunks:
            async for chunk in chunks:
                if reporter is not None:
                    await reporter.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunks(self, prompt: str, cancel: Cancellation) -> Generator[GenerationChunk]:
        with closing(self._events(lambda ensemble: self._formatted(ensemble, prompt), cancel)) as events:
            yield from text_chunks(events, trace=self.trace, logprobs=self.logprobs)

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        """As in `BaseLLM`, which silently drops images and similar blocks of messages; here they raise an error."""
        prompt = super()._convert_input(model_input)
        check_text(prompt.to_messages())
        return prompt

    def _formatted(self, ensemble: Ensemble, prompt: str) -> PromptLike:
        """The prompt in the form that `prompt_format` selects: text, or messages."""
        chat = self.prompt_format == "chat" or (self.prompt_format == "auto" and ensemble.supports_chat())
        if not chat:
            if self.system is not None:
                raise ConfigError(
                    "got a system message, but a member has no chat template",
                    hint="write it into the prompt, or set MemberConfig(chat_template=...)",
                )
            return prompt
        if not prompt.strip():
            raise PromptError("the prompt is empty", hint="give some text")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]

    def _split_call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy whose fields have the values of the call options, and the arguments that LangChain reads itself."""
        rest = {name: value for name, value in kwargs.items() if name in _LANGCHAIN_OPTIONS}
        options = {name: value for name, value in kwargs.items() if name not in _LANGCHAIN_OPTIONS}
        return self._copy_for_call(stop, options), rest

    def _assert_no_options(self, stop: list[str] | None, options: dict[str, Any]) -> None:
        """Call options can't arrive here, because `generate` turned them into fields."""
        assert not options, options
        assert (stop or []) == self.stop, stop

    # --- LangChain's hooks ---

    @property
    def _llm_type(self) -> str:
        return "adafuse"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "prompt_format": self.prompt_format, "system": self.system}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._tracing_params(stop, kwargs)
        params["ls_model_type"] = "llm"
        return params

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Length in tokens of the prompt that LangChain makes of messages, including the members' chat templates.

        The result is the largest count among the members.
        """
        if tools:
            raise PromptError("an LLM takes no tools", hint="use a chat model")
        given = several("messages", messages, "write [message]; get_num_tokens() counts a text", PromptError)
        text = get_buffer_string(given)
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        ensemble = self._get_ensemble()
        return max(ensemble.count_tokens(self._formatted(ensemble, text)).values()) if text.strip() else 0


def _texts(prompts: Any) -> list[str]:
    texts = several("prompts", prompts, "invoke() answers a single prompt", PromptError)
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(
                f"got {text!r} as a prompt, expected text", hint="invoke() and batch() take messages, too"
            )
    return texts
