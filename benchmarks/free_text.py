"""Prompts whose answers are free text, for any models: the sets that the benchmarks with `--models` answer."""

from __future__ import annotations

from collections.abc import Sequence

Prompts = Sequence[str] | Sequence[list[dict[str, str]]]

PROSE = (
    "The lighthouse on the northern cape had been dark for eleven years when the new keeper arrived. She climbed the "
    "stairs with a lantern in one hand and a letter in the other, and at the top she found",
    "Bread rises because yeast turns sugar into gas, and the gas is caught in the dough. A baker who wants a loaf with "
    "large holes should therefore",
    "In the early days of the railway, every town kept its own time. A traveller who left London at noon could arrive "
    "in Bristol and find that the clocks there",
    "There are three reasons why people move from the country to the city. The first reason is",
    "The committee met on Tuesday to discuss the future of the old swimming pool. Several members pointed out that",
    "My grandmother kept bees behind the house. Every spring, before the apple trees bloomed, she would",
)
_SHOTS = (
    "Question: Which gas do plants take in from the air?\nAnswer: They take in carbon dioxide.\n\n"
    "Question: Why do we see lightning before we hear thunder?\nAnswer: Light travels much faster than sound.\n\n"
)
QUESTIONS = (
    "Why is the sky blue?",
    "What does a thermometer measure, and how does it work?",
    "Why do ships made of steel float?",
    "How does soap remove grease from a plate?",
    "Why do leaves turn red and yellow in autumn?",
    "What causes the tides of the sea?",
)
REQUESTS = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain in a few sentences why steel ships float.",
    "What should I think about before I move from the country to the city?",
    "Describe how a baker makes bread, step by step.",
    "Write a polite letter to a neighbour whose dog barks at night.",
    "Why did towns agree on a common time when railways were built?",
)


def prompt_sets(n: int, *, chat: bool, only: Sequence[str] | None = None) -> dict[str, Prompts]:
    """The first n prompts of all sets, or of some: conversations, or plain texts to continue."""
    sets: dict[str, Prompts] = {
        "prose": PROSE[:n],
        "few-shot": [few_shot(question) for question in QUESTIONS[:n]],
    }
    if chat:
        sets = {"requests": [[{"role": "user", "content": text}] for text in REQUESTS[:n]]}
    if unknown := set(only or ()) - set(sets):
        raise SystemExit(f"got unknown sets of prompts {sorted(unknown)}, expected some of {list(sets)}")
    return {name: prompts for name, prompts in sets.items() if only is None or name in only}


def few_shot(question: str) -> str:
    """A plain text that shows two answers of one line each, then asks."""
    return f"{_SHOTS}Question: {question}\nAnswer:"
