"""The questions of the demo, and the check of their answers. The file `questions.jsonl` has one question per line.

The script `training/demo_questions.py`, which is not part of the package, wrote the file.
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
    """A question and its correct answer.

    Attributes:
        part: Part of the demo that asks the question.
        kind: Required knowledge: `"fact"`, `"composed"` (two facts) or `"translation"`.
        question: Text of the user's message.
        answer: Correct answer as one sentence.
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
        """Whether a text contains the answer, regardless of case, blanks and a final full stop."""
        return _normalized(self.answer) in _normalized(text)


def questions(part: Part) -> list[Question]:
    """The questions of a part of the demo, in order."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [question for line in lines if (question := Question(**json.loads(line))).part == part]


def _normalized(text: str) -> str:
    return " ".join(text.lower().strip(" .!").split())
