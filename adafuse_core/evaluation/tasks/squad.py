"""SQuAD: answers that are copied from a passage."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Example, Task

SQUAD = Task(
    name="squad",
    title="SQuAD",
    files=("squad.jsonl",),
    instruction="Answer each question with the shortest possible words from its passage, and with nothing else.",
    examples=(
        Example(
            context="The lighthouse on the northern cliff was built in 1874 by the engineer Clara Nolan. It is 41 "
            "metres high, and its lamp was lit with whale oil until the harbour got electric light in 1911.",
            question="Who built the lighthouse?",
            answer="Clara Nolan",
        ),
        Example(
            context="Rye bread keeps for longer than wheat bread, because rye binds more water. Bakers in cold regions "
            "therefore baked only every few weeks, and hung the loaves from the ceiling to keep mice away.",
            question="Why did bakers hang the loaves from the ceiling?",
            answer="to keep mice away",
        ),
        Example(
            context="The tram line between the station and the old town opened on 3 May 1902 with six cars. After a "
            "strike in 1920 the town bought the line from its private owner and doubled the number of cars.",
            question="How many cars did the tram line have when it opened?",
            answer="six",
        ),
    ),
    metrics=("exact", "f1", "lenient"),
    max_new_tokens=48,
    shots=3,
    split_context=True,
)
