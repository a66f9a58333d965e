"""Turns calls that contain text written by AdaFuse into invalid calls, so that applications do not run them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.events import Event, ToolCallDelta, ToolCallDone


class UnsoundCalls:
    """Turns calls that contain library text into invalid calls.

    The arguments of an invalid call are the members' text. If the library closed a string or list and the members
    continued after it, the closing text is part of the arguments.
    """

    def __init__(self) -> None:
        self._library = ""  # library text in the current call
        self._waiting: list[ToolCallDelta] = []  # deltas of library text, yielded only if the members continue
        self._yielded: list[ToolCallDelta] = []  # deltas of the current call

    def checked(self, events: Iterator[Event], *, library: str = "") -> Iterator[Event]:
        """Check the events of a piece of text.

        Args:
            events: The parsed events.
            library: The piece of text if the library wrote it, else empty.
        """
        self._library += library
        for event in events:
            if isinstance(event, ToolCallDone):
                yield self._checked_call(event)
            elif not isinstance(event, ToolCallDelta):
                yield event
            elif library:
                self._waiting.append(event)
            else:
                deltas = [*self._waiting, event]
                self._waiting, self._yielded = [], self._yielded + deltas
                yield from deltas

    def _checked_call(self, done: ToolCallDone) -> ToolCallDone:
        if self._library and isinstance(done.call, ToolCall):
            error = (
                f"the token budget or a context window ended inside this call, and AdaFuse wrote {self._library!r} in "
                "the members' place. Hint: raise max_new_tokens, or accept such calls with complete_calls=True"
            )
            name = None if done.call.name in self._library else done.call.name
            arguments = "".join(delta.arguments for delta in self._yielded)
            done = replace(done, call=InvalidToolCall(name=name, arguments=arguments, id=done.call.id, error=error))
        self._library, self._waiting, self._yielded = "", [], []
        return done
