"""`Ensemble`: several language models that answer as one.

Everything an application calls. Adapters join at `Ensemble.stream`; `generate` and `batch` fold it.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import InvalidToolCall, Message, ToolCall, conversation, encodable
from adafuse_core.chat.reader import read_answer
from adafuse_core.chat.tools import Tools
from adafuse_core.config import EnsembleConfig, GenerationParams, MemberConfig, expect_integer
from adafuse_core.decode import decode
from adafuse_core.errors import CancelledError, ConfigError, PromptError, TemplateError
from adafuse_core.events import Event, Finished, ReasoningDelta, RoundDone, TextDelta, ToolCallDone
from adafuse_core.members import registry
from adafuse_core.members.base import Member, Prefix, Prompt, PromptSide
from adafuse_core.members.introduction import introduce
from adafuse_core.rounds import Round, Usage
from adafuse_core.small_models import NAMES
from adafuse_core.strategies.base import build_strategy

MemberLike = str | Path | Mapping[str, Any] | MemberConfig
PromptLike = str | Sequence[Mapping[str, Any] | Message]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A whole answer.

    Args:
        text: The answer, exact to the byte; thoughts and tool calls are not in it.
        reason: `"stop"`, `"tool_calls"` or `"length"`.
        stop: The stop string that was hit, if one was.
        usage: Tokens of prompt and answer per member.
        rounds: The trace: every decision that was made.
        reasoning: The thought with which the answer began, between `<think>` and `</think>`.
        tool_calls: What the answer calls.
        invalid_tool_calls: Calls in which a stop string or an error ended the answer.
    """

    text: str
    reason: str
    stop: str | None
    usage: Usage
    rounds: tuple[Round, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()


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
        members: Sequence[MemberLike] | Sequence[Member] | None = None,
        **options: Any,
    ) -> None:
        base = default_config() if config is None else EnsembleConfig.from_any(config)
        self._given = _ready_made(members)
        if self._given is None and members is not None:
            options["members"] = members
        elif self._given is not None and config is None:
            options["members"] = [MemberConfig(model=member.name, weight=member.weight) for member in self._given]
        self.config = base.updated(options)
        if self._given is not None:
            _check_ready_made(self._given, self.config)
        self._strategy = build_strategy(self.config)
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
        return cls({"members": models, **options} if models else None, **({} if models else options)).load()

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
                    self._members = tuple(registry.acquire(member, self) for member in self.config.members)
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
                before the budget ends. Text that a grammar forces is committed without asking the members.
            cancel: Set it to stop.
            options: Fields of `GenerationParams`.

        Yields:
            `TextDelta`, `ReasoningDelta`, `ToolCallDelta`, `ToolCallDone` and `RoundDone` events, and one `Finished`
            at the end. The text of a call is in no `TextDelta`, nor is a `<think>` block that begins the answer to
            messages.

        Raises:
            ConfigError: An option is unknown or out of range (at once, not at the first `next()`).
            PromptError: The prompt is empty, or does not fit a member.
            CancelledError: `cancel` was set.
            MemberError: A member failed.
        """
        params = self.config.generation.updated(options)
        self.config.check_choice(params)
        if not isinstance(grammar, Grammar | None):
            raise ConfigError(f"got grammar={grammar!r}, expected a Grammar", hint="such as Grammar.json_schema(...)")
        calls = Tools.of_request(tools, tool_choice, parallel_tool_calls)
        if calls is not None and isinstance(prompt, str):
            raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
        return self._events(_checked(prompt), calls, grammar, cancel or threading.Event(), params)

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
                first failure cancels the other prompts and is raised.
            max_concurrency: Most prompts at a time.
            options: As of `stream`, the same for all.
        """
        expect_integer("max_concurrency", max_concurrency, at_least=1)
        stop = threading.Event()

        def go_on() -> None:
            if stop.is_set():
                raise CancelledError("another prompt of the batch failed")

        def events(prompt: PromptLike) -> Iterator[Event]:
            go_on()
            with closing(self.stream(prompt, **options)) as stream:
                for event in stream:
                    go_on()
                    yield event

        def answer(prompt: PromptLike) -> Generation | Exception:
            try:
                return collect(events(prompt))
            except Exception as error:
                if return_exceptions:
                    return error
                raise

        with ThreadPoolExecutor(max_concurrency) as pool:
            running = [pool.submit(answer, prompt) for prompt in prompts]
            try:
                for future in as_completed(running):
                    future.result()
            except BaseException:
                stop.set()
                raise
        return [future.result() for future in running]

    def count_tokens(self, prompt: PromptLike, tools: Sequence[dict[str, Any]] | None = None) -> dict[str, int]:
        """Length of a prompt per member, each in its own tokens, template included. No weights are loaded for that."""
        checked: Prompt = prompt if isinstance(prompt, str) else conversation(prompt)
        calls = Tools.of_request(tools, "auto", parallel=True)
        if calls is None or isinstance(checked, str):
            return {member.name: member.count_tokens(checked, tools) for member in self._prompt_sides}
        _, shown, schemas = introduce(checked, calls, self._prompt_sides)
        return {member.name: member.count_tokens(shown, schemas) for member in self._prompt_sides}

    def count_text_tokens(self, text: str) -> dict[str, int]:
        """Length of a bare text per member, each in its own tokens, nothing added."""
        return {member.name: member.count_text_tokens(text) for member in self._prompt_sides}

    @property
    def context_window(self) -> int | None:
        """The smallest context window of the members, each in its own tokens; None if all are unbounded.

        Known without loading any weights.
        """
        if self._members is not None:
            windows = [member.context_window for member in self._members]
        else:
            from adafuse_core.members.sources import declared_window

            windows = [declared_window(member) for member in self.config.members]
        bounded = [window for window in windows if window is not None]
        return min(bounded) if bounded else None

    def supports_chat(self) -> bool:
        """Whether every member has a chat template. No weights are loaded for that."""
        return all(member.supports_chat() for member in self._prompt_sides)

    def supports_tools(self) -> bool:
        """Whether every member's chat template shows tools, so that its model is likely to have learned to call them.

        Calls can be asked for in any case: members are told how, and a grammar holds them to it.
        """
        return all(member.shows_tools for member in self._prompt_sides)

    @property
    def _prompt_sides(self) -> Sequence[PromptSide]:
        """The members as far as prompts go. No weights are loaded for that."""
        loaded = self._members
        return [registry.encoder(member) for member in self.config.members] if loaded is None else loaded

    def describe(self) -> dict[str, Any]:
        """What is loaded and how it runs, in plain values."""
        return {
            "strategy": self.config.strategy,
            "tau": self.config.tau,
            "max_words": self.config.max_words,
            "branches": self.config.branches,
            "speculation": self.config.speculation,
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
        return f"Ensemble({', '.join(self.names)}; strategy={self.config.strategy})"

    def _release(self) -> None:
        for config in self.config.members:
            registry.release(config, self)

    def _events(
        self,
        prompt: Prompt,
        tools: Tools | None,
        grammar: Grammar | None,
        cancel: threading.Event,
        params: GenerationParams,
    ) -> Generator[Event]:
        members = self._strategy.select(self.members)
        dialect, schemas = None, None
        names: tuple[str, ...] = ()
        if tools is not None and not isinstance(prompt, str):
            dialect, prompt, schemas = introduce(prompt, tools, members)
            if grammar is not None:  # whose text may look like a call
                dialect = replace(dialect, after_text=False)
            grammar, names = tools.grammar(dialect, grammar), tools.names
        with ExitStack() as opened:
            prefixes: list[Prefix] = []
            for member in members:
                prefixes.append(
                    member.open(
                        prompt,
                        schemas,
                        max_word_tokens=self.config.max_word_tokens,
                        lookup=self.config.speculation in ("auto", "lookup"),
                        cancel=cancel,
                        grammar=grammar,
                        must_call=tools is not None and tools.forced,
                    )
                )
                opened.callback(prefixes[-1].close)
            thinking = _thinking(prefixes)
            if grammar is not None and thinking:
                grammar = grammar.after_thought()
            events = decode(prefixes, self._strategy, params, None if grammar is None else grammar.guide())
            if not isinstance(prompt, str):
                events = read_answer(events, dialect=dialect, names=names, thinking=thinking)
            for event in events:
                if cancel.is_set():
                    raise CancelledError("the generation was cancelled")
                yield event


def collect(events: Iterable[Event]) -> Generation:
    """Fold a stream into the whole answer."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall | InvalidToolCall] = []
    rounds: list[Round] = []
    for event in events:
        if isinstance(event, TextDelta):
            texts.append(event.text)
        elif isinstance(event, ReasoningDelta):
            thoughts.append(event.text)
        elif isinstance(event, ToolCallDone):
            calls.append(event.call)
        elif isinstance(event, RoundDone):
            rounds.append(event.round)
        elif isinstance(event, Finished):
            finished = event
    return Generation(
        text="".join(texts),
        reasoning="".join(thoughts),
        tool_calls=tuple(call for call in calls if isinstance(call, ToolCall)),
        invalid_tool_calls=tuple(call for call in calls if isinstance(call, InvalidToolCall)),
        reason=finished.reason,
        stop=finished.stop,
        usage=finished.usage,
        rounds=tuple(rounds),
    )


def _thinking(prefixes: Sequence[Prefix]) -> bool:
    """Whether the answer begins inside a thought. All members must see it so."""
    thinking = {prefix.thinking for prefix in prefixes}
    if len(thinking) > 1:
        names = [prefix.name for prefix in prefixes if prefix.thinking]
        raise TemplateError(
            f"the chat templates of {', '.join(names)} begin the answer with a thought, the others' don't",
            hint="have all members think or none, such as by MemberConfig(template_kwargs={'enable_thinking': False})",
        )
    return thinking == {True}


def default_config() -> EnsembleConfig:
    """The two small models shipped with the package."""
    return EnsembleConfig(members=tuple(MemberConfig(model=f"small:{name}") for name in NAMES))


def _ready_made(members: Sequence[Any] | None) -> tuple[Member, ...] | None:
    """The members if they are objects that can be used as they are, None if they are configs."""
    if members is None or isinstance(members, str | Mapping):
        return None
    configs = [isinstance(member, str | Path | Mapping | MemberConfig) for member in members]
    if any(configs) and not all(configs):
        raise ConfigError("got ready-made members beside model names", hint="give one kind")
    return None if all(configs) else tuple(members)


def _check_ready_made(members: Sequence[Member], config: EnsembleConfig) -> None:
    given = [(member.name, member.weight) for member in members]
    expected = [(member.label, member.weight) for member in config.members]
    if given != expected:
        raise ConfigError(
            f"got ready-made members {given} (name, weight), the config has {expected}",
            hint="give each member a name of its own, and the config's names and weights if there is a config",
        )


def _checked(prompt: PromptLike) -> Prompt:
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("the prompt is empty", hint="give some text, or a list of messages")
        return encodable(prompt)
    if isinstance(prompt, Message | Mapping):
        raise PromptError(f"got {prompt!r} as prompt, expected a text or a list of messages")
    messages = conversation(prompt)
    if messages[-1].role == "assistant":
        raise PromptError(
            "the conversation ends with the assistant's own turn, so there is nothing to answer",
            hint="end it with a user or tool message",
        )
    return messages
