"""`Trace`: every decision behind an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adafuse_core.checks import expect
from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Round
from adafuse_core.trace.markup import element, fragment, written
from adafuse_core.trace.view import legend, round_list, style, words

SUFFIXES = (".html", ".json")  # of files that `Trace.save` writes
_EXPECTED = 'a trace, such as {"members": [...], "rounds": [...]}'
_FIELDS: Mapping[str, Any] = {
    "text": str,
    "ends": bool,
    "proposers": Sequence,
    "margins": Mapping,
    "candidates": Sequence,
    "chosen": int,
    "score": int | float | None,
}
_PAGE = "body { margin: 32px auto; max-width: 60rem; padding: 0 16px 40vh; font: 16px/1.5 system-ui, sans-serif; } "
_PAGE += ":root { color-scheme: light dark; }"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Every decision behind one answer, from `Generation.trace`.

    A notebook shows it as the text of the answer, each word in the colour of the member that proposed it. A word that
    has the pointer or the keyboard focus shows its round: candidates, scores, probabilities, margins, and why the
    chosen candidate won.

    Args:
        members: Names of the members, in order.
        rounds: The rounds in order, each as `Round.to_dict()`.
    """

    members: tuple[str, ...]
    rounds: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, rounds: Sequence[Round], members: Sequence[str]) -> Self:
        """The trace of finished rounds."""
        return cls(members=tuple(members), rounds=tuple(played.to_dict() for played in rounds))

    @property
    def text(self) -> str:
        """All committed text, with reasoning and tool calls as the members wrote them."""
        return "".join(played["text"] for played in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"members": list(self.members), "rounds": [dict(played) for played in self.rounds]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The trace in `to_dict()`, or in the full trace of an answer from LangChain or LlamaIndex.

        Args:
            values: `rounds`, and `members`. Without `members`, they are the names in the rounds.

        Raises:
            ConfigError: The values are no trace.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("rounds"), list):
            hint = 'ask the adapter for trace="full"' if isinstance(values, Mapping) and "words" in values else None
            raise ConfigError(f"got {_short(values)}, expected {_EXPECTED}", hint=hint)
        for played in values["rounds"]:
            _check_round(played)
        members = values.get("members")
        if members is None:
            members = _named(values["rounds"])
        if not isinstance(members, list | tuple) or not all(isinstance(name, str) for name in members):
            raise ConfigError(f"got members={_short(members)}, expected a list of names")
        return cls(members=tuple(members), rounds=tuple(values["rounds"]))

    def to_json(self) -> str:
        """JSON that `from_json` reads."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The trace in the JSON of `to_json()`.

        Raises:
            ConfigError: The text is not JSON, or no trace.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"got a text that is not JSON ({error}), expected {_EXPECTED}") from None
        return cls.from_dict(values)

    def save(self, path: str | Path, *, title: str = "AdaFuse trace") -> None:
        """Write the trace to a file.

        Args:
            path: A file that ends in `.html`, for one page without scripts or outside assets, or in `.json`.
            title: Heading of the page, such as the question.

        Raises:
            ConfigError: The suffix is another one, or the file can't be written.
        """
        suffix = Path(path).suffix
        expect(isinstance(title, str), "title", title, "a text")
        if suffix not in SUFFIXES:
            raise ConfigError(f"got the path {str(path)!r}, expected one that ends in {' or '.join(SUFFIXES)}")
        try:
            Path(path).write_bytes(self._page(title) if suffix == ".html" else self.to_json().encode())
        except OSError as error:
            raise ConfigError(f"can't write the trace {str(path)!r}: {error.strerror}") from error

    def _repr_html_(self) -> str:
        """The trace in a notebook."""
        return fragment(
            element(
                "div",
                element("style", style()),
                legend(self.members),
                words(self.rounds, self.members),
                class_="adafuse-trace",
            )
        )

    def _page(self, title: str) -> bytes:
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", title),
            element("style", _PAGE + style()),
        )
        shown = element(
            "main",
            element("h1", title),
            legend(self.members),
            words(self.rounds, self.members),
            element("h2", "All rounds"),
            round_list(self.rounds, self.members),
            class_="adafuse-trace",
        )
        return written(element("html", head, element("body", shown), lang="en"))


def _check_round(played: Any) -> None:
    right = all(_is(played, name, kind) for name, kind in _FIELDS.items()) and all(
        _is(each, "text", str) and _is(each, "proposers", Sequence) for each in played["candidates"]
    )
    if not right:
        raise ConfigError(f"got the round {_short(played)}, expected the fields {', '.join(_FIELDS)} as of `to_dict()`")


def _is(values: Any, name: str, kind: Any) -> bool:
    return isinstance(values, Mapping) and name in values and isinstance(values[name], kind)


def _named(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """The members in the rounds, in order."""
    return list(dict.fromkeys(name for played in rounds for name in (*played["margins"], *played["proposers"])))


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
