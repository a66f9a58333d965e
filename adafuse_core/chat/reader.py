"""Reads an answer as it is written: thoughts, text, and tool calls, piece by piece."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.chat.dialects.base import Dialect, quoted
from adafuse_core.events import Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallDone
from adafuse_core.stopping import held_back

_THINK, _THOUGHT = "<think>", "</think>"


def read_answer(
    events: Iterator[Event], *, dialect: Dialect | None, names: Sequence[str], thinking: bool
) -> Iterator[Event]:
    """The events of an answer, its text taken apart.

    Args:
        events: With all of the answer as `TextDelta`s.
        dialect: How calls are written; None if there are none.
        names: Of the tools that may be called.
        thinking: Whether the prompt ends with the beginning of a thought. Otherwise an answer may begin with one.
    """
    thoughts, calls = _Thoughts(thinking), None if dialect is None else _Calls(dialect, names)

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
            yield Finished(
                reason="tool_calls" if called and whole else event.reason, stop=event.stop, usage=event.usage
            )
        else:
            yield event


class _Thoughts:
    """Takes a thought off the beginning of an answer; the tags and the line ends beside them belong to neither."""

    def __init__(self, thinking: bool) -> None:
        self._stage = "thought" if thinking else "start"
        self._held = ""

    def read(self, text: str, *, last: bool) -> tuple[str, str]:
        """New text; returns what is surely thought, and what is surely answer."""
        text, self._held = self._held + text, ""
        if self._stage == "start":
            if not last and _THINK.startswith(text.lstrip()[: len(_THINK)]) and len(text.lstrip()) < len(_THINK):
                self._held = text
                return "", ""
            self._stage = "answer"
            if text.lstrip().startswith(_THINK):
                self._stage, text = "opened", text.lstrip()[len(_THINK) :]
        if self._stage == "opened" and (text := text.lstrip("\n")):
            self._stage = "thought"
        thought = ""
        if self._stage == "thought":
            thought, closed, rest = text.partition(_THOUGHT)
            if not closed:
                return self._unclosed(thought, last)
            self._stage, thought, text = "closed", thought.rstrip("\n"), rest
        if self._stage == "closed" and (text := text.lstrip("\n")):
            self._stage = "answer"
        return thought, text if self._stage == "answer" else ""

    def _unclosed(self, text: str, last: bool) -> tuple[str, str]:
        body = text.rstrip("\n") if not last else text
        keep = 0 if last else held_back(text, (_THOUGHT,)) or len(text) - len(body)
        if keep:  # line ends before a tag that has begun
            keep += len(text[:-keep]) - len(text[:-keep].rstrip("\n"))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""


@dataclass
class _Open:
    """The call that is being written."""

    id: str
    name: str
    arguments: str = ""


class _Calls:
    """Follows the fixed text of a dialect. A grammar holds it, so only an early end can spoil a call."""

    def __init__(self, dialect: Dialect, names: Sequence[str]) -> None:
        self._dialect = dialect
        self._heads = tuple(f"{dialect.head}{dialect.begin}{quoted(name)}{dialect.middle}" for name in names)
        self._begun = False  # text is over, calls have begun
        self._fresh = True  # nothing was read before
        self._open: _Open | None = None
        self._held = ""
        self.count = 0

    def read(self, text: str, *, last: bool) -> Iterator[Event]:
        """New text of the answer."""
        self._held += text
        if not self._begun and (shown := self._text_before(last)):
            yield TextDelta(text=shown)
        while self._begun:
            if self._open is None and not (yield from self._begin()):
                break
            if not (yield from self._argue()):
                break
        if last and self._begun:
            yield from self._break_off()

    def _text_before(self, last: bool) -> str:
        """Takes the text that no call can begin in."""
        if (at := self._start(last)) >= 0:
            self._begun = True
            text, self._held = self._held[:at], self._held[at:]
            return text.rstrip("\n")
        keep = 0 if last else self._undecided()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._fresh = self._fresh and not text
        return text

    def _start(self, last: bool) -> int:
        """Where calls begin; -1 if they don't, or that is not decided."""
        if self._dialect.after_text:
            return self._held.find(self._dialect.trigger)
        body = self._held.lstrip("\n")
        cut = last and body.startswith(self._dialect.trigger) and any(head.startswith(body) for head in self._heads)
        called = self._fresh and (cut or body.startswith(self._heads))
        return len(self._held) - len(body) if called else -1

    def _undecided(self) -> int:
        """Characters at the end that may belong to a call. Line ends that lead to one are its own."""
        if not self._dialect.after_text:
            body = self._held.lstrip("\n")
            return len(self._held) if self._fresh and any(head.startswith(body) for head in self._heads) else 0
        keep = held_back(self._held, (self._dialect.trigger,))
        body = self._held[: len(self._held) - keep]
        return keep + len(body) - len(body.rstrip("\n"))

    def _begin(self) -> Generator[Event, None, bool]:
        """Reads up to the arguments of the next call; whether it got there."""
        start = self._held.find(self._dialect.begin)
        name, found, rest = self._held[start + len(self._dialect.begin) :].partition(self._dialect.middle)
        if start < 0 or not found:
            return False
        self._open = _Open(id=_new_id(), name=json.loads(f'"{name}"'))
        self._held = rest
        yield ToolCallDelta(index=self.count, id=self._open.id, name=self._open.name, arguments="")
        return True

    def _argue(self) -> Generator[Event, None, bool]:
        """Reads arguments; whether they are complete."""
        call = self._open
        assert call is not None
        text = call.arguments + self._held
        try:
            arguments, end = json.JSONDecoder().raw_decode(text)
        except ValueError:  # not complete; or a number of thousands of digits
            arguments, end = None, len(text)
        if piece := text[len(call.arguments) : end]:
            yield ToolCallDelta(index=self.count, id=None, name=None, arguments=piece)
        call.arguments, self._held = text[:end], text[end:]
        if arguments is None:
            return False
        yield ToolCallDone(index=self.count, call=ToolCall(name=call.name, arguments=arguments, id=call.id))
        self.count, self._open = self.count + 1, None
        return True

    def _break_off(self) -> Iterator[Event]:
        """What is left of a call that was not finished."""
        call, rest = self._open, self._held
        if call is None and self.count > 0:  # the first thing of another call is what stands between
            rest = _beyond(self._dialect.end, rest)
            rest = "" if self._dialect.tail.startswith(rest) else _beyond(self._dialect.between or "", rest)
        if call is None and not rest:
            return
        name, arguments = (call.name, call.arguments) if call else (None, rest)
        error = "the answer ended inside this call"
        invalid = InvalidToolCall(name=name, arguments=arguments, id=call.id if call else _new_id(), error=error)
        yield ToolCallDone(index=self.count, call=invalid)


def _beyond(fixed: str, text: str) -> str:
    """What of a text goes beyond a fixed beginning; nothing, if it ended inside that."""
    return "" if fixed.startswith(text) else text.removeprefix(fixed)


def _new_id() -> str:
    return uuid.uuid4().hex[:9]  # nine characters: some templates want just that
