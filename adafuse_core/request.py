"""One request: its validation, and the pipeline from its prompt to the events of the answer."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.call_reader import CallReader
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import Message, conversation, encodable
from adafuse_core.chat.reader import read_answer
from adafuse_core.chat.thoughts import ThoughtTags, begun_thought, shared_tags
from adafuse_core.chat.tools import Tools
from adafuse_core.chat.written_calls import WrittenCalls
from adafuse_core.checks import expect, several
from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.decode import decode, usage
from adafuse_core.errors import AdaFuseError, CancelledError, ConfigError, ContextOverflowError, PromptError
from adafuse_core.events import Event, Finished, MemberDropped, RoundDone
from adafuse_core.generation import collect
from adafuse_core.member_failures import opened
from adafuse_core.members.base import Member, Opening, Prompt
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.members.reading import Reading
from adafuse_core.members.tool_prompts import show_tools
from adafuse_core.rounds import Round, Scored, Span
from adafuse_core.stopping import StopMatcher, until_stop
from adafuse_core.telemetry import request_span

PromptLike = str | Sequence[Mapping[str, Any] | Message]
Result = TypeVar("Result")

_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request to an ensemble.

    Args:
        prompt: A text to continue, or messages.
        tools: Tools that the answer may call.
        grammar: Grammar of an answer without tool calls.
        params: Token budget, stop strings, temperature and other options of the call.
        cancel: Event that cancels the request.
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
        """Check the arguments of a request.

        Raises:
            PromptError: The prompt is empty or malformed; or it is a plain text, but tools were given; or
                `continue_final_message` is set and the last message is not a text of the assistant.
            ConfigError: `grammar` is not a `Grammar`.
        """
        if not isinstance(grammar, Grammar | None):
            raise ConfigError(f"got grammar={grammar!r}, expected a Grammar", hint="such as Grammar.json_schema(...)")
        if tools is not None and isinstance(prompt, str):
            raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
        prompt = checked_prompt(prompt)
        if params.continue_final_message and not isinstance(prompt, str):
            _check_continued(prompt[-1])
        return cls(prompt=prompt, tools=tools, grammar=grammar, params=params, cancel=cancel)


def answer(request: Request, members: Sequence[Member], config: EnsembleConfig) -> Generator[Event]:
    """Stream the events of an answer. All prefixes are closed at the end, also after errors.

    Raises:
        AdaFuseError: `partial` is the answer so far.
    """
    tags = shared_tags(member.prompt_reader.thought_tags for member in members)
    dialect, prompt, schemas, grammar = _with_tools(request, members, tags)
    opening = Opening(
        prompt=prompt,
        tools=schemas,
        max_word_tokens=config.max_word_tokens,
        lookup=config.speculation in ("auto", "lookup"),
        cancel=request.cancel,
        grammar=grammar,
        must_call=request.tools is not None and request.tools.forced,
        continues=request.params.continue_final_message and not isinstance(prompt, str),
        namespace=request.params.cache_namespace,
    )
    verify = config.speculation in ("auto", "verify")
    with request_span(request.prompt, request.params, config) as observe, ExitStack() as closings:
        prefixes, dropped = opened(members, opening, config, verify=verify)
        closings.callback(prefixes.close)
        begun = begun_thought({prefix.name: prefix.thinking for prefix in prefixes})
        if grammar is not None and begun is not None:
            grammar = begun.after_thought(grammar)
        thoughts = None if isinstance(prompt, str) else tags
        prefixes.reading = Reading(tags=thoughts, thinking=begun is not None, may_call=request.tools is not None)
        calls = _call_reader(request, dialect)
        stop = StopMatcher(request.params.stop)
        guide = None if grammar is None else grammar.guide()

        def stopped() -> bool:
            return stop.hit is not None or (calls is not None and calls.repeated)

        failures: list[AdaFuseError] = []
        call_start = dialect.trigger if dialect is not None and _is_free(request) else None
        events = decode(prefixes, config, request.params, guide, stopped, dropped, call_start)
        read = read_answer(
            _finish_on_error(events, failures, prefixes),
            calls=calls,
            thinking=begun is not None,
            tags=thoughts,
            complete_calls=request.params.complete_calls,
        )
        yield from _raise_failure(_observed(until_stop(read, stop), observe), request.cancel, failures)


def _finish_on_error(events: Iterator[Event], failures: list[AdaFuseError], prefixes: Prefixes) -> Iterator[Event]:
    """Turn an error into a `Finished` event, so that the readers downstream emit the text that they hold back.

    Args:
        events: From `decode`.
        failures: Receives the error. An error that the consumer adds has the same effect.
        prefixes: For the token counts.
    """
    rounds, dropped = list[Round](), list[MemberDropped]()
    try:
        for event in events:
            yield event
            if isinstance(event, MemberDropped):
                dropped.append(event)
            if isinstance(event, RoundDone):
                rounds.append(event.round)
                if failures:
                    break
    except AdaFuseError as error:
        failures.append(error)
    if failures:
        reason = "cancelled" if isinstance(failures[0], CancelledError) else "error"
        library_text = tuple(played.library_text for played in rounds if played.library_text)
        yield Finished(
            reason=reason,
            stop=None,
            usage=usage(prefixes, len(rounds)),
            library_text=library_text,
            dropped_members=tuple(dropped),
        )


def _observed(events: Iterator[Event], observe: Callable[[Event], None]) -> Iterator[Event]:
    for event in events:
        observe(event)
        yield event


def _raise_failure(events: Iterator[Event], cancel: threading.Event, failures: list[AdaFuseError]) -> Generator[Event]:
    """Raise the error at the `Finished` event, with the answer so far in `partial`; later events are not yielded."""
    seen: list[Event] = []
    for event in events:
        seen.append(event)
        if cancel.is_set() and not failures:
            failures.append(CancelledError("the generation was cancelled"))
        if failures and isinstance(event, Finished):
            failures[0].partial = collect(seen)
            raise failures[0]
        if not failures:
            try:
                yield event
            except AdaFuseError as error:  # thrown by the consumer
                failures.append(error)


def score(
    prompt: Prompt, spans: Sequence[Span], members: Sequence[Member], config: EnsembleConfig, cancel: threading.Event
) -> list[Scored]:
    """Score continuations of a prompt with every member."""
    continues = False
    if config.generation.continue_final_message and not isinstance(prompt, str):
        _check_continued(prompt[-1])
        continues = True
    opening = Opening(
        prompt=prompt,
        max_word_tokens=config.max_word_tokens,
        cancel=cancel,
        continues=continues,
        namespace=config.generation.cache_namespace,
    )
    with closing(Prefixes.opened(members, opening)) as prefixes:
        weights = [prefix.weight for prefix in prefixes]
        for span in spans:
            _check_fits(span, prefixes)
        rows = prefixes.score(spans)
        fusion = config.strategy.fusion
        values = [fusion.fuse(row, weights) for row in rows]
        return [
            Scored(span=span, scores={score.member: score for score in row}, value=value)
            for span, row, value in zip(spans, rows, values, strict=True)
        ]


def until_cancelled(work: Callable[[], Result], cancel: threading.Event) -> Result:
    """Run work that can't be interrupted, such as loading a model, in its own thread, and wait for its result.

    If the request is cancelled meanwhile, `CancelledError` is raised at once. The thread completes the work, so that
    the next request finds the loaded model.
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
                f"after a prompt of {prefix.prompt_tokens} tokens, the context window or the KV cache has no room for "
                f"the continuation {span.text[:60]!r} of {prefix.cost(span)} tokens",
                member=prefix.name,
                hint="shorten prompt or continuation, or leave this member out",
            )


def _with_tools(
    request: Request, members: Sequence[Member], tags: ThoughtTags
) -> tuple[Dialect | None, Prompt, list[dict[str, Any]] | None, Grammar | None]:
    """The dialect of tool calls, prompt and tool schemas for `Member.open`, and the grammar of the answer."""
    if request.tools is None or isinstance(request.prompt, str):
        return None, request.prompt, None, request.grammar
    dialect, prompt, schemas = show_tools(request.prompt, request.tools, [member.prompt_reader for member in members])
    if request.grammar is not None:  # text that obeys the grammar may look like a call
        dialect = replace(dialect, after_text=False)
    return dialect, prompt, schemas, answer_grammar(request.tools, dialect, request.grammar, tags)


def _call_reader(request: Request, dialect: Dialect | None) -> CallReader | None:
    """The parser for tool calls; for unconstrained answers it also accepts formats other than the dialect's."""
    if request.tools is None or dialect is None:
        return None
    written = WrittenCalls(request.tools) if _is_free(request) and request.params.lenient_tool_calls else None
    return CallReader(dialect, request.tools.names, written)


def _is_free(request: Request) -> bool:
    """Whether the answer may be any text, or calls of tools."""
    return request.grammar is None and not (request.tools is not None and request.tools.forced)


def checked_prompt(prompt: PromptLike, *, may_be_empty: bool = False) -> Prompt:
    """Check a prompt; raises `PromptError`."""
    if isinstance(prompt, str):
        if not prompt and not may_be_empty:
            raise PromptError("the prompt is empty", hint="give some text, or a list of messages")
        return encodable(prompt)
    if isinstance(prompt, Message | Mapping):
        raise PromptError(f"got {prompt!r} as prompt, expected a text or a list of messages", hint="write [message]")
    return conversation(several("prompt", prompt, "give a text or a list of messages", PromptError))


def _check_continued(last: Message) -> None:
    if last.role != "assistant" or last.tool_calls:
        called = " that calls tools" if last.tool_calls else ""
        raise PromptError(
            f"got continue_final_message=True, but the conversation ends with a message of role {last.role!r}{called}",
            hint="end the conversation with the assistant's text to continue, or leave the option out",
        )


def checked_span(given: str | Span) -> Span:
    """Check a continuation of a prompt; raises `PromptError`."""
    span = given if isinstance(given, Span) else Span(text=given) if isinstance(given, str) else None
    if span is None or not isinstance(span.ends, bool) or not (span.text or span.ends):
        raise PromptError(f"got {given!r} as a continuation, expected a text that is not empty, or a Span")
    try:
        return replace(span, text=encodable(span.text))
    except PromptError as error:
        raise PromptError(f"of a continuation, {error.message}", hint=error.hint) from error


def checked_cancel(cancel: threading.Event | None) -> threading.Event:
    """Check `cancel`; None gives a new event."""
    expect(cancel is None or hasattr(cancel, "is_set"), "cancel", cancel, "a threading.Event or None")
    return threading.Event() if cancel is None else cancel
