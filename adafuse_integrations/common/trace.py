"""What answers tell of the rounds that made them: nothing, a line for each, or everything."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import StrictBool

from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Round

TraceLevel = Literal["summary", "full"] | StrictBool
DEFAULT: TraceLevel = "summary"
DESCRIPTION = "What answers tell of each round: a 'summary' (text and proposers), 'full' (all candidates), or False."


class Trace:
    """The trace of one answer, as plain JSON.

    A summary has `words`, one row for each round with its `text`, the places in `members` of those that proposed it
    (`by`), and the number of candidates it was chosen from (`of`); `members` are named as they appear. A full trace has
    `rounds`, each as `Round.to_dict()`. Pieces added up, lists behind lists, are the trace of the whole answer.

    Args:
        level: `"summary"`, `"full"` (or True), or False for none.
        logprobs: Whether log-probabilities were asked for; rows of a summary have them too then.

    Raises:
        ConfigError: The level is none of these, or log-probabilities were asked for where there is no trace.
    """

    def __init__(self, level: TraceLevel, *, logprobs: bool = False) -> None:
        if not (isinstance(level, bool) or level in ("summary", "full")):
            raise ConfigError(f"got trace={level!r}, expected 'summary', 'full' or False", hint="True means 'full'")
        if logprobs and not level:
            raise ConfigError("got logprobs=True with trace=False, which leaves them out", hint="set trace='summary'")
        self._level, self._logprobs = level, logprobs
        self._told: dict[str, list[Any]] = {}
        self._new: dict[str, list[Any]] = {}

    def add(self, played: Round) -> None:
        """Take a round that was decided."""
        if self._level == "summary":
            self._summarize(played)
        elif self._level:
            self._tell("rounds", played.to_dict())

    def news(self) -> dict[str, Any]:
        """What was added since the last call."""
        new, self._new = self._new, {}
        return new

    def whole(self) -> dict[str, Any]:
        """What was added since the beginning."""
        return {name: list(told) for name, told in self._told.items()}

    def _summarize(self, played: Round) -> None:
        proposers = played.proposers
        for name in proposers:
            if name not in self._told.get("members", ()):
                self._tell("members", name)
        by = [self._told["members"].index(name) for name in proposers]
        row = {"text": played.span.text, "by": by, "of": len(played.candidates)}
        self._tell("words", row | ({"logprobs": played.to_dict()["logprobs"]} if self._logprobs else {}))

    def _tell(self, name: str, value: Any) -> None:
        self._told.setdefault(name, []).append(value)
        self._new.setdefault(name, []).append(value)
