"""The questions that the demo asks, and what counts as right. They are frozen in `questions.jsonl`, one a line.

The file is made by `training/demo_questions.py`, which is not part of the package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FILE = Path(__file__).parent / "questions.jsonl"

Part = Literal["side by side", "quiz"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and its right answer.

    Attributes:
        part: Where in the demo it is asked.
        kind: What it takes: `"fact"`, `"composed"` (two facts) or `"translation"`.
        question: What the user says.
        answer: The right answer as one sentence.
    """

    part: Part
    kind: str
    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a conversation."""
        return [{"role": "user", "content": self.question}]

    def is_right(self, text: str) -> bool:
        """Whether a text contains the answer; capitals, blanks and the last full stop don't matter."""
        return _plain(self.answer) in _plain(text)


def questions(part: Part) -> list[Question]:
    """All questions of one part of the demo, in order."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [question for line in lines if (question := Question(**json.loads(line))).part == part]


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .!").split())
