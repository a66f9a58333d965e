"""Parses tool calls in the text of an answer, incrementally."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.chat.dialects.base import JSON, Dialect, quoted
from adafuse_core.chat.written_calls import WrittenCalls
from adafuse_core.events import Event, TextDelta, ToolCallDelta, ToolCallDone
from adafuse_core.stopping import held_back

logger = logging.getLogger(__name__)


@dataclass
class _Open:
    """An incomplete call."""

    id: str
    name: str
    text: str = ""  # of the arguments so far
    shown: str = ""  # JSON of the arguments so far
    held: bool = False  # whether no event is yielded before the call is complete, as it may repeat an earlier one


class CallReader:
    """Parses calls by the fixed texts of a dialect. The grammar enforces these texts, so a call can only be cut
    off, never malformed.

    A call that repeats an earlier one of the same answer, with equal arguments, is dropped.

    Args:
        dialect: Format of calls.
        names: Names of the callable tools.
        written: Parser for answers that consist of calls in another format; None if such answers are text.

    Attributes:
        repeated: Whether a call was repeated. Later text is ignored, so the answer should end.
    """

    def __init__(self, dialect: Dialect, names: Sequence[str], written: WrittenCalls | None = None) -> None:
        self._dialect = dialect
        self._written = written
        self._names = sorted(names, key=len, reverse=True)
        self._heads = tuple(
            f"{dialect.head}{dialect.begin}{quoted(name)}{middle}" for name in names for middle in dialect.middles
        )
        self._done: list[ToolCall] = []
        self._in_calls = False  # after the start of the first call; no text follows
        self._no_text = True  # no text was yielded
        self._open: _Open | None = None
        self._held = ""  # text that is not classified yet
        self.repeated = False

    @property
    def count(self) -> int:
        """Number of complete calls."""
        return len(self._done)

    def read(self, text: str, *, last: bool) -> Iterator[Event]:
        """Parse new text of the answer; `last` marks its end."""
        if self.repeated:
            return
        self._held += text
        if not self._in_calls and (yield from self._read_whole(last)):
            return
        if not self._in_calls and (shown := self._text_before(last)):
            yield TextDelta(text=shown)
        while self._in_calls:
            if self._open is None and not (yield from self._read_name()):
                break
            if not (yield from self._read_arguments()):
                break
        if last and self._in_calls and not self.repeated:
            yield from self._report_incomplete()

    def reveal(self) -> Iterator[Event]:
        """Yield the delta of a held-back call. Call it before text that AdaFuse wrote, which can't repeat a call."""
        if self._open is not None and self._open.held:
            call, self._open.held = self._open, False
            yield ToolCallDelta(index=self.count, id=call.id, name=call.name, arguments=call.shown)

    def _read_whole(self, last: bool) -> Generator[Event, None, bool]:
        """Parse calls in another format; returns whether the answer consists of such calls, or may still become so."""
        written, text = self._written, self._held
        if written is None or not self._no_text or self._start(last) >= 0 or not written.may_become(text):
            return False
        if not last and not written.repeats_itself(text):
            return True
        calls = written.read(text)
        for call in calls:
            yield from self._complete(replace(call, id=_new_id()), shown=False)
        self._held = "" if calls else text
        return bool(calls)

    def _text_before(self, last: bool) -> str:
        """Remove and return the held text that can't belong to a call."""
        if (at := self._start(last)) >= 0:
            self._in_calls = True
            text, self._held = self._held[:at], self._held[at:]
            return text.rstrip("\n")
        keep = 0 if last else self._undecided()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._no_text = self._no_text and not text
        return text

    def _start(self, last: bool) -> int:
        """Index of the first call in the held text; -1 if there is no call, or more text is needed to tell."""
        if self._dialect.after_text:
            return self._held.find(self._dialect.trigger)
        body = self._held.lstrip("\n")
        cut = last and body.startswith(self._dialect.trigger) and any(head.startswith(body) for head in self._heads)
        called = self._no_text and (cut or body.startswith(self._heads))
        return len(self._held) - len(body) if called else -1

    def _undecided(self) -> int:
        """Number of characters at the end that may belong to a call, including line ends before it."""
        if not self._dialect.after_text:
            body = self._held.lstrip("\n")
            return len(self._held) if self._no_text and any(head.startswith(body) for head in self._heads) else 0
        keep = held_back(self._held, (self._dialect.trigger,))
        body = self._held[: len(self._held) - keep]
        return keep + len(body) - len(body.rstrip("\n"))

    def _read_name(self) -> Generator[Event, None, bool]:
        """Parse the next call up to its arguments; returns whether they were reached."""
        start = self._held.find(self._dialect.begin)
        body = self._held[start + len(self._dialect.begin) :]
        # Compare name and middle as a whole: a name may contain the text of a middle.
        heads = {quoted(name) + middle: name for name in self._names for middle in self._dialect.middles}
        head = next((head for head in heads if body.startswith(head)), None)
        if start < 0 or head is None:
            return False
        name = heads[head]
        call = self._open = _Open(id=_new_id(), name=name, held=any(done.name == name for done in self._done))
        self._held = body.removeprefix(head)
        if not call.held:
            yield ToolCallDelta(index=self.count, id=call.id, name=name, arguments="")
        return True

    def _read_arguments(self) -> Generator[Event, None, bool]:
        """Parse arguments; returns whether they are complete and another call may follow."""
        call = self._open
        assert call is not None
        text = call.text + self._held
        arguments, end, as_json = self._dialect.arguments.read(text)
        call.text, self._held = text[:end], text[end:]
        if not call.held and (piece := as_json[len(call.shown) :]):
            yield ToolCallDelta(index=self.count, id=None, name=None, arguments=piece)
        call.shown = as_json
        if arguments is None:
            return False
        yield from self._complete(ToolCall(name=call.name, arguments=arguments, id=call.id), shown=not call.held)
        self._open = None
        return not self.repeated

    def _complete(self, call: ToolCall, *, shown: bool) -> Iterator[Event]:
        """Report a complete call unless it repeats an earlier one; `shown` means that its deltas were yielded."""
        if not shown and any(call.repeats(done) for done in self._done):
            logger.info("the answer repeats its call of %r: it ends there, and the repeated call is dropped", call.name)
            self.repeated, self._held = True, ""
        if self.repeated:
            return
        if not shown:
            yield ToolCallDelta(index=self.count, id=call.id, name=call.name, arguments=JSON.write(call.arguments))
        yield ToolCallDone(index=self.count, call=call)
        self._done.append(call)

    def _report_incomplete(self) -> Iterator[Event]:
        """Report the call that the end of the answer cut off, if any."""
        call, error = self._open, "the answer ended inside this call"
        if call is not None:
            invalid = InvalidToolCall(name=call.name, arguments=call.text, id=call.id, error=error)
            if call.held:
                yield ToolCallDelta(index=self.count, id=call.id, name=call.name, arguments=call.shown)
        elif rest := self._next_call():
            invalid = InvalidToolCall(name=None, arguments=rest, id=_new_id(), error=error)
        else:
            return
        yield ToolCallDone(index=self.count, call=invalid)

    def _next_call(self) -> str:
        """The held text of a next call, without the fixed text before it."""
        if self.count == 0:
            return self._held
        rest = _without_prefix(self._dialect.end, self._held)
        return "" if self._dialect.tail.startswith(rest) else _without_prefix(self._dialect.between or "", rest)


def _without_prefix(prefix: str, text: str) -> str:
    """The text after a prefix; empty if the text is a part of the prefix."""
    return "" if prefix.startswith(text) else text.removeprefix(prefix)


def _new_id() -> str:
    return uuid.uuid4().hex[:9]  # some templates require nine characters
