"""`EnsembleModel`: the common base of `AdaFuseLLM` and `ChatAdaFuse`, with the fields, call options and ensemble.

The subclasses define prompts and chunks.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from langchain_core.language_models.base import BaseLanguageModel, LangSmithParams, LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator

from adafuse_core import __version__
from adafuse_core.chat import openai
from adafuse_core.checks import several, strings
from adafuse_core.config import EnsembleConfig, GenerationParams, default_config
from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.events import Event
from adafuse_core.member_config import MemberConfig
from adafuse_integrations.common.adapter_model import CALL_OPTIONS, AdapterModel
from adafuse_integrations.common.deadline import Cancellation, check_call_options
from adafuse_integrations.common.fields import read_arguments
from adafuse_integrations.common.options import (
    ensemble_values,
    fields_from_config,
    generation_values,
    read_call_options,
)
from adafuse_integrations.common.redaction import redacted
from adafuse_integrations.common.running_calls import MakePrompt, answer_events
from adafuse_integrations.common.selection import checked_ensemble, select_members, with_token
from adafuse_integrations.langchain.errors import langchain_errors

MemberLike = str | Path | dict[str, Any] | MemberConfig

OWN_OPTIONS = ("model", *CALL_OPTIONS)  # options of a call that are not generation options

if TYPE_CHECKING:
    LanguageModel = BaseLanguageModel[Any]
else:
    LanguageModel = BaseLanguageModel  # `BaseLanguageModel[Any]` would be another class at run time


class EnsembleModel(AdapterModel, LanguageModel):
    """An ensemble as a LangChain model, without prompt formats and chunks."""

    model: str | None = Field(default=None, description="Names of the members that answer, joined by '+'.")
    members: list[MemberLike] = Field(
        default_factory=lambda: list[MemberLike](default_config().members),
        description="The language models of the ensemble.",
    )
    stop: list[str] = Field(
        default_factory=lambda: list(GenerationParams.stop), description="Strings that end the answer."
    )
    api_key: SecretStr | None = Field(default=None, description="Hugging Face token, for gated models.")
    ensemble: Ensemble | None = Field(default=None, exclude=True, repr=False, description="A ready-made ensemble.")

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    _cancel: threading.Event | None = PrivateAttr(default=None)  # the caller's event, in the copy made for one call
    _built: Ensemble | None = PrivateAttr(default=None)  # built from the fields at the first call
    _cache_id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)  # identifies ready-made members in caches

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, **options: Any) -> Self:
        """Make a model that uses an existing ensemble and its loaded models.

        Args:
            ensemble: The ensemble. Several models may share it.
            options: Fields of this class whose values differ from the ensemble's config.
        """
        return cls(ensemble=checked_ensemble(ensemble), **options)

    @property
    def model_name(self) -> str:
        """Names of the members that answer, joined by `+`."""
        return "+".join(member.label for member in self._config().members)

    def cancel(self, run: str | uuid.UUID | None = None) -> int:
        """Cancel running and waiting calls of this object, on any thread. Each call ends within one step.

        Cancelled calls raise `CancelledError`. The calls of runnables that `bind`, `bind_tools` and similar methods
        made from this object are included. Copies have their own calls.

        Args:
            run: The `run_id` of a call or one of its `tags`, as in a `RunnableConfig`; None cancels all calls. The
                tags of a chain or graph also apply to the calls inside it.

        Returns:
            Number of cancelled calls.
        """
        return self._running_calls.cancel(None if run is None else str(run))

    # --- constructor arguments ---

    @model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, values: Any) -> Any:
        """Convert the arguments, and fill in fields from `ensemble` or `model`."""
        values = read_arguments(cls, values)
        if isinstance(values.get("model"), Path):
            values["model"] = str(values["model"])
        if isinstance(ensemble := values.get("ensemble"), Ensemble):
            values = fields_from_config(ensemble.config, values)
        elif isinstance(values.get("model"), str) and "members" not in values:
            values["members"] = values["model"].split("+")
        return values

    @field_validator("members", mode="before")
    @classmethod
    def _read_members(cls, members: Any) -> list[Any]:
        return [MemberConfig.from_any(member) for member in several("members", members, "write members=[...]")]

    @field_validator("stop", mode="before")
    @classmethod
    def _read_stop(cls, stop: Any) -> list[str]:
        return list(strings("stop", stop))

    @model_validator(mode="after")
    def _check_ensemble(self) -> Self:
        """Check the fields together, before any model is loaded."""
        dataclasses.replace(self._config(), generation=self._params())
        if self.ensemble is not None and self.ensemble.config.members != self._full_config().members:
            raise ConfigError(
                "got a ready-made ensemble and other members, or other options of members",
                hint="give members and their options to the ensemble",
            )
        if self.ensemble is not None and self.api_key is not None:
            raise ConfigError("got an api_key for a ready-made ensemble", hint="give it to the ensemble's members")
        self._add_version("adafuse", __version__)
        return self

    # --- batches: a single text is refused, because LangChain would read it as a list of characters ---

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Invoke each input as a separate call, at most `max_concurrency` at a time; results keep the inputs' order."""
        return Runnable.batch(self, _listed(inputs), config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Async form of `batch`."""
        return await Runnable.abatch(self, _listed(inputs), config, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(self, inputs: Sequence[LanguageModelInput], *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As `batch`, in order of completion."""
        return super().batch_as_completed(_listed(inputs), *args, **kwargs)

    def abatch_as_completed(
        self, inputs: Sequence[LanguageModelInput], *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Async form of `batch_as_completed`."""
        return super().abatch_as_completed(_listed(inputs), *args, **kwargs)

    # --- options of a call ---

    def _options(self, stop: list[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """The generation fields, overridden by the options of a call."""
        stop_option = {} if stop is None else {"stop": stop}
        return {**generation_values(self), **stop_option, **openai.generation_options(options)}

    def _params(self, stop: list[str] | None = None, options: Mapping[str, Any] | None = None) -> GenerationParams:
        """As `_options`, checked; unknown options raise `ConfigError`."""
        return GenerationParams().updated(self._options(stop, options or {}))

    def _copy_for_call(self, stop: list[str] | None, options: Mapping[str, Any]) -> Self:
        """A copy whose fields are overridden by the options of a call."""
        read_call_options(options, OWN_OPTIONS)
        own = {name: options[name] for name in OWN_OPTIONS if name in options}
        params = self._params(stop, {name: value for name, value in options.items() if name not in OWN_OPTIONS})
        cancel = own.pop("cancel", self._cancel)
        check_call_options(own.get("timeout"), cancel)
        self._get_ensemble()  # built here, so that this object and not the copy keeps the models in memory
        call = self.model_copy(update={**own, **dataclasses.asdict(params), "stop": list(params.stop)})
        call._config()  # raises for unknown members
        call._running_calls, call._cancel = self._running_calls, cancel
        return call

    # --- the ensemble ---

    @contextmanager
    def _track(self, names: Iterable[Any] = ()) -> Iterator[Cancellation]:
        """Register a call, start its timeout, and translate its errors; `cancel` finds the call by `names`."""
        with langchain_errors(), self._running_calls.track(self.timeout, self._cancel, map(str, names)) as cancel:
            yield cancel

    def _events(self, make_prompt: MakePrompt, cancel: Cancellation, **options: Any) -> Generator[Event]:
        """The events of an answer; `options` are tools and grammar, as in `Ensemble.stream`."""
        params = dataclasses.asdict(self._params())
        return answer_events(self._get_ensemble(), make_prompt, cancel, self.max_retries, **options, **params)

    def _full_config(self) -> EnsembleConfig:
        """The fields as a config of all members, without the generation options, which each call supplies."""
        return EnsembleConfig.from_any(ensemble_values(self))

    def _config(self) -> EnsembleConfig:
        """The config of the members that answer, with the access token that loads them."""
        config = self._full_config()
        token = None if self.api_key is None else self.api_key.get_secret_value()
        members = [with_token(member, token) for member in select_members(config.members, self.model)]
        return dataclasses.replace(config, members=tuple(members))

    def _get_ensemble(self) -> Ensemble:
        """The ensemble that the fields describe: the ready-made one, the one built before, or a new one."""
        config, given = self._config(), self.ensemble
        for ensemble in (given, self._built):
            if ensemble is not None and dataclasses.replace(ensemble.config, generation=config.generation) == config:
                return ensemble
        members = None
        if given is not None and given.ready_made:
            by_name = {member.name: member for member in given.members}
            members = [by_name[member.label] for member in config.members]
        self._built = Ensemble(config, members=members)
        return self._built

    # --- LangChain's hooks ---

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All settings that an answer depends on, as plain JSON without secrets. LangChain's cache key."""
        params = {**self._config().to_dict(), **generation_values(self), "trace": self.trace}
        del params["generation"]
        if self.ensemble is not None and self.ensemble.ready_made:
            params["ensemble"] = self._cache_id  # ready-made members can differ in spite of equal names and settings
        return cast(dict[str, Any], redacted(params))

    def _tracing_params(self, stop: list[str] | None, options: Mapping[str, Any]) -> LangSmithParams:
        """The metadata of a call for tracers such as LangSmith, without the type of model."""
        settings = self._options(stop, options)
        params = LangSmithParams(
            ls_provider="adafuse",
            ls_model_name=options.get("model") or self.model_name,
            ls_temperature=settings["temperature"],
        )
        if settings["max_new_tokens"] is not None:
            params["ls_max_tokens"] = settings["max_new_tokens"]
        if settings["stop"]:
            params["ls_stop"] = list(strings("stop", settings["stop"]))
        return params

    def get_num_tokens(self, text: str) -> int:
        """Length of a text in tokens, without a chat template: the largest count among the members' tokenizers."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return max(self._get_ensemble().count_text_tokens(text).values())

    def get_token_ids(self, text: str) -> list[int]:
        """The positions 0, 1, 2, ... of the tokens that `get_num_tokens` counts.

        The members have different vocabularies and therefore no common token ids. Use positions to count and cut
        tokens, not to decode them.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(range(self.get_num_tokens(text)))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        params = self._identifying_params
        yield "members", [member["name"] for member in params.pop("members")]
        yield from ((name, value) for name, value in params.items() if name != "ensemble")

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for ensemble in (self.ensemble, self._built):
            memo[id(ensemble)] = ensemble  # copies share the loaded models
        return super().__deepcopy__(memo)


def _listed(inputs: Any) -> list[Any]:
    return several("inputs", inputs, "invoke() answers a single prompt")
