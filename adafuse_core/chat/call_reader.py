"""Finds tool calls in an answer while it is written."""

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
    """The call that is being written."""

    id: str
    name: str
    text: str = ""  # of the arguments, as far as it was written
    shown: str = ""  # JSON of the arguments that was yielded
    held: bool = False  # nothing is yielded before the call is complete: it may repeat another one


class CallReader:
    """Finds calls by the fixed text of a dialect. The grammar ensures that text, so only an early end spoils a call.

    A call that was made before in the same answer, with equal arguments, is dropped.

    Args:
        dialect: How calls are written.
        names: Of the tools that may be called.
        written: Reads answers that are wholly calls in another form; None if such answers are text.

    Attributes:
        repeated: Whether a call was repeated: what follows is not read, so the answer should end.
    """

    def __init__(self, dialect: Dialect, names: Sequence[str], written: WrittenCalls | None = None) -> None:
        self._dialect = dialect
        self._written = written
        self._names = sorted(names, key=len, reverse=True)
        self._heads = tuple(
            f"{dialect.head}{dialect.begin}{quoted(name)}{middle}" for name in names for middle in dialect.middles
        )
        self._made: list[ToolCall] = []
        self._begun = False  # the first call was found: no text follows
        self._fresh = True  # no text was yielded
        self._open: _Open | None = None
        self._held = ""  # text that is not decided yet
        self.repeated = False

    @property
    def count(self) -> int:
        """How many calls the answer made."""
        return len(self._made)

    def read(self, text: str, *, last: bool) -> Iterator[Event]:
        """Take new text of the answer."""
        if self.repeated:
            return
        self._held += text
        if not self._begun and (yield from self._read_whole(last)):
            return
        if not self._begun and (shown := self._text_before(last)):
            yield TextDelta(text=shown)
        while self._begun:
            if self._open is None and not (yield from self._begin()):
                break
            if not (yield from self._argue()):
                break
        if last and self._begun and not self.repeated:
            yield from self._break_off()

    def reveal(self) -> Iterator[Event]:
        """Report a held call as far as it was written: what follows is not the members' text, so it repeats nothing."""
        if self._open is not None and self._open.held:
            call, self._open.held = self._open, False
            yield ToolCallDelta(index=self.count, id=call.id, name=call.name, arguments=call.shown)

    def _read_whole(self, last: bool) -> Generator[Event, None, bool]:
        """Read an answer that is wholly calls in another form; returns whether it may be one, so that it is no text."""
        written, text = self._written, self._held
        if written is None or not self._fresh or self._start(last) >= 0 or not written.may_become(text):
            return False
        if not last and not written.repeats_itself(text):
            return True
        calls = written.read(text)
        for call in calls:
            yield from self._done(replace(call, id=_new_id()), shown=False)
        self._held = "" if calls else text
        return bool(calls)

    def _text_before(self, last: bool) -> str:
        """Take the text in which no call can begin."""
        if (at := self._start(last)) >= 0:
            self._begun = True
            text, self._held = self._held[:at], self._held[at:]
            return text.rstrip("\n")
        keep = 0 if last else self._undecided()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._fresh = self._fresh and not text
        return text

    def _start(self, last: bool) -> int:
        """Where calls begin; -1 if no call begins, or if that is not decided yet."""
        if self._dialect.after_text:
            return self._held.find(self._dialect.trigger)
        body = self._held.lstrip("\n")
        cut = last and body.startswith(self._dialect.trigger) and any(head.startswith(body) for head in self._heads)
        called = self._fresh and (cut or body.startswith(self._heads))
        return len(self._held) - len(body) if called else -1

    def _undecided(self) -> int:
        """How many characters at the end may belong to a call. Line ends before a call belong to it."""
        if not self._dialect.after_text:
            body = self._held.lstrip("\n")
            return len(self._held) if self._fresh and any(head.startswith(body) for head in self._heads) else 0
        keep = held_back(self._held, (self._dialect.trigger,))
        body = self._held[: len(self._held) - keep]
        return keep + len(body) - len(body.rstrip("\n"))

    def _begin(self) -> Generator[Event, None, bool]:
        """Read up to the arguments of the next call; returns whether they were reached."""
        start = self._held.find(self._dialect.begin)
        body = self._held[start + len(self._dialect.begin) :]
        middles = self._dialect.middles
        heads = {quoted(name) + middle: name for name in self._names for middle in middles}  # a name may hold a middle
        head = next((head for head in heads if body.startswith(head)), None)
        if start < 0 or head is None:
            return False
        name = heads[head]
        call = self._open = _Open(id=_new_id(), name=name, held=any(made.name == name for made in self._made))
        self._held = body.removeprefix(head)
        if not call.held:
            yield ToolCallDelta(index=self.count, id=call.id, name=name, arguments="")
        return True

    def _argue(self) -> Generator[Event, None, bool]:
        """Read arguments; returns whether they are complete."""
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
        yield from self._done(ToolCall(name=call.name, arguments=arguments, id=call.id), shown=not call.held)
        self._open = None
        return not self.repeated

    def _done(self, call: ToolCall, *, shown: bool) -> Iterator[Event]:
        """Report a complete call, unless it repeats another one; `shown` says whether its pieces were yielded."""
        if not shown and any(call.repeats(made) for made in self._made):
            logger.info("the answer repeats its call of %r: it ends there, and the repeated call is dropped", call.name)
            self.repeated, self._held = True, ""
        if self.repeated:
            return
        if not shown:
            yield ToolCallDelta(index=self.count, id=call.id, name=call.name, arguments=JSON.write(call.arguments))
        yield ToolCallDone(index=self.count, call=call)
        self._made.append(call)

    def _break_off(self) -> Iterator[Event]:
        """Report the call inside which the answer ended, if it did."""
        call, error = self._open, "the answer ended inside this call"
        if call is not None:
            broken = InvalidToolCall(name=call.name, arguments=call.text, id=call.id, error=error)
            if call.held:
                yield ToolCallDelta(index=self.count, id=call.id, name=call.name, arguments=call.shown)
        elif rest := self._beyond_calls():
            broken = InvalidToolCall(name=None, arguments=rest, id=_new_id(), error=error)
        else:
            return
        yield ToolCallDone(index=self.count, call=broken)

    def _beyond_calls(self) -> str:
        """What is held of a next call, without the fixed text between it and the last one."""
        if self.count == 0:
            return self._held
        rest = _beyond(self._dialect.end, self._held)
        return "" if self._dialect.tail.startswith(rest) else _beyond(self._dialect.between or "", rest)


def _beyond(fixed: str, text: str) -> str:
    """A text without its fixed beginning; nothing, if the text ended inside that."""
    return "" if fixed.startswith(text) else text.removeprefix(fixed)


def _new_id() -> str:
    return uuid.uuid4().hex[:9]  # nine characters: some templates want just that
