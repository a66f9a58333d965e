"""Questions of your own: any JSONL file with `question` and `answer` (or `answers`), and optionally `context`."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Example, Task

JSONL = Task(
    name="jsonl",
    title="questions of a file",
    files=("questions.jsonl",),
    instruction="Answer each question briefly, and with nothing else.",
    examples=(
        Example(question="What do bees make from nectar?", answer="honey"),
        Example(question="How many days does a leap year have?", answer="366"),
        Example(question="Which language is spoken in Brazil?", answer="Portuguese"),
    ),
    metrics=("exact", "f1", "lenient"),
    max_new_tokens=64,
    shots=3,
)
