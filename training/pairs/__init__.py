"""Pairs of small models for judging a rule of fusion, and the questions to judge it by.

What a rule is worth depends on the members. `"small"` are the models of the package: each is uncertain about what the
other knows. In `"confident"` each is confidently wrong about it, and in `"unequal"` one member is worse at everything.
`train` trains the members that the package doesn't contain; `README.md` says what they know. Importing this package
doesn't import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.curriculum import Member, Question
from training.curriculum.held_out import mixed_questions

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models and the questions that they are asked together.

    Attributes:
        models: What `Ensemble` loads: a name or a folder of each member. The weights of the folders are bfloat16; load
            them as float32.
        half: The half of the facts and nouns that all questions are about, or None for both halves.
    """

    models: tuple[str, str]
    half: Member | None = None

    def questions(self, n: int = 600, seed: int = 0) -> list[Question]:
        """Held-out questions in turn: a fact, two facts in one question (`"composed"`), a translation.

        Args:
            n: Number of questions, a third of each kind.
            seed: Random seed.

        Returns:
            Questions with `messages`, the expected `answer`, and `kind`: `"fact"`, `"composed"` or `"translation"`.
        """
        return mixed_questions(n, seed, self.half)


PAIRS: Mapping[str, Pair] = {
    "small": Pair(models=("small:aspen", "small:birch")),
    "confident": Pair(models=(str(FOLDER / "confident" / "aspen"), str(FOLDER / "confident" / "birch"))),
    "unequal": Pair(models=("small:aspen", str(FOLDER / "unequal" / "weak")), half="aspen"),
}
