"""Takes an answer apart while it is written: thoughts, text, and tool calls, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adafuse_core.chat.call_reader import CallReader
from adafuse_core.chat.thoughts import THINK, ThoughtReader, ThoughtTags
from adafuse_core.events import Event, Finished, ReasoningDelta, TextDelta


def read_answer(
    events: Iterator[Event],
    *,
    calls: CallReader | None,
    thinking: bool,
    tags: ThoughtTags = THINK,
) -> Iterator[Event]:
    """The events of an answer, its text taken apart.

    Args:
        events: With all of the answer as `TextDelta`s.
        calls: Finds calls; None if nothing may be called.
        thinking: Whether the prompt ends with the beginning of a thought. Otherwise an answer may begin with one.
        tags: Around a thought.
    """
    thoughts = ThoughtReader(tags, inside=thinking)

    def text_events(text: str, *, last: bool) -> Iterator[Event]:
        thought, text = thoughts.read(text, last=last)
        if thought:
            yield ReasoningDelta(text=thought)
        if calls is not None:
            yield from calls.read(text, last=last)
        elif text:
            yield TextDelta(text=text)

    for event in events:
        if isinstance(event, TextDelta):
            yield from text_events(event.text, last=False)
        elif isinstance(event, Finished):
            yield from text_events("", last=True)
            called = calls is not None and calls.count > 0
            whole = event.reason == "stop" and event.stop is None
            yield replace(event, reason="tool_calls") if called and whole else event
        else:
            yield event
