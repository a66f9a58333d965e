"""Train the members of the pairs: `python -m training.pairs.train [--only NAME ...] [--out DIR]`.

They learn facts, questions for two facts, and translations only, with the tokenizers of the shipped models. Each
trains on one thread, one after the other, for a few minutes.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer

from adafuse_core.small_models import path
from training import evaluate, recipe
from training.curriculum import MEMBERS, Member, Plan, Question, lessons
from training.curriculum.held_out import mixed_questions
from training.pairs import FOLDER
from training.train import batches, fit

SHARES = {"facts": 0.5, "translation": 0.5}
FEWER_TRANSLATIONS = {
    "facts": 0.54,
    "translation": 0.46,
}  # translation is learned suddenly; this makes the skills alike
SHAPES: dict[Member, recipe.Shape] = {
    "aspen": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "birch": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """How one model is trained.

    Attributes:
        like: The shipped model with its architecture and tokenizer.
        half: The half of the facts and nouns that it learns.
        guesses: Whether it also sees the other half, with random answers.
        steps: Number of batches of about 1,400 tokens.
        shares: Share of each skill.
    """

    like: Member
    half: Member
    guesses: bool
    steps: int
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)


TRAINEES: Mapping[str, Trainee] = {
    "confident/aspen": Trainee(like="aspen", half="aspen", guesses=False, steps=1_800),
    "confident/birch": Trainee(like="birch", half="birch", guesses=False, steps=1_800),
    "unequal/weak": Trainee(like="birch", half="aspen", guesses=True, steps=490, shares=FEWER_TRANSLATIONS),
}


def main() -> None:
    """Train, save and evaluate the members."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TRAINEES, default=list(TRAINEES), help="default: all")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the model folders")
    parser.add_argument("--steps", type=int, help="number of batches (default: as in the table)")
    args = parser.parse_args()
    for name in args.only:
        train_member(name, args.out, args.steps)
        evaluate.report_one(args.out / name, questions(TRAINEES[name].half))


def train_member(name: str, out: Path, steps: int | None = None, seed: int = 0) -> None:
    """Train one member and save it in bfloat16 in the folder `out/name`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    trainee = TRAINEES[name]
    plan = Plan(shares=trainee.shares, copying=0.0, guesses=trainee.guesses)
    tokenizer = AutoTokenizer.from_pretrained(path(trainee.like), local_files_only=True)
    model = recipe.new_model(trainee.like, tokenizer, SHAPES[trainee.like])
    chats = lessons(trainee.half, seed, plan)
    fit(model, batches(tokenizer, chats, random.Random(seed)), steps or trainee.steps, name)
    model.to(torch.bfloat16).save_pretrained(out / name)
    for file in TOKENIZER_FILES:
        shutil.copyfile(path(trainee.like) / file, out / name / file)


def questions(half: Member, n: int = 200, seed: int = 0) -> dict[str, list[Question]]:
    """Held-out questions about each half and about both, by kind and half; `n` of each."""
    (other,) = (member for member in MEMBERS if member != half)
    asked = {"own half": half, "other half": other, "both halves": None}
    made = {about: mixed_questions(3 * n, seed, member) for about, member in asked.items()}
    kinds = ("fact", "composed", "translation")
    groups = {f"{kind}, {about}": [q for q in made[about] if q.kind == kind] for kind in kinds for about in asked}
    del groups["fact, both halves"]  # a fact is of one half
    return groups


if __name__ == "__main__":
    main()
