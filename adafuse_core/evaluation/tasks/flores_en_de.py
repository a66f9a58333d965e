"""FLORES, English to German."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Example, Task
from adafuse_core.evaluation.tasks.flores_de_en import PAIRS

FLORES_EN_DE = Task(
    name="flores_en_de",
    title="FLORES, English to German",
    files=("flores_en_de.jsonl",),
    instruction="Translate each English sentence into German.",
    examples=tuple(Example(question=english, answer=german) for german, english in PAIRS),
    metrics=("chrf", "bleu"),
    max_new_tokens=128,
    shots=3,
    question_label="English",
    answer_label="German",
)
