"""`Ensemble`: several language models that answer as one.

Everything an application calls. Adapters join at `Ensemble.stream`; `generate` and `batch` fold it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from adafuse_core.batch import run_batch
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import countable, countable_text
from adafuse_core.chat.tools import Tools
from adafuse_core.checks import expect, expect_integer, several
from adafuse_core.config import EnsembleConfig, default_config
from adafuse_core.errors import ConfigError, PromptError
from adafuse_core.events import Event
from adafuse_core.forks import renew_after_fork
from adafuse_core.generation import Generation, collect
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import registry
from adafuse_core.members.base import Member, Prompt, PromptReader
from adafuse_core.members.context_windows import declared_window
from adafuse_core.members.ready_made import check_ready_made, ready_made
from adafuse_core.members.tool_prompts import can_call_tools, show_tools
from adafuse_core.request import (
    PromptLike,
    Request,
    answer,
    checked_cancel,
    checked_prompt,
    checked_span,
    score,
    until_cancelled,
)
from adafuse_core.rounds import Scored, Span

logger = logging.getLogger(__name__)

MemberLike = str | Path | Mapping[str, Any] | MemberConfig

_WARM_TOKENS = 8  # of each answer of `warm`: enough for a few rounds


class Ensemble:
    """Several models that decode together, word by word.

    Nothing is loaded before the first use or `load()`; models are shared by all ensembles of the process.
    Safe to use from many threads; copies and pickles carry the config only.

    Args:
        config: An `EnsembleConfig`, a mapping of its fields, or the path of a YAML file. Default: the
            two small models shipped with the package.
        members: Model names, paths, mappings or `MemberConfig`s in place of the config's; or ready-made
            members, such as `ScriptedMember`s, whose names and weights a config must share if one is given.
        options: Fields of `EnsembleConfig` that override the config's, and options of all members, such as `dtype`.

    Raises:
        ConfigError: An option is unknown or out of range.
    """

    def __init__(
        self,
        config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        members: Iterable[MemberLike] | Iterable[Member] | None = None,
        **options: Any,
    ) -> None:
        base = default_config() if config is None else EnsembleConfig.from_any(config)
        given = None if members is None else several("members", members, "write members=[...]")
        self._given = ready_made(given)
        if self._given is None and given is not None:
            options["members"] = given
        elif self._given is not None and config is None:
            options["members"] = [MemberConfig(model=member.name, weight=member.weight) for member in self._given]
        self.config = base.updated(options)
        if self._given is not None:
            check_ready_made(self._given, self.config.members, self.config.member_defaults)
            self.config.strategy.check_abilities(self._given)
        self._members: tuple[Member, ...] | None = self._given
        self.after_fork()
        renew_after_fork(self)

    @classmethod
    def from_pretrained(cls, *models: MemberLike | Iterable[MemberLike], **options: Any) -> Self:
        """Load an ensemble from model names, paths or member configs.

        Args:
            models: Several members, or one list of them. Default: the two small models shipped with the package.
            options: As of the constructor, such as `tau=0.5`, or `dtype="bfloat16"` for all members.

        Example:
            `Ensemble.from_pretrained("meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3")`

        Raises:
            ConfigError: An option is unknown or out of range.
            ModelLoadError: A model can't be loaded.
        """
        listed = len(models) == 1 and not isinstance(models[0], str | Path | Mapping | MemberConfig)
        if models:
            options["members"] = several("models", models[0] if listed else models, "give names, paths or mappings")
        return cls(**options).load()

    @classmethod
    def from_config(cls, config: EnsembleConfig | Mapping[str, Any] | str | Path, **options: Any) -> Self:
        """An ensemble from a config, a mapping or a YAML file, as of the constructor. Nothing is loaded yet."""
        return cls(config, **options)

    def save(self, path: str | Path) -> None:
        """Write the config as a YAML file that `from_config` reads back; see `EnsembleConfig.save`."""
        if self._given is not None:
            raise ConfigError("ready-made members can't be saved", hint="make the ensemble from model names")
        self.config.save(path)

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
    def is_loaded(self) -> bool:
        """Whether the members are in memory."""
        return self._members is not None

    @property
    def ready_made(self) -> bool:
        """Whether the members were given as objects, so that the config does not tell how to make them."""
        return self._given is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, without loading them."""
        return tuple(member.label for member in self.config.members)

    def load(self) -> Self:
        """Load all models now, and test them. The log tells of each member at level INFO."""
        _ = self.members
        self.supports_tools()  # whose log says how members are shown tools
        return self

    def warm(self) -> Self:
        """Load all models now, and answer short prompts, so that the first request is as fast as later ones.

        The answers use chat templates, prefill, drafts, scores, and a grammar if all members can be held to one.
        """
        members, began = self.load().members, time.monotonic()
        prompt: PromptLike = [{"role": "user", "content": "Hello"}] if self.supports_chat() else "Hello"
        self.generate(prompt, max_new_tokens=_WARM_TOKENS, stop=(), logprobs=True)
        if all(member.abilities.masks for member in members):
            self.generate(prompt, max_new_tokens=_WARM_TOKENS, stop=(), grammar=Grammar.regex("(?s:.+)"))
        logger.info("%s: warmed up after %.1f s", self, time.monotonic() - began)
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
                otherwise a system message tells all the same form. A call that was begun obeys its tool's schema. An
                answer ends where it repeats one of its calls; the repeated call is dropped.
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
        expect(isinstance(parallel_tool_calls, bool), "parallel_tool_calls", parallel_tool_calls, "True or False")
        request = Request.checked(
            prompt,
            tools=Tools.of_request(tools, tool_choice, parallel_tool_calls),
            grammar=grammar,
            params=params,
            cancel=checked_cancel(cancel),
        )
        return self._answer(request)

    def generate(self, prompt: PromptLike, **options: Any) -> Generation:
        """The whole answer to a prompt; arguments and errors as of `stream`."""
        return collect(self.stream(prompt, **options))

    def batch(
        self,
        prompts: Iterable[PromptLike],
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
        given = several("prompts", prompts, "generate() answers a single prompt", PromptError)
        return run_batch(
            given, lambda prompt: self.stream(prompt, **options), max_concurrency, return_exceptions=return_exceptions
        )

    def score(
        self,
        prompt: PromptLike,
        continuations: Iterable[str | Span],
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
        given = several("continuations", continuations, "give a list of texts or Spans", PromptError)
        spans = [checked_span(continuation) for continuation in given]
        if not spans:
            return []
        cancel = checked_cancel(cancel)
        members = self.config.strategy.select(self._loaded(cancel))
        return score(checked_prompt(prompt), spans, members, self.config, cancel)

    def count_tokens(self, prompt: PromptLike, tools: Sequence[dict[str, Any]] | None = None) -> dict[str, int]:
        """Length of a prompt per member, each in its own tokens, template included. No weights are loaded for that.

        Conversations that can't be answered are counted too: of an image or the like nothing, and without its template
        what no template can render.
        """
        checked: Prompt
        if isinstance(prompt, str):
            checked = countable_text(prompt)
        else:
            checked = countable(several("prompt", prompt, "give a text or a list of messages", PromptError))
        calls = Tools.of_request(tools, "auto", parallel=True)
        if calls is None or isinstance(checked, str):
            return {reader.name: reader.count_tokens(checked, tools) for reader in self._prompt_readers}
        _, shown, schemas = show_tools(checked, calls, self._prompt_readers)
        return {reader.name: reader.count_tokens(shown, schemas) for reader in self._prompt_readers}

    def count_text_tokens(self, text: str) -> dict[str, int]:
        """Length of a bare text per member, each in its own tokens, nothing added."""
        expect(isinstance(text, str), "text", text, "a text")
        return {reader.name: reader.count_text_tokens(countable_text(text)) for reader in self._prompt_readers}

    @property
    def context_window(self) -> int | None:
        """The smallest context window of the members, each in its own tokens; None if all are unbounded.

        Known without loading any weights.
        """
        loaded = self._members
        windows = map(declared_window, self.config.members) if loaded is None else (m.context_window for m in loaded)
        return min((window for window in windows if window is not None), default=None)

    def supports_chat(self) -> bool:
        """Whether every member has a chat template. No weights are loaded for that."""
        return all(reader.supports_chat() for reader in self._prompt_readers)

    def supports_tools(self) -> bool:
        """Whether tools can be given with messages: every member needs a chat template. No weights are loaded for that.

        If the templates of all members show tools in one form, they are used; otherwise a system message tells all
        members the tools and how to call them. The log says which, at level INFO.
        """
        return can_call_tools(self._prompt_readers)

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

    def after_fork(self) -> None:
        """Make a new lock: in a forked child nobody would open the old one. Called by the system."""
        self._lock = threading.Lock()

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
        members = self.config.strategy.select(self._loaded(request.cancel))
        yield from answer(request, members, self.config)

    def _loaded(self, cancel: threading.Event) -> tuple[Member, ...]:
        """The members. While they are loaded, the request can be cancelled."""
        return self._members or until_cancelled(lambda: self.members, cancel)

    def _release(self) -> None:
        for config in self.config.members:
            registry.release(config, self)
