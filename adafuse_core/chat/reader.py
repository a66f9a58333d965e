"""Parses an answer into thoughts, text and tool calls, incrementally."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adafuse_core.chat.call_reader import CallReader
from adafuse_core.chat.thoughts import THINK, ThoughtReader, ThoughtTags
from adafuse_core.chat.unsound_calls import UnsoundCalls
from adafuse_core.events import Event, Finished, ReasoningDelta, RoundDone, TextDelta


def read_answer(
    events: Iterator[Event],
    *,
    calls: CallReader | None = None,
    thinking: bool = False,
    tags: ThoughtTags | None = THINK,
    complete_calls: bool = False,
) -> Iterator[Event]:
    """Parse the `TextDelta`s of an answer into events for thoughts, text and tool calls.

    Args:
        events: The events of `decode`.
        calls: Parser for calls; None if no tool may be called.
        thinking: Whether the answer starts inside a thought that the prompt opened.
        tags: Tags around a thought; None if thoughts count as text.
        complete_calls: Whether calls that contain library text are valid.
    """
    thoughts = None if tags is None else ThoughtReader(tags, inside=thinking)
    unsound = None if complete_calls else UnsoundCalls()

    def text_events(text: str, *, last: bool = False, library: bool = False) -> Iterator[Event]:
        thought, text = ("", text) if thoughts is None else thoughts.read(text, last=last)
        if thought:
            yield ReasoningDelta(text=thought)
        if calls is None:
            yield from [TextDelta(text=text)] if text else []
        elif unsound is None:
            yield from calls.read(text, last=last)
        else:
            yield from unsound.checked(calls.read(text, last=last), library=text if library else "")

    for event in events:
        if isinstance(event, TextDelta):
            yield from text_events(event.text)
        elif isinstance(event, Finished):
            yield from text_events("", last=True)
            called = calls is not None and calls.count > 0
            yield replace(event, reason="tool_calls") if called and event.reason == "stop" else event
        else:
            if isinstance(event, RoundDone) and (library := event.round.library_text):
                yield from () if calls is None or unsound is None else unsound.checked(calls.reveal())
                yield from text_events(library.text, library=True)
            yield event
