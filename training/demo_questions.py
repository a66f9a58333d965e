"""Write the questions of `adafuse demo` to a file and evaluate them: `python -m training.demo_questions`.

The quiz is the first 300 questions of the seeded generator, without selection. The side-by-side questions show the
effect of fusion: the ensemble answers each of them correctly, and neither member does alone. They were picked by hand
from 40 candidates, for being easy to follow; `measured` counts the candidates with that property.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from adafuse_core import Ensemble
from adafuse_integrations.cli.questions import FILE, Part, Question
from training.curriculum.held_out import mixed_questions

QUIZ = 300
SIDE_BY_SIDE = (22, 29, 4, 15)  # indices of the chosen candidates


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of candidates and of correct answers."""

    asked: int  # all candidates
    right: int  # by the ensemble
    alone: dict[str, int]  # by each member alone
    only_together: tuple[int, ...]  # indices of the candidates that only the ensemble answers correctly


def main() -> None:
    """Write the file and print the evaluation of the candidates."""
    FILE.write_text(frozen(), encoding="utf-8")
    print(measured())


def frozen() -> str:
    """The content of the file."""
    candidates = list(_questions("side by side", 60, seed=11))
    chosen = [candidates[index] for index in SIDE_BY_SIDE]
    rows = [*chosen, *_questions("quiz", QUIZ, seed=29)]
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def measured() -> Measured:
    """Evaluate the shipped models, together and alone, on all candidates for the side-by-side questions."""
    candidates = list(_questions("side by side", 60, seed=11))
    ensemble = Ensemble()
    together = _correct(ensemble, candidates)
    alone = {
        name: _correct(Ensemble(ensemble.config, strategy="single", member=name), candidates) for name in ensemble.names
    }
    any_alone = [any(correct) for correct in zip(*alone.values(), strict=True)]
    return Measured(
        asked=len(candidates),
        right=sum(together),
        alone={name: sum(correct) for name, correct in alone.items()},
        only_together=tuple(i for i, correct in enumerate(together) if correct and not any_alone[i]),
    )


def _correct(ensemble: Ensemble, candidates: list[Question]) -> list[bool]:
    return [each.is_right(ensemble.generate(each.messages, max_new_tokens=64).text) for each in candidates]


def _questions(part: Part, n: int, seed: int) -> Iterator[Question]:
    """The first questions of the generator; side by side without single facts, since one member knows each of them."""
    for made in mixed_questions(n, seed):
        if part == "quiz" or made.kind != "fact":
            (message,) = made.messages
            yield Question(part=part, kind=made.kind, question=message["content"], answer=made.answer)


if __name__ == "__main__":
    main()
