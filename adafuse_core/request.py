"""One request: what an application asks for, checked at once, and the way it is answered."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import Message, conversation, encodable
from adafuse_core.chat.reader import read_answer
from adafuse_core.chat.thoughts import ThoughtTags, begun_thought, shared_tags
from adafuse_core.chat.tools import Tools
from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.decode import decode
from adafuse_core.errors import CancelledError, ConfigError, ContextOverflowError, PromptError
from adafuse_core.events import Event
from adafuse_core.members.base import Member, Opening, Prompt
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.members.tool_prompts import show_tools
from adafuse_core.rounds import Scored, Span

PromptLike = str | Sequence[Mapping[str, Any] | Message]
Result = TypeVar("Result")

_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of an ensemble.

    Args:
        prompt: A text to continue, or messages.
        tools: What may be called.
        grammar: What the answer may be if it calls nothing.
        params: Budget, stop strings, temperature.
        cancel: Ends the work within one step once it is set.
    """

    prompt: Prompt
    tools: Tools | None
    grammar: Grammar | None
    params: GenerationParams
    cancel: threading.Event

    @classmethod
    def checked(
        cls,
        prompt: PromptLike,
        *,
        tools: Tools | None,
        grammar: Grammar | None,
        params: GenerationParams,
        cancel: threading.Event,
    ) -> Self:
        """A request, if it is one that can be answered.

        Raises:
            PromptError: The prompt is empty, has the wrong form, or is a plain text beside tools.
            ConfigError: `grammar` is not a `Grammar`.
        """
        if not isinstance(grammar, Grammar | None):
            raise ConfigError(f"got grammar={grammar!r}, expected a Grammar", hint="such as Grammar.json_schema(...)")
        if tools is not None and isinstance(prompt, str):
            raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
        return cls(prompt=checked_prompt(prompt), tools=tools, grammar=grammar, params=params, cancel=cancel)


def answer(request: Request, members: Sequence[Member], config: EnsembleConfig) -> Generator[Event]:
    """The events of an answer. However it ends, the members' memory of it is freed."""
    tags = shared_tags(member.prompt_reader.thought_tags for member in members)
    dialect, prompt, schemas, grammar = _introduced(request, members, tags)

    opening = Opening(
        prompt=prompt,
        tools=schemas,
        max_word_tokens=config.max_word_tokens,
        lookup=config.speculation in ("auto", "lookup"),
        cancel=request.cancel,
        grammar=grammar,
        must_call=request.tools is not None and request.tools.forced,
    )
    verify = config.speculation in ("auto", "verify")
    with closing(Prefixes.opened(members, opening, verify=verify)) as prefixes:
        begun = begun_thought({prefix.name: prefix.thinking for prefix in prefixes})
        if grammar is not None and begun is not None:
            grammar = begun.after_thought(grammar)
        events = decode(prefixes, config, request.params, None if grammar is None else grammar.guide())
        if not isinstance(prompt, str):
            names = () if request.tools is None else request.tools.names
            events = read_answer(events, dialect=dialect, names=names, thinking=begun is not None, tags=tags)
        for event in events:
            if request.cancel.is_set():
                raise CancelledError("the generation was cancelled")
            yield event


def score(
    prompt: Prompt, spans: Sequence[Span], members: Sequence[Member], config: EnsembleConfig, cancel: threading.Event
) -> list[Scored]:
    """What the members think of continuations of a prompt."""
    opening = Opening(prompt=prompt, max_word_tokens=config.max_word_tokens, cancel=cancel)
    with closing(Prefixes.opened(members, opening)) as prefixes:
        weights = [prefix.weight for prefix in prefixes]
        for span in spans:
            _check_fits(span, prefixes)
        rows = prefixes.score(spans)
        values = [config.fusion.fuse(config.fusion.values(row), weights) for row in rows]
        return [
            Scored(span=span, scores={score.member: score for score in row}, value=value)
            for span, row, value in zip(spans, rows, values, strict=True)
        ]


def until_cancelled(work: Callable[[], Result], cancel: threading.Event) -> Result:
    """What some work returns that can't be stopped, such as loading a model.

    If the request is cancelled meanwhile, `CancelledError` is raised at once; the work goes on in a thread of its own,
    so that the next request finds its result.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=[run], name="adafuse-load").start()
    while True:
        try:
            return done.result(_POLL_SECONDS)
        except TimeoutError:
            if done.done():
                return done.result()
            if cancel.is_set():
                raise CancelledError("the generation was cancelled while its models were loaded") from None


def _check_fits(span: Span, prefixes: Prefixes) -> None:
    for prefix in prefixes:
        if not prefix.fits(span):
            raise ContextOverflowError(
                f"after a prompt of {prefix.prompt_tokens} tokens the context window, or the memory for it, has no "
                f"room for the continuation {span.text[:60]!r}, which has {prefix.cost(span)}",
                member=prefix.name,
                hint="shorten prompt or continuation, or leave this member out",
            )


def _introduced(
    request: Request, members: Sequence[Member], tags: ThoughtTags
) -> tuple[Dialect | None, Prompt, list[dict[str, Any]] | None, Grammar | None]:
    """How calls are written, what to open the members with, and what the answer may be."""
    if request.tools is None or isinstance(request.prompt, str):
        return None, request.prompt, None, request.grammar
    dialect, prompt, schemas = show_tools(request.prompt, request.tools, [member.prompt_reader for member in members])
    if request.grammar is not None:  # whose text may look like a call
        dialect = replace(dialect, after_text=False)
    return dialect, prompt, schemas, answer_grammar(request.tools, dialect, request.grammar, tags)


def checked_prompt(prompt: PromptLike) -> Prompt:
    """The prompt, if it is one that can be answered; else a `PromptError`."""
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
