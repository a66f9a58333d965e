"""Natural Questions: short answers to questions that people typed into a search engine."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Example, Task

NQ = Task(
    name="nq",
    title="Natural Questions",
    files=("nq.jsonl", "naturalquestions.jsonl", "natural_questions.jsonl"),
    instruction="Answer each question with a name, a number or a short phrase, and with nothing else.",
    examples=(
        Example(question="who painted the ceiling of the sistine chapel", answer="Michelangelo"),
        Example(question="how many strings does a violin have", answer="four"),
        Example(question="what is the longest river in south america", answer="the Amazon"),
        Example(question="when did the berlin wall come down", answer="9 November 1989"),
        Example(question="where is the tallest mountain of africa", answer="Tanzania"),
    ),
    metrics=("exact", "f1", "lenient"),
    max_new_tokens=32,
    shots=5,
)
