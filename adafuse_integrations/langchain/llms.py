"""`AdaFuseLLM`: an ensemble as a LangChain LLM, text in and text out.

A thin shell: it translates arguments, chunks and errors, and joins the core at `Ensemble.stream`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import uuid
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from adafuse_core import __version__
from adafuse_core.config import EnsembleConfig, GenerationParams, MemberConfig
from adafuse_core.ensemble import Ensemble, PromptLike, default_config
from adafuse_core.errors import ConfigError, PromptError
from adafuse_integrations.langchain.chunks import chunks, folded, result
from adafuse_integrations.langchain.errors import shared_errors
from adafuse_integrations.worker import Worker

MemberLike = str | Path | dict[str, Any] | MemberConfig

_DEFAULTS = default_config()
_GENERATION = tuple(field.name for field in dataclasses.fields(GenerationParams))
_ENSEMBLE = tuple(field.name for field in dataclasses.fields(EnsembleConfig) if field.name != "generation")
_LANGCHAIN = ("tags", "metadata", "run_name", "run_id")  # arguments of a call that are not ours
_SECRET_ENDINGS = ("token", "key", "secret", "password")


class AdaFuseLLM(BaseLLM):
    """Several open LLMs that decode together, word by word, and answer as one.

    Models are loaded at the first call and shared by the whole process: copies, `bind`, pickles and
    `configurable_fields` never load them again.

    Setup:
        `pip install "adafuse[langchain]"`. Without arguments it runs the two small models that ship with it.

    Key init args:
        members: Model names, paths, mappings of `MemberConfig` fields, or `MemberConfig`s.
        strategy, tau, max_words, branches, max_word_tokens, member, speculation: As in `EnsembleConfig`.
        max_new_tokens (or `max_tokens`), stop, temperature, seed: As in `GenerationParams`.
        prompt_format: `"chat"` sends the prompt as a user message through each member's chat template,
            `"raw"` lets the members continue it as it stands, `"auto"` is chat if every member has a template.
        system: System message that goes before the prompt in chat format.
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
        `usage` per member, and in `["adafuse"]["rounds"]` who proposed each word and how it was scored.

    Raises:
        ValidationError: An argument is unknown or out of range.
        ConfigError: At a call, for an unknown option or one out of range.
    """

    members: list[MemberLike] = Field(
        default_factory=lambda: list[MemberLike](_DEFAULTS.members), description="The language models of the ensemble."
    )
    strategy: str = Field(default=_DEFAULTS.strategy, description="How the members are fused.")
    tau: float = Field(default=_DEFAULTS.tau, description="Confidence threshold (τ).")
    max_words: int = Field(default=_DEFAULTS.max_words, description="Most words drafted per round (M).")
    branches: int = Field(default=_DEFAULTS.branches, description="First tokens tried where a member is unsure (B).")
    max_word_tokens: int = Field(default=_DEFAULTS.max_word_tokens, description="Most tokens of one word.")
    member: str | None = Field(default=_DEFAULTS.member, description="The member that decodes if strategy='single'.")
    speculation: str = Field(default=_DEFAULTS.speculation, description="How members guess ahead; speed only.")

    max_new_tokens: int | None = Field(
        default=_DEFAULTS.generation.max_new_tokens, description="Longest answer, in tokens of the first member."
    )
    stop: list[str] = Field(
        default_factory=lambda: list(_DEFAULTS.generation.stop), description="Strings that end the answer."
    )
    temperature: float = Field(
        default=_DEFAULTS.generation.temperature, description="0 commits the best candidate of a round, above draws."
    )
    seed: int | None = Field(default=_DEFAULTS.generation.seed, description="Makes the draws repeatable.")

    prompt_format: Literal["auto", "chat", "raw"] = Field(default="auto", description="How prompts are shown.")
    system: str | None = Field(default=None, description="System message, in chat format.")
    ensemble: Ensemble | None = Field(default=None, exclude=True, repr=False, description="A ready-made ensemble.")

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    _worker: Worker = PrivateAttr(default_factory=Worker)
    _built: Ensemble | None = PrivateAttr(default=None)  # from the fields, at the first call
    _key: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)  # of ready-made members, in caches

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, **options: Any) -> Self:
        """An LLM on a ready-made ensemble.

        Args:
            ensemble: It may be shared with others.
            options: Fields of this class that differ from the ensemble's config.
        """
        return cls(ensemble=ensemble, **options)

    @model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, values: Any) -> Any:
        """Take `max_tokens` for `max_new_tokens`, and what is not set from a ready-made ensemble."""
        values = _renamed(values)
        if isinstance(ensemble := values.get("ensemble"), Ensemble):
            config, generation = ensemble.config, ensemble.config.generation
            given = {name: getattr(config, name) for name in _ENSEMBLE}
            given |= {name: getattr(generation, name) for name in _GENERATION}
            values = {**given, **values}
        return values

    @field_validator("members")
    @classmethod
    def _read_members(cls, members: list[Any]) -> list[Any]:
        return [MemberConfig.from_any(member) for member in members]

    @model_validator(mode="after")
    def _check_adafuse(self) -> Self:
        """Refuse what no call could run with, before anything is loaded."""
        config = dataclasses.replace(self._config(), generation=self._params())
        if self.ensemble is not None and self.ensemble.config.members != config.members:
            raise ConfigError("both a ready-made ensemble and other members were given", hint="give one of them")
        if self.system is not None and self.prompt_format == "raw":
            raise ConfigError("got a system message with prompt_format='raw'", hint="write it into the prompt")
        self._add_version("adafuse", __version__)
        return self

    # --- generation ---

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """As in `BaseLLM`. Call options become fields of a copy, so that they are part of the cache key."""
        llm, rest = self._with_options(stop, kwargs)
        return super(AdaFuseLLM, llm).generate(prompts, llm.stop or None, callbacks, **rest)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """As in `BaseLLM`. Call options become fields of a copy, so that they are part of the cache key."""
        llm, rest = self._with_options(stop, kwargs)
        return await super(AdaFuseLLM, llm).agenerate(prompts, llm.stop or None, callbacks, **rest)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """As many invokes, in order, at most `max_concurrency` at a time; each fails and reports on its own."""
        return Runnable.batch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """As `batch`."""
        return await Runnable.abatch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        reporter = run_manager if len(prompts) == 1 else None  # it belongs to the first prompt alone
        answers = [folded(list(self._stream(prompt, stop, reporter, **kwargs))) for prompt in prompts]
        return result(answers, self._model_name)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        reporter = run_manager if len(prompts) == 1 else None
        answers = [
            folded([chunk async for chunk in self._astream(prompt, stop, reporter, **kwargs)]) for prompt in prompts
        ]
        return result(answers, self._model_name)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with closing(self._chunks(prompt, stop, kwargs)) as pieces:
            for chunk in pieces:
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async with aclosing(self._worker.iterate(partial(self._chunks, prompt, stop, kwargs))) as pieces:
            async for chunk in pieces:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunks(
        self, prompt: str, stop: list[str] | None, options: Mapping[str, Any], cancel: threading.Event | None = None
    ) -> Generator[GenerationChunk]:
        """The one way to the core. Nothing runs before the first `next()`."""
        params = dataclasses.asdict(self._params(stop, options))
        with shared_errors():
            ensemble = self._running()
            events = ensemble.stream(self._formatted(ensemble, prompt), cancel=cancel, **params)
            with closing(cast(Any, events)):
                yield from chunks(events)

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

    def close(self) -> None:
        """Free the models that nobody else uses; the next call loads them again."""
        self._running().close()

    # --- options and ensemble ---

    def _options(self, stop: list[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """The generation fields with what a call changes."""
        fields = {name: getattr(self, name) for name in _GENERATION}
        return {**fields, **({} if stop is None else {"stop": stop}), **_renamed(options)}

    def _params(self, stop: list[str] | None = None, options: Mapping[str, Any] | None = None) -> GenerationParams:
        """The same, checked; unknown options raise `ConfigError`."""
        return GenerationParams().updated(self._options(stop, options or {}))

    def _with_options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy with a call's options as its fields, and the arguments that are LangChain's own."""
        rest = {name: value for name, value in kwargs.items() if name in _LANGCHAIN}
        options = {name: value for name, value in kwargs.items() if name not in _LANGCHAIN}
        params = dataclasses.asdict(self._params(stop, options))
        self._running()  # so that this object, not the copy, holds the ensemble and keeps its models in memory
        return self.model_copy(update={**params, "stop": list(params["stop"])}), rest

    def _config(self) -> EnsembleConfig:
        """The fields as a config; those of generation go with each call."""
        return EnsembleConfig.from_any({name: getattr(self, name) for name in _ENSEMBLE})

    def _running(self) -> Ensemble:
        """The ensemble that the fields describe: the ready-made one, the one built before, or a new one."""
        config = self._config()
        for ensemble in (self.ensemble, self._built):
            if ensemble is not None and dataclasses.replace(ensemble.config, generation=config.generation) == config:
                return ensemble
        given = self.ensemble
        self._built = Ensemble(config, members=given.members if given is not None and given.ready_made else None)
        return self._built

    # --- what LangChain asks ---

    @property
    def _llm_type(self) -> str:
        return "adafuse"

    @property
    def _model_name(self) -> str:
        return "+".join(member.label for member in self._config().members)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, in plain JSON and without secrets."""
        names = (*_ENSEMBLE, *_GENERATION, "prompt_format", "system")
        params = {name: getattr(self, name) for name in names}
        params["members"] = [dataclasses.asdict(member) for member in self._config().members]
        if self.ensemble is not None and self.ensemble.ready_made:
            params["ensemble"] = self._key  # names and settings don't tell ready-made members apart
        return cast(dict[str, Any], _plain(params))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = self._options(stop, kwargs)
        params = LangSmithParams(
            ls_provider="adafuse",
            ls_model_type="llm",
            ls_model_name=self._model_name,
            ls_temperature=options["temperature"],
        )
        if options["max_new_tokens"] is not None:
            params["ls_max_tokens"] = options["max_new_tokens"]
        if options["stop"]:
            params["ls_stop"] = list(options["stop"])
        return params

    def get_num_tokens(self, text: str) -> int:
        """Length of a bare text in tokens of the member that needs the most."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return max(self._running().count_text_tokens(text).values())

    def get_token_ids(self, text: str) -> list[int]:
        """One number per token of `get_num_tokens`.

        The members' vocabularies differ, so there are no ids that are right for all of them. These
        are the tokens' positions: good for counting and cutting, not for decoding.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(range(self.get_num_tokens(text)))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Length of the prompt that these messages become, chat template included, as of `get_num_tokens`."""
        if tools:
            raise PromptError("an LLM takes no tools", hint="use a chat model")
        text = get_buffer_string(messages)
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        ensemble = self._running()
        return max(ensemble.count_tokens(self._formatted(ensemble, text)).values())

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        params = self._identifying_params
        yield "members", [member["name"] for member in params.pop("members")]
        yield from ((name, value) for name, value in params.items() if name != "ensemble")

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for ensemble in (self.ensemble, self._built):
            memo[id(ensemble)] = ensemble  # models are shared, never copied
        return super().__deepcopy__(memo)


def _renamed(options: Any) -> dict[str, Any]:
    """`max_tokens` is LangChain's usual name for `max_new_tokens`."""
    renamed: dict[str, Any] = dict(options)
    if "max_tokens" in renamed:
        if "max_new_tokens" in renamed:
            raise ConfigError("got both max_tokens and max_new_tokens", hint="they mean the same: give one of them")
        renamed["max_new_tokens"] = renamed.pop("max_tokens")
    return renamed


def _plain(value: Any, name: str = "") -> Any:
    """JSON values; what looks like a secret is told apart by its hash alone."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, str(key).lower()) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, str) and name.endswith(_SECRET_ENDINGS):
        return f"hidden-{hashlib.sha256(value.encode()).hexdigest()[:8]}"
    return value if value is None or isinstance(value, str | int | float) else repr(value)
