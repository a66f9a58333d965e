"""TriviaQA without passages: short answers to questions of a quiz."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Example, Task

TRIVIAQA = Task(
    name="triviaqa",
    title="TriviaQA",
    files=("triviaqa.jsonl", "trivia_qa.jsonl"),
    instruction="Answer each question of this quiz with a name, a number or a short phrase, and with nothing else.",
    examples=(
        Example(question="Which planet of the solar system has the most prominent rings?", answer="Saturn"),
        Example(question="Who wrote the play Hamlet?", answer="William Shakespeare"),
        Example(question="What is the chemical symbol of gold?", answer="Au"),
        Example(question="In which city does the river Spree flow past the parliament?", answer="Berlin"),
        Example(question="How many players of one team are on the field in a football match?", answer="Eleven"),
    ),
    metrics=("exact", "f1", "lenient"),
    max_new_tokens=32,
    shots=5,
)
