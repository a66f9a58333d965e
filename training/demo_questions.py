"""Freeze the questions of `adafuse demo`: `python -m training.demo_questions` writes the file and measures the choice.

The quiz is the first 300 questions of the seeded generator, none left out. The side-by-side questions are chosen: they
are to show what fusing does, so each is one that the ensemble answers right and neither member does alone. They were
picked by hand among 40 candidates, as easy to follow; `measured` counts how many there were to pick from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from adafuse_core import Ensemble
from adafuse_integrations.cli.questions import FILE, Part, Question
from training.curriculum.held_out import mixed_questions

QUIZ = 300
SIDE_BY_SIDE = (22, 29, 4, 15)  # places among the candidates


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How many of the candidates are answered right.

    Attributes:
        asked: All candidates.
        right: Right by the ensemble.
        alone: Right by each member alone.
        only_together: Places of those that the ensemble answers right and no member does alone.
    """

    asked: int
    right: int
    alone: dict[str, int]
    only_together: tuple[int, ...]


def main() -> None:
    """Write the file and print what the candidates were."""
    FILE.write_text(frozen(), encoding="utf-8")
    print(measured())


def frozen() -> str:
    """The content of the file."""
    candidates = list(_asked("side by side", 60, seed=11))
    chosen = [candidates[place] for place in SIDE_BY_SIDE]
    rows = [*chosen, *_asked("quiz", QUIZ, seed=29)]
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def measured() -> Measured:
    """Ask the shipped models, together and each alone, all candidates for the side-by-side part."""
    candidates = list(_asked("side by side", 60, seed=11))
    ensemble = Ensemble()
    together = _marks(ensemble, candidates)
    alone = {
        name: _marks(Ensemble(ensemble.config, strategy="single", member=name), candidates) for name in ensemble.names
    }
    somebody = [any(marks) for marks in zip(*alone.values(), strict=True)]
    return Measured(
        asked=len(candidates),
        right=sum(together),
        alone={name: sum(marks) for name, marks in alone.items()},
        only_together=tuple(place for place, mark in enumerate(together) if mark and not somebody[place]),
    )


def _marks(contestant: Ensemble, candidates: list[Question]) -> list[bool]:
    return [one.is_right(contestant.generate(one.messages, max_new_tokens=64).text) for one in candidates]


def _asked(part: Part, n: int, seed: int) -> Iterator[Question]:
    """The first questions of the generator; side by side, single facts are left out, as one member knows each."""
    for made in mixed_questions(n, seed):
        if part == "quiz" or made.kind != "fact":
            (message,) = made.messages
            yield Question(part=part, kind=made.kind, question=message["content"], answer=made.answer)


if __name__ == "__main__":
    main()
