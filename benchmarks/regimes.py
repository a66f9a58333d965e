"""Prompts and models for answers of which a given share is copied from the prompt.

The cost of an ensemble depends on the confidence of its members, and their confidence on how much of the answer is
in the prompt: nearly all of it when quoting sources or editing a file, half of it in a summary, little in free text.
The shipped models answer in a few words, so they are fine-tuned for one or two minutes on one more skill: quote some
notes of the prompt by number, then add invented notes. The three regimes differ only in the numbers of notes to quote
and to invent. Quoted notes are predictable, invented notes are not.

Texts come from the curriculum of the shipped models. All names in the prompts are held out from both trainings. Prompts
are the first ones of a seeded generator.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from adafuse_core.small_models import NAMES, path
from training.curriculum import reading
from training.curriculum.chats import Chat, Message, assistant, user
from training.curriculum.passages import KINDS

REGIMES = {"confident": (4, 1), "mixed": (2, 2), "unsure": (0, 3)}  # notes to quote, notes to invent
STEPS = 240
RATES = (0.005, 0.001)  # of Muon and AdamW: half and a third of the rates for the shipped models


def prompts(regime: str, n: int, seed: int = 0) -> list[list[Message]]:
    """The first n prompts of a regime."""
    rng = random.Random(f"{regime} {seed}")
    return [_chat(rng, *REGIMES[regime], held_out=True).messages[:-1] for _ in range(n)]


def prompt_of_length(tokens: int, count: Callable[[str], int], seed: int = 0) -> list[Message]:
    """A question about two notes, after enough other sentences for a prompt of about `tokens` tokens.

    Args:
        tokens: Target length.
        count: Counts the tokens of a text.
        seed: Random seed.
    """
    rng = random.Random(f"length {seed}")
    asked = _chat(rng, 2, 1, held_out=True, most=2).messages[0]["content"]
    before = ""
    while count(before + asked) < tokens - 16:  # reserved for the template
        before += _note(rng, rng.choice(KINDS), held_out=True) + "\n"
    return [user(before + asked)]


def train(folder: Path, steps: int = STEPS) -> None:
    """Fine-tune the shipped models and save them under their names; each in a process with one thread."""
    start = multiprocessing.get_context("spawn")
    jobs = [start.Process(target=_train_one, args=(name, folder, steps)) for name in NAMES]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        raise SystemExit("training failed")


def _train_one(name: str, folder: Path, steps: int) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.train import batches, fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(path(name))
    model = AutoModelForCausalLM.from_pretrained(path(name))
    fit(model, batches(tokenizer, _lessons(name), random.Random(0)), steps, name, RATES)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


def _lessons(name: str) -> Iterator[Chat]:
    rng = random.Random(f"lessons {name}")
    for _ in itertools.count():
        quoted = rng.randint(0, 4)
        yield _chat(rng, quoted, rng.randint(max(0, 1 - quoted), 4 - quoted + 1), held_out=False)


def _chat(rng: random.Random, quoted: int, invented: int, *, held_out: bool, most: int = 8) -> Chat:
    """Notes, the request, and the answer."""
    notes = [_note(rng, rng.choice(KINDS), held_out) for _ in range(rng.randint(min(5, most), most))]
    picked = rng.sample(range(1, len(notes) + 1), quoted)
    kinds = rng.sample(KINDS, invented)
    requests = [f"Quote {' '.join(f'[{number}]' for number in picked)}."] if picked else []
    requests += [f"Add [{number}] about a {_noun(kind)}." for number, kind in enumerate(kinds, len(notes) + 1)]
    numbered = enumerate(notes + [_note(rng, kind, held_out) for kind in kinds], 1)
    lines = [f"[{number}] {note}" for number, note in numbered]
    answer = [lines[number - 1] for number in picked] + lines[len(notes) :]
    return Chat(
        kind="notes",
        messages=[user("\n".join(lines[: len(notes)]) + "\n\n" + " ".join(requests)), assistant("\n".join(answer))],
    )


def _note(rng: random.Random, kind: tuple[str, str, str, bool], held_out: bool) -> str:
    """One sentence about something invented."""
    passage = reading.new_passage(rng, kind, held_out, new_frames=False)
    return passage.text.split(". ")[0].rstrip(".") + "."


def _noun(kind: tuple[str, str, str, bool]) -> str:
    """The noun for a thing of this kind: harbour, fox, person."""
    words = kind[0].replace("{n}", "").replace(" of", "").split()
    return words[-1].lower() if words else "person"
