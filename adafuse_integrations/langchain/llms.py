"""`AdaFuseLLM`: an ensemble as a LangChain LLM, text in and text out.

A thin shell: it translates arguments, chunks and errors, and joins the core at `Ensemble.stream`.
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
from adafuse_integrations.langchain.chunks import chunks, folded, result
from adafuse_integrations.langchain.messages import check_text
from adafuse_integrations.langchain.model import EnsembleModel
from adafuse_integrations.langchain.named_runs import names_of

_LANGCHAIN = ("tags", "metadata", "run_name", "run_id")  # arguments of a call that are not ours


class AdaFuseLLM(EnsembleModel, BaseLLM):
    """Several open LLMs that decode together, word by word, and answer as one.

    Models are loaded at the first call and shared by the whole process: copies, `bind`, pickles and
    `configurable_fields` never load them again.

    Setup:
        `pip install "adafuse[langchain]"`. Without arguments it runs the two small models that ship with it.

    Key init args:
        members: Model names, paths, mappings of `MemberConfig` fields, or `MemberConfig`s.
        model: Names of the members that answer, joined by `+`; all by default. Without `members` it names the
            models to load.
        **ensemble options: Every other field of `EnsembleConfig`, such as `strategy`; and options of all members, such
            as `dtype`.
        **generation options: Every field of `GenerationParams`, such as `max_new_tokens` (or `max_tokens`) and `stop`.
        prompt_format: `"chat"` sends the prompt as a user message through each member's chat template,
            `"raw"` lets the members continue it as it stands, `"auto"` is chat if every member has a template.
        system: System message that goes before the prompt in chat format.
        trace: What answers tell of each round: a `"summary"`, `"full"` (or True) for all candidates with their scores,
            or False for nothing.
        timeout: Most seconds that a call may take, waiting included. Also an option of a call, as is `cancel`: a
            `threading.Event` that ends it within a step.
        max_retries: How often a call is tried again if a member fails before the first word.
        max_async_requests: Most async calls that run at the same time; the others wait.
        api_key: Hugging Face token for gated models, where a member's `model_kwargs` has none.
        ensemble: A ready-made `Ensemble`; what is not set here is read from its config.

    Instantiate:
        ```python
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

    Trace and usage:
        `llm.generate(["Name a river."]).generations[0][0].generation_info` has `finish_reason`, `stop`,
        `usage` per member, and in `["adafuse"]["words"]` who proposed each word; with `trace="full"`,
        `["adafuse"]["rounds"]` has all candidates and scores in its place.

    Raises:
        ValidationError: An argument is unknown or out of range.
        ConfigError: At a call, for an unknown option or one out of range.
    """

    prompt_format: Literal["auto", "chat", "raw"] = Field(default="auto", description="How prompts are shown.")
    system: str | None = Field(default=None, description="System message, in chat format.")

    model_config = EnsembleModel.model_config

    if TYPE_CHECKING:  # most options are inherited from where type checkers don't see them

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
        llm, rest = self._folded(stop, kwargs)
        return super(AdaFuseLLM, llm).generate(_texts(prompts), llm.stop or None, callbacks, **rest)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """As in `BaseLLM`. Call options become fields of a copy, so that they are part of the cache key."""
        llm, rest = self._folded(stop, kwargs)
        return await super(AdaFuseLLM, llm).agenerate(_texts(prompts), llm.stop or None, callbacks, **rest)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        self._expect_folded(stop, kwargs)
        reporter = run_manager if len(prompts) == 1 else None  # it belongs to the first prompt alone
        with self._begun(names_of(run_manager)) as cancel:
            answers = [folded(list(self._told(prompt, cancel, reporter))) for prompt in prompts]
        return result(answers, self.model_name)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        self._expect_folded(stop, kwargs)
        reporter = run_manager if len(prompts) == 1 else None
        with self._begun(names_of(run_manager)) as cancel:
            answers = [folded([chunk async for chunk in self._atold(prompt, cancel, reporter)]) for prompt in prompts]
        return result(answers, self.model_name)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call = self._with_options(stop, kwargs)
        with call._begun(names_of(run_manager)) as cancel:
            yield from call._told(prompt, cancel, run_manager)

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call = self._with_options(stop, kwargs)
        with call._begun(names_of(run_manager)) as cancel:
            async with aclosing(call._atold(prompt, cancel, run_manager)) as pieces:
                async for chunk in pieces:
                    yield chunk

    def _told(
        self, prompt: str, cancel: Cancellation, reporter: CallbackManagerForLLMRun | None
    ) -> Generator[GenerationChunk]:
        """The chunks of an answer by the fields; callbacks hear of each."""
        with closing(self._chunks(prompt, cancel)) as pieces:
            for chunk in pieces:
                if reporter is not None:
                    reporter.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _atold(
        self, prompt: str, cancel: Cancellation, reporter: AsyncCallbackManagerForLLMRun | None
    ) -> AsyncGenerator[GenerationChunk]:
        """As `_told`, on a thread of the worker."""
        start = partial(self._chunks, prompt, cancel)
        async with aclosing(self._runs.on_thread(start, cancel, self.max_async_requests)) as pieces:
            async for chunk in pieces:
                if reporter is not None:
                    await reporter.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunks(self, prompt: str, cancel: Cancellation) -> Generator[GenerationChunk]:
        with closing(self._events(lambda ensemble: self._formatted(ensemble, prompt), cancel)) as events:
            yield from chunks(events, trace=self.trace, logprobs=self.logprobs)

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        """As in `BaseLLM`, but images and the like are refused: the text that messages become would leave them out."""
        prompt = super()._convert_input(model_input)
        check_text(prompt.to_messages())
        return prompt

    def _formatted(self, ensemble: Ensemble, prompt: str) -> PromptLike:
        """The prompt as it is, or as messages."""
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

    def _folded(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy with a call's options as its fields, and the arguments that are LangChain's own."""
        rest = {name: value for name, value in kwargs.items() if name in _LANGCHAIN}
        options = {name: value for name, value in kwargs.items() if name not in _LANGCHAIN}
        return self._with_options(stop, options), rest

    def _expect_folded(self, stop: list[str] | None, options: dict[str, Any]) -> None:
        """`generate` made fields of them."""
        assert not options, options
        assert (stop or []) == self.stop, stop

    # --- what LangChain asks ---

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
        """Length of the prompt that these messages become, chat template included, as of `get_num_tokens`."""
        if tools:
            raise PromptError("an LLM takes no tools", hint="use a chat model")
        given = several("messages", messages, "write [message]; get_num_tokens() counts a text", PromptError)
        text = get_buffer_string(given)
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        ensemble = self._running()
        return max(ensemble.count_tokens(self._formatted(ensemble, text)).values()) if text.strip() else 0


def _texts(prompts: Any) -> list[str]:
    texts = several("prompts", prompts, "invoke() answers a single prompt", PromptError)
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(
                f"got {text!r} as a prompt, expected text", hint="invoke() and batch() take messages, too"
            )
    return texts
