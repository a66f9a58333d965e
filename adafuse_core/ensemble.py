"""`Ensemble`: several language models that answer as one.

Everything an application calls. Adapters join at `Ensemble.stream`; `generate` and `batch` fold it.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from adafuse_core.batch import run_batch
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import conversation, encodable
from adafuse_core.chat.tools import Tools
from adafuse_core.checks import expect_integer
from adafuse_core.config import EnsembleConfig
from adafuse_core.errors import PromptError
from adafuse_core.events import Event
from adafuse_core.generation import Generation, collect
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import registry
from adafuse_core.members.base import Member, Prompt, PromptReader
from adafuse_core.members.ready_made import check_ready_made, ready_made
from adafuse_core.members.tool_prompts import show_tools
from adafuse_core.request import PromptLike, Request, answer, checked_prompt, score
from adafuse_core.rounds import Scored, Span
from adafuse_core.small_models import NAMES


class Ensemble:
    """Several models that decode together, word by word.

    Nothing is loaded before the first use or `load()`; models are shared by all ensembles of the process.
    Safe to use from many threads; copies and pickles carry the config only.

    Args:
        config: An `EnsembleConfig`, a mapping of its fields, or the path of a YAML file. Default: the
            two small models shipped with the package.
        members: Model names, paths, mappings or `MemberConfig`s in place of the config's; or ready-made
            members, such as `ScriptedMember`s, whose names and weights a config must share if one is given.
        options: Fields of `EnsembleConfig` that override the config's.

    Raises:
        ConfigError: An option is unknown or out of range.
    """

    def __init__(
        self,
        config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        members: Sequence[str | Path | Mapping[str, Any] | MemberConfig] | Sequence[Member] | None = None,
        **options: Any,
    ) -> None:
        base = default_config() if config is None else EnsembleConfig.from_any(config)
        self._given = ready_made(members)
        if self._given is None and members is not None:
            options["members"] = members
        elif self._given is not None and config is None:
            options["members"] = [MemberConfig(model=member.name, weight=member.weight) for member in self._given]
        self.config = base.updated(options)
        if self._given is not None:
            check_ready_made(self._given, self.config.members)
            self.config.strategy.check_abilities(self._given)
        self._members: tuple[Member, ...] | None = self._given
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, *models: str | Path | Mapping[str, Any] | MemberConfig, **options: Any) -> Self:
        """Load an ensemble from model names, paths or member configs.

        Example:
            `Ensemble.from_pretrained("meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3")`

        Raises:
            ConfigError: An option is unknown or out of range.
            ModelLoadError: A model can't be loaded.
        """
        ensemble = cls({"members": models, **options}) if models else cls(**options)
        return ensemble.load()

    @classmethod
    def from_config(cls, config: EnsembleConfig | Mapping[str, Any] | str | Path) -> Self:
        """An ensemble from a config, a mapping or a YAML file; models are loaded at first use."""
        return cls(config)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, loaded now if they were not."""
        with self._lock:
            if self._members is None:
                try:
                    members = tuple(registry.acquire(member, self) for member in self.config.members)
                    self.config.strategy.check_abilities(members)
                    self._members = members
                except Exception:
                    self._release()
                    raise
            return self._members

    @property
    def ready_made(self) -> bool:
        """Whether the members were given as objects, so that the config does not tell how to make them."""
        return self._given is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, without loading them."""
        return tuple(member.label for member in self.config.members)

    def load(self) -> Self:
        """Load all models now."""
        _ = self.members
        return self

    def stream(
        self,
        prompt: PromptLike,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        grammar: Grammar | None = None,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> Generator[Event]:
        """Answer a prompt, event by event. Nothing runs before the first `next()`.

        Closing the iterator frees its memory; setting `cancel` from any thread ends it within one step.

        Args:
            prompt: A plain text to continue, or the messages of a conversation.
            tools: What the answer may call, in OpenAI's form: `{"type": "function", "function": {"name", "description",
                "parameters"}}`. Each member's own template shows them if all members write calls in the same way;
                otherwise a system message tells all the same form. A call that was begun obeys its tool's schema.
            tool_choice: `"auto"`, `"any"` or `"required"` for at least one call, `"none"`, or the name of the one tool
                to call.
            parallel_tool_calls: Whether an answer may call several times, where the form allows it.
            grammar: What the answer may be; with tools, what it may be if it calls none. A valid end always comes
                before the budget ends, if need be written by AdaFuse itself (`Finished.library_text` tells). Text that
                a grammar forces is committed without asking the members.
            cancel: Set it to stop.
            options: Fields of `GenerationParams`.

        Yields:
            `TextDelta`, `ReasoningDelta`, `ToolCallDelta`, `ToolCallDone` and `RoundDone` events, and one `Finished`
            at the end. The text of a call is in no `TextDelta`, nor is a `<think>` block that begins the answer to
            messages.

        Raises:
            ConfigError: An option is unknown or out of range (at once, not at the first `next()`).
            PromptError: The prompt is empty, or does not fit a member.
            CancelledError: `cancel` was set. As all errors, it has the answer so far in its `partial`.
            MemberError: A member failed.
        """
        params = self.config.generation.updated(options)
        self.config.check_choice(params)
        request = Request.checked(
            prompt,
            tools=Tools.of_request(tools, tool_choice, parallel_tool_calls),
            grammar=grammar,
            params=params,
            cancel=cancel or threading.Event(),
        )
        return self._answer(request)

    def generate(self, prompt: PromptLike, **options: Any) -> Generation:
        """The whole answer to a prompt; arguments and errors as of `stream`."""
        return collect(self.stream(prompt, **options))

    def batch(
        self,
        prompts: Sequence[PromptLike],
        *,
        return_exceptions: bool = False,
        max_concurrency: int = 16,
        **options: Any,
    ) -> list[Generation] | list[Generation | Exception]:
        """Answers to several prompts, in their order. They run at once, and share the models' passes.

        Args:
            prompts: As of `stream`.
            return_exceptions: Whether a failing prompt yields its exception in place of an answer. Otherwise the
                first failure cancels the other prompts and is raised, with all answers so far in its `partials`.
            max_concurrency: Most prompts at a time.
            options: As of `stream`, the same for all.
        """
        expect_integer("max_concurrency", max_concurrency, at_least=1)
        return run_batch(
            prompts, lambda prompt: self.stream(prompt, **options), max_concurrency, return_exceptions=return_exceptions
        )

    def score(
        self,
        prompt: PromptLike,
        continuations: Sequence[str | Span],
        *,
        cancel: threading.Event | None = None,
    ) -> list[Scored]:
        """What the members think of given continuations of a prompt, for evaluation and for reranking.

        Args:
            prompt: As of `stream`.
            continuations: Texts that may follow, exact to the byte: with their leading blank after a plain text. A
                `Span` says whether the answer ends after it.
            cancel: Set it to stop.

        Returns:
            For each continuation the members' log-probabilities, and one value by the ensemble's scoring rule and
            pool: lower is better.

        Raises:
            PromptError: The prompt or a continuation is empty.
            ContextOverflowError: A member's context window has no room for prompt and continuation.
            CancelledError: `cancel` was set.
        """
        if isinstance(continuations, str | Span):
            raise PromptError(f"got {continuations!r} as continuations, expected a list of them")
        spans = [_continuation(given) for given in continuations]
        members = self.config.strategy.select(self.members)
        return score(checked_prompt(prompt), spans, members, self.config, cancel or threading.Event()) if spans else []

    def count_tokens(self, prompt: PromptLike, tools: Sequence[dict[str, Any]] | None = None) -> dict[str, int]:
        """Length of a prompt per member, each in its own tokens, template included. No weights are loaded for that."""
        checked: Prompt = prompt if isinstance(prompt, str) else conversation(prompt)
        calls = Tools.of_request(tools, "auto", parallel=True)
        if calls is None or isinstance(checked, str):
            return {reader.name: reader.count_tokens(checked, tools) for reader in self._prompt_readers}
        _, shown, schemas = show_tools(checked, calls, self._prompt_readers)
        return {reader.name: reader.count_tokens(shown, schemas) for reader in self._prompt_readers}

    def count_text_tokens(self, text: str) -> dict[str, int]:
        """Length of a bare text per member, each in its own tokens, nothing added."""
        return {reader.name: reader.count_text_tokens(text) for reader in self._prompt_readers}

    @property
    def context_window(self) -> int | None:
        """The smallest context window of the members, each in its own tokens; None if all are unbounded.

        Known without loading any weights.
        """
        if self._members is not None:
            windows = [member.context_window for member in self._members]
        else:
            from adafuse_core.members.context_windows import declared_window

            windows = [declared_window(member) for member in self.config.members]
        bounded = [window for window in windows if window is not None]
        return min(bounded) if bounded else None

    def supports_chat(self) -> bool:
        """Whether every member has a chat template. No weights are loaded for that."""
        return all(reader.supports_chat() for reader in self._prompt_readers)

    def supports_tools(self) -> bool:
        """Whether every member's chat template shows tools, so that its model is likely to have learned to call them.

        Calls can be asked for in any case: members are told how, and a grammar holds them to it.
        """
        return all(reader.shows_tools for reader in self._prompt_readers)

    @property
    def _prompt_readers(self) -> Sequence[PromptReader]:
        """The members as far as prompts go. No weights are loaded for that."""
        loaded = self._members
        if loaded is None:
            return [registry.encoder(member) for member in self.config.members]
        return [member.prompt_reader for member in loaded]

    def describe(self) -> dict[str, Any]:
        """What is loaded and how it runs, in plain values."""
        return {
            **{name: value for name, value in self.config.to_dict().items() if name != "generation"},
            "members": [member.describe() for member in self.members],
        }

    def close(self) -> None:
        """Give the models back; those that no other ensemble uses are freed. Use after it loads them again.

        An ensemble that is dropped without this leaves its models ready for the next one of the same kind.
        """
        with self._lock:
            loaded, self._members = self._members, self._given
            if loaded is not None and self._given is None:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._given is not None:
            raise TypeError("an ensemble of ready-made members can't be copied or pickled; build it from a config")
        return type(self), (self.config,)

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(self.names)}; strategy={self.config.strategy.name})"

    def _answer(self, request: Request) -> Generator[Event]:
        yield from answer(request, self.config.strategy.select(self.members), self.config)

    def _release(self) -> None:
        for config in self.config.members:
            registry.release(config, self)


def default_config() -> EnsembleConfig:
    """The two small models shipped with the package."""
    return EnsembleConfig(members=tuple(MemberConfig(model=f"small:{name}") for name in NAMES))


def _continuation(given: str | Span) -> Span:
    span = given if isinstance(given, Span) else Span(text=given) if isinstance(given, str) else None
    if span is None or not (span.text or span.ends):
        raise PromptError(f"got {given!r} as a continuation, expected a text that is not empty, or a Span")
    return replace(span, text=encodable(span.text))
