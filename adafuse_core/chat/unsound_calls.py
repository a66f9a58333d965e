"""Calls that hold text of the library's own: no member meant them as they stand, so no application may run them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.events import Event, ToolCallDelta, ToolCallDone


class UnsoundCalls:
    """Turns calls in which the library wrote something into invalid ones.

    The arguments of such a call are what the members wrote. Where the library only ended a string or a list and the
    members wrote on after it, that end is part of the arguments.
    """

    def __init__(self) -> None:
        self._library = ""  # what the library wrote in the call that is being written
        self._waiting: list[ToolCallDelta] = []  # pieces of that, told only if the members write on
        self._told: list[ToolCallDelta] = []  # pieces of the call so far

    def checked(self, events: Iterator[Event], *, library: str = "") -> Iterator[Event]:
        """The events of a piece of text.

        Args:
            events: What was read of the piece.
            library: The piece itself if the library wrote it, else nothing.
        """
        self._library += library
        for event in events:
            if isinstance(event, ToolCallDone):
                yield self._ended(event)
            elif not isinstance(event, ToolCallDelta):
                yield event
            elif library:
                self._waiting.append(event)
            else:
                pieces = [*self._waiting, event]
                self._waiting, self._told = [], self._told + pieces
                yield from pieces

    def _ended(self, done: ToolCallDone) -> ToolCallDone:
        if self._library and isinstance(done.call, ToolCall):
            error = (
                f"the token budget or a context window ended inside this call, and AdaFuse wrote {self._library!r} in "
                "the members' place. Hint: raise max_new_tokens, or accept such calls by complete_calls=True"
            )
            name = None if done.call.name in self._library else done.call.name
            arguments = "".join(piece.arguments for piece in self._told)
            done = replace(done, call=InvalidToolCall(name=name, arguments=arguments, id=done.call.id, error=error))
        self._library, self._waiting, self._told = "", [], []
        return done
