"""The trace of an answer: what the answer reports of the rounds that produced it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import StrictBool

from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Round

TraceLevel = Literal["summary", "full"] | StrictBool


class TraceBuilder:
    """Builds the trace that an adapter reports with one answer, as plain JSON.

    A summary has `words` and `members`. Each row of `words` is a round: its `text`, the indices in `members` of the
    members that proposed the text (`by`), and the number of candidates (`of`). `members` lists names in order of
    appearance. A full trace has `rounds`, each as `Round.to_dict()`. Partial traces add up (lists are concatenated) to
    the trace of the whole answer.
    `adafuse_core.Trace.from_dict` reads a full trace.

    Args:
        level: `"summary"`, `"full"` (or True), or False for no trace.
        logprobs: Whether the call asked for log-probabilities. If so, the rows of a summary contain them.

    Raises:
        ConfigError: The level is unknown, or log-probabilities were asked for without a trace.
    """

    def __init__(self, level: TraceLevel, *, logprobs: bool = False) -> None:
        if not (isinstance(level, bool) or level in ("summary", "full")):
            raise ConfigError(f"got trace={level!r}, expected 'summary', 'full' or False", hint="True means 'full'")
        if logprobs and not level:
            raise ConfigError(
                "got logprobs=True with trace=False, but log-probabilities are part of the trace",
                hint="set trace='summary'",
            )
        self._level, self._logprobs = level, logprobs
        self._all: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}

    @property
    def members(self) -> list[str]:
        """The members that a summary has named so far."""
        return list(self._all.get("members", ()))

    def add(self, played: Round) -> None:
        """Add a finished round."""
        if self._level == "summary":
            self._summarize(played)
        elif self._level:
            self._append("rounds", played.to_dict())

    def take_new(self) -> dict[str, Any]:
        """The part of the trace that was added since the previous call; its lists of rounds or words may be empty."""
        new, self._new = self._new, {}
        return self._empty() | new

    def so_far(self) -> dict[str, Any]:
        """The trace of all rounds so far."""
        return self._empty() | {name: list(values) for name, values in self._all.items()}

    def _empty(self) -> dict[str, Any]:
        return {"words" if self._level == "summary" else "rounds": []} if self._level else {}

    def _summarize(self, played: Round) -> None:
        proposers = played.proposers
        for name in proposers:
            if name not in self.members:
                self._append("members", name)
        by = [self.members.index(name) for name in proposers]
        row = {"text": played.span.text, "by": by, "of": len(played.candidates)}
        self._append("words", row | ({"logprobs": played.to_dict()["logprobs"]} if self._logprobs else {}))

    def _append(self, name: str, value: Any) -> None:
        self._all.setdefault(name, []).append(value)
        self._new.setdefault(name, []).append(value)
