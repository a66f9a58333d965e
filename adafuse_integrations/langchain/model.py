"""`EnsembleModel`: what the LLM and the chat model have in common. Fields, options of a call, the ensemble behind.

How prompts are written and what chunks look like is theirs.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
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
from adafuse_core.request import PromptLike
from adafuse_integrations.common.deadline import Cancellation, check_options
from adafuse_integrations.common.fields import OptionFields, read_arguments
from adafuse_integrations.common.identity import plain
from adafuse_integrations.common.options import as_fields, call_options, ensemble_values, generation_values
from adafuse_integrations.common.runs import OF_CALLS, CallFields, Runs, events
from adafuse_integrations.common.selection import checked_ensemble, selected, with_token
from adafuse_integrations.common.trace import DEFAULT, DESCRIPTION, TraceLevel
from adafuse_integrations.langchain.errors import shared_errors

MemberLike = str | Path | dict[str, Any] | MemberConfig

OWN_OPTIONS = ("model", *OF_CALLS)  # options of a call that are no generation options

if TYPE_CHECKING:
    LanguageModel = BaseLanguageModel[Any]
else:
    LanguageModel = BaseLanguageModel  # as an argument of its own, `Any` would make another class


class EnsembleModel(OptionFields, CallFields, LanguageModel):
    """An ensemble in the form of a LangChain model: what needs no prompt and no chunk."""

    model: str | None = Field(default=None, description="Names of the members that answer, joined by '+'.")
    members: list[MemberLike] = Field(
        default_factory=lambda: list[MemberLike](default_config().members),
        description="The language models of the ensemble.",
    )
    stop: list[str] = Field(
        default_factory=lambda: list(GenerationParams.stop), description="Strings that end the answer."
    )

    trace: TraceLevel = Field(default=DEFAULT, description=DESCRIPTION)
    api_key: SecretStr | None = Field(default=None, description="Hugging Face token, for gated models.")
    ensemble: Ensemble | None = Field(default=None, exclude=True, repr=False, description="A ready-made ensemble.")

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    _runs: Runs = PrivateAttr(default_factory=Runs)
    _cancel: threading.Event | None = PrivateAttr(default=None)  # the caller's, of the call that this is a copy for
    _built: Ensemble | None = PrivateAttr(default=None)  # from the fields, at the first call
    _key: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)  # of ready-made members, in caches

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, **options: Any) -> Self:
        """A model on a ready-made ensemble.

        Args:
            ensemble: It may be shared with others.
            options: Fields of this class that differ from the ensemble's config.
        """
        return cls(ensemble=checked_ensemble(ensemble), **options)

    @property
    def model_name(self) -> str:
        """The names of the members that answer, joined by `+`."""
        return "+".join(member.label for member in self._config().members)

    def load(self) -> Self:
        """Load all models now; the log tells of each member at level INFO."""
        self._running().load()
        return self

    def warm(self) -> Self:
        """Load all models now and answer short prompts, so that the first request is as fast as later ones."""
        self._running().warm()
        return self

    def cancel(self, run: str | uuid.UUID | None = None) -> int:
        """Stop calls of this object that are running or waiting, on any thread, within a step.

        Their consumers get `CancelledError`. Calls are those of this object and of what `bind`, `bind_tools` and the
        like make of it; copies have their own.

        Args:
            run: The `run_id` of a call or one of its `tags`, both as in a `RunnableConfig`; None for all calls. Tags
                of a chain or graph are tags of the calls inside, too.

        Returns:
            How many calls there were.
        """
        return self._runs.cancel(None if run is None else str(run))

    def close(self) -> None:
        """Free the models that nobody else uses; the next call loads them again."""
        self._running().close()

    # --- arguments ---

    @model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, values: Any) -> Any:
        """Known options, and what is not set from a ready-made ensemble or a model's name."""
        values = read_arguments(cls, values)
        if isinstance(values.get("model"), Path):
            values["model"] = str(values["model"])
        if isinstance(ensemble := values.get("ensemble"), Ensemble):
            values = as_fields(ensemble.config, values)
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
    def _check_adafuse(self) -> Self:
        """Refuse what no call could run with, before anything is loaded."""
        dataclasses.replace(self._config(), generation=self._params())
        if self.ensemble is not None and self.ensemble.config.members != self._whole_config().members:
            raise ConfigError(
                "both a ready-made ensemble and other members, or other options of members, were given",
                hint="give them where the ensemble is made",
            )
        if self.ensemble is not None and self.api_key is not None:
            raise ConfigError("got an api_key for a ready-made ensemble", hint="give it to the ensemble's members")
        self._add_version("adafuse", __version__)
        return self

    # --- several inputs: a text in their place would be taken for a list of letters ---

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """As many invokes, in order, at most `max_concurrency` at a time; each fails and reports on its own."""
        return Runnable.batch(self, _listed(inputs), config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """As `batch`."""
        return await Runnable.abatch(self, _listed(inputs), config, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(self, inputs: Sequence[LanguageModelInput], *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As `batch`, in the order in which answers are complete."""
        return super().batch_as_completed(_listed(inputs), *args, **kwargs)

    def abatch_as_completed(
        self, inputs: Sequence[LanguageModelInput], *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """As `batch_as_completed`."""
        return super().abatch_as_completed(_listed(inputs), *args, **kwargs)

    # --- options of a call ---

    def _options(self, stop: list[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """The generation fields with what a call changes."""
        stopped = {} if stop is None else {"stop": stop}
        return {**generation_values(self), **stopped, **openai.generation_options(options)}

    def _params(self, stop: list[str] | None = None, options: Mapping[str, Any] | None = None) -> GenerationParams:
        """The same, checked; unknown options raise `ConfigError`."""
        return GenerationParams().updated(self._options(stop, options or {}))

    def _with_options(self, stop: list[str] | None, options: Mapping[str, Any]) -> Self:
        """A copy with a call's options as its fields."""
        call_options(options, OWN_OPTIONS)
        own = {name: options[name] for name in OWN_OPTIONS if name in options}
        params = self._params(stop, {name: value for name, value in options.items() if name not in OWN_OPTIONS})
        cancel = own.pop("cancel", self._cancel)
        check_options(own.get("timeout"), cancel)
        self._running()  # so that this object, not the copy, holds the ensemble and keeps its models in memory
        call = self.model_copy(update={**own, **dataclasses.asdict(params), "stop": list(params.stop)})
        call._config()  # refuses members that are not there
        call._runs, call._cancel = self._runs, cancel
        return call

    # --- the ensemble ---

    @contextmanager
    def _begun(self, names: Iterable[Any] = ()) -> Iterator[Cancellation]:
        """Around a call, whose time runs from here; `names` are those by which `cancel` finds it."""
        with shared_errors(), self._runs.call(self.timeout, self._cancel, map(str, names)) as cancel:
            yield cancel

    def _events(self, ask: Callable[[Ensemble], PromptLike], cancel: Cancellation, **asked: Any) -> Generator[Event]:
        """What the ensemble answers; `asked` are tools and grammar, as of `Ensemble.stream`."""
        params = dataclasses.asdict(self._params())
        return events(self._running(), ask, cancel, self.max_retries, **asked, **params)

    def _whole_config(self) -> EnsembleConfig:
        """The fields as a config; those of generation go with each call."""
        return EnsembleConfig.from_any(ensemble_values(self))

    def _config(self) -> EnsembleConfig:
        """The same of the members that answer, and with what they need to be loaded."""
        config = self._whole_config()
        token = None if self.api_key is None else self.api_key.get_secret_value()
        members = [with_token(member, token) for member in selected(config.members, self.model)]
        return dataclasses.replace(config, members=tuple(members))

    def _running(self) -> Ensemble:
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

    # --- what LangChain asks ---

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, in plain JSON and without secrets."""
        params = {**self._config().to_dict(), **generation_values(self), "trace": self.trace}
        del params["generation"]
        if self.ensemble is not None and self.ensemble.ready_made:
            params["ensemble"] = self._key  # names and settings don't tell ready-made members apart
        return cast(dict[str, Any], plain(params))

    def _tracing_params(self, stop: list[str] | None, options: Mapping[str, Any]) -> LangSmithParams:
        """What traces show of a call, but for the kind of model."""
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

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        params = self._identifying_params
        yield "members", [member["name"] for member in params.pop("members")]
        yield from ((name, value) for name, value in params.items() if name != "ensemble")

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._runs = Runs()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for ensemble in (self.ensemble, self._built):
            memo[id(ensemble)] = ensemble  # models are shared, never copied
        return super().__deepcopy__(memo)


def _listed(inputs: Any) -> list[Any]:
    return several("inputs", inputs, "invoke() answers a single prompt")
