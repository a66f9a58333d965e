"""FLORES, German to English."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Example, Task

PAIRS = (
    (
        "Der Zug nach Norden fährt heute wegen des Sturms erst am Nachmittag ab.",
        "Because of the storm, the train to the north does not leave until the afternoon today.",
    ),
    (
        "Forscherinnen haben in den Alpen eine Blume gefunden, die man seit hundert Jahren für ausgestorben hielt.",
        "In the Alps, researchers have found a flower that had been thought extinct for a hundred years.",
    ),
    (
        "Der Bürgermeister sagte, dass die neue Brücke billiger geworden sei als geplant.",
        "The mayor said that the new bridge had become cheaper than planned.",
    ),
)

FLORES_DE_EN = Task(
    name="flores_de_en",
    title="FLORES, German to English",
    files=("flores_de_en.jsonl",),
    instruction="Translate each German sentence into English.",
    examples=tuple(Example(question=german, answer=english) for german, english in PAIRS),
    metrics=("chrf", "bleu"),
    max_new_tokens=128,
    shots=3,
    question_label="German",
    answer_label="English",
)
