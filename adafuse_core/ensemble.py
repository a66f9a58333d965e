"""`Ensemble`: several language models that answer as one.

The public entry point of the library. Adapters build on `Ensemble.stream`; `generate` and `batch` collect its events.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
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
from adafuse_core.generation import Generation, collect
from adafuse_core.json_lines import strict
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.base import Member, Prompt
from adafuse_core.members.member_set import MemberSet
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
from adafuse_core.warmup import warm_up

MemberLike = str | Path | Mapping[str, Any] | MemberConfig


class Ensemble:
    """Several language models that decode together, word by word.

    Models are loaded on first use or by `load()`. All ensembles of a process share loaded models. An ensemble is
    thread-safe; copies and pickles contain only its config.

    Args:
        config: An `EnsembleConfig`, a mapping of its fields, or the path of a YAML file. Default: the two small models
            shipped with the package.
        members: Model names, paths, mappings or `MemberConfig`s that replace the members of `config`; or member
            objects, such as `ScriptedMember`s, whose names and weights must match those in `config`, if it is given.
        options: Fields of `EnsembleConfig` that override those of `config`, and member options that apply to all
            members, such as `dtype`.

    Attributes:
        config: The checked config.
        ready_made: Whether the members were passed as objects, so that the config can't recreate them.

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
        objects = ready_made(given)
        if objects is None and given is not None:
            options["members"] = given
        elif objects is not None and config is None:
            options["members"] = [MemberConfig(model=member.name, weight=member.weight) for member in objects]
        self.config = base.updated(options)
        self.ready_made = objects is not None
        if objects is not None:
            check_ready_made(objects, self.config.members, self.config.member_defaults)
        self._members = MemberSet(self.config.members, objects, self.config.strategy.check_abilities)

    @classmethod
    def from_pretrained(cls, *models: MemberLike | Iterable[MemberLike], **options: Any) -> Self:
        """Create an ensemble from model names, paths or member configs, and load its models.

        Args:
            models: The members as separate arguments or as one list. Default: the two small models shipped with the
                package.
            options: Options of the constructor, such as `tau=0.5`, or `dtype="bfloat16"` for all members.

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
        """Create an ensemble from a config, a mapping or a YAML file, without loading its models."""
        return cls(config, **options)

    def save(self, path: str | Path) -> None:
        """Save the config as a YAML file for `from_config`; see `EnsembleConfig.save`."""
        if self.ready_made:
            raise ConfigError("ready-made members can't be saved", hint="make the ensemble from model names")
        self.config.save(path)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members; the first access loads them."""
        return self._members.load()

    @property
    def is_loaded(self) -> bool:
        """Whether the members are in memory."""
        return self._members.loaded is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members. No model is loaded."""
        return tuple(member.label for member in self.config.members)

    def load(self, *, progress: bool = False) -> Self:
        """Load and test all models; the log describes each member at level INFO.

        Args:
            progress: Whether to show progress bars of downloads and of loading weights on standard error.
        """
        self._members.load(progress=progress)
        self.supports_tools()  # logs how tools are shown to the members
        return self

    def warm(self, prompt: PromptLike | None = None, **options: Any) -> Self:
        """Load all models and generate short answers of all kinds, so that the first request is as fast as later ones.

        Args:
            prompt: A prompt to read in place of this, such as the system message of all conversations. Later requests
                that begin like it don't read this beginning again, as long as the prefix cache has it.
            options: Options of `stream`, such as the `tools` and the `cache_namespace` of these requests.
        """
        grammar = all(member.abilities.masks for member in self.load().members)
        warm_up(partial(self.generate, **options), prompt, chat=self.supports_chat(), grammar=grammar)
        return self

    def forget(self, cache_namespace: str | None = None) -> None:
        """Free the memory of what members keep of ended requests, of one namespace or of all."""
        for member in self._members.loaded or ():
            member.forget(cache_namespace)

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
        """Generate an answer as a stream of events. No model runs before the first `next()`.

        Closing the iterator frees the memory of the request. Setting `cancel`, from any thread, stops generation
        within one forward pass.

        Args:
            prompt: A plain text to continue, or the messages of a conversation.
            tools: Tools that the answer may call, in OpenAI's format: `{"type": "function", "function": {"name",
                "description", "parameters"}}`. If the chat templates of all members share a tool-call format, the
                templates show the tools; otherwise a system message describes tools and format to all members. Every
                call obeys the JSON schema of its tool. The answer ends at a call that repeats an earlier one; the
                repeated call is dropped.
            tool_choice: `"auto"`, `"none"`, `"any"` or `"required"` (at least one call), or the name of the one tool
                to call.
            parallel_tool_calls: Whether an answer may contain several calls, where the tool-call format allows it.
            grammar: Grammar of the answer; with tools, of an answer without calls. The answer is always valid and
                complete: if the token budget is too small, AdaFuse writes the end itself (`Finished.library_text`).
                Text for which the grammar has only one choice is committed without running the members.
            cancel: Event that cancels the request.
            options: Fields of `GenerationParams`.

        Yields:
            `TextDelta`, `ReasoningDelta`, `ToolCallDelta`, `ToolCallDone` and `RoundDone` events, and one `Finished`
            as the last. `TextDelta`s contain neither tool calls nor, after messages, a leading `<think>` block.

        Raises:
            ConfigError: An option is unknown or out of range. Raised by the call itself, not by the first `next()`.
            PromptError: The prompt is empty or malformed (raised by the call), or too long for a member.
            CancelledError: `cancel` was set. The answer so far is in `partial`, as for all errors during generation.
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
        """Generate the whole answer to a prompt. Arguments and errors are those of `stream`."""
        return collect(self.stream(prompt, **options))

    def batch(
        self,
        prompts: Iterable[PromptLike],
        *,
        return_exceptions: bool = False,
        max_concurrency: int = 16,
        **options: Any,
    ) -> list[Generation] | list[Generation | Exception]:
        """Generate answers to several prompts concurrently, in shared forward passes.

        Args:
            prompts: Prompts as for `stream`.
            return_exceptions: Whether the result contains the exception of a failed prompt in place of its answer.
                Otherwise the first failure cancels the other prompts and is raised; its `partials` are the answers so
                far.
            max_concurrency: Maximum number of prompts that run at the same time.
            options: Options of `stream`, for all prompts.

        Returns:
            One answer per prompt, in the order of `prompts`.
        """
        expect_integer("max_concurrency", max_concurrency, at_least=1)
        expect(isinstance(return_exceptions, bool), "return_exceptions", return_exceptions, "True or False")
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
        """Score given continuations of a prompt, for evaluation and reranking.

        Args:
            prompt: A prompt as for `stream`, or "" to score texts from their start.
            continuations: Exact texts: after a plain prompt, include the leading blank. A `Span` with `ends=True`
                includes the end of the answer.
            cancel: Event that cancels the request.

        Returns:
            For each continuation the log-probabilities of every member, and their fused value by the scoring rule and
            pool of the ensemble (lower is better).

        Raises:
            PromptError: The prompt is malformed, or a continuation is empty.
            ContextOverflowError: Prompt and continuation exceed a member's context window.
            CancelledError: `cancel` was set.
        """
        given = several("continuations", continuations, "give a list of texts or Spans", PromptError)
        spans = [checked_span(continuation) for continuation in given]
        if not spans:
            return []
        cancel = checked_cancel(cancel)
        members = self.config.strategy.select(self._loaded(cancel))
        return score(checked_prompt(prompt, may_be_empty=True), spans, members, self.config, cancel)

    def count_tokens(self, prompt: PromptLike, tools: Sequence[dict[str, Any]] | None = None) -> dict[str, int]:
        """Count the tokens of a prompt per member, including its chat template. No weights are loaded.

        Conversations that `stream` refuses are counted, too: images and other non-text parts count as 0 tokens, and
        messages that a chat template can't render are counted without it.
        """
        checked: Prompt
        if isinstance(prompt, str):
            checked = countable_text(prompt)
        else:
            checked = countable(several("prompt", prompt, "give a text or a list of messages", PromptError))
        calls = Tools.of_request(tools, "auto", parallel=True)
        readers = self._members.prompt_readers
        if calls is None or isinstance(checked, str):
            return {reader.name: reader.count_tokens(checked, tools) for reader in readers}
        _, shown, schemas = show_tools(checked, calls, readers)
        return {reader.name: reader.count_tokens(shown, schemas) for reader in readers}

    def count_text_tokens(self, text: str) -> dict[str, int]:
        """Count the tokens of a text per member, without special tokens. No weights are loaded."""
        expect(isinstance(text, str), "text", text, "a text")
        return {reader.name: reader.count_text_tokens(countable_text(text)) for reader in self._members.prompt_readers}

    @property
    def context_window(self) -> int | None:
        """Smallest context window of the members, in that member's tokens; None if unbounded. No weights are loaded."""
        return self._members.context_window

    def supports_chat(self) -> bool:
        """Whether every member has a chat template. No weights are loaded."""
        return all(reader.supports_chat() for reader in self._members.prompt_readers)

    def supports_tools(self) -> bool:
        """Whether `tools` can be used: every member needs a chat template. No weights are loaded.

        The log says, at level INFO, whether chat templates or a system message show the tools to the members.
        """
        return can_call_tools(self._members.prompt_readers)

    def describe(self) -> dict[str, Any]:
        """Config and members, with how each member runs, as plain JSON values. Loads the models."""
        options = {name: value for name, value in self.config.to_dict().items() if name != "generation"}
        return {**strict(options), "members": [member.describe() for member in self.members]}

    def close(self) -> None:
        """Release the models, and free those that no other ensemble uses. The next use loads them again.

        The models of an ensemble that is garbage-collected without `close` stay loaded for later ensembles.
        """
        self._members.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.ready_made:
            raise TypeError("an ensemble of ready-made members can't be copied or pickled; build it from a config")
        return type(self), (self.config,)

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(self.names)}; strategy={self.config.strategy.name})"

    def _answer(self, request: Request) -> Generator[Event]:
        members = self.config.strategy.select(self._loaded(request.cancel))
        yield from answer(request, members, self.config)

    def _loaded(self, cancel: threading.Event) -> tuple[Member, ...]:
        """The members; setting `cancel` stops waiting for their models."""
        return self._members.loaded or until_cancelled(lambda: self.members, cancel)
