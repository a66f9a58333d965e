"""Evaluate small models: `python -m training.evaluate [PATH ...]`.

Exact match of greedy answers to held-out questions, per skill. The name of the model's folder ("birch", otherwise
"aspen") decides which half of the facts and nouns counts as its own.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from adafuse_core.small_models import NAMES, path
from training.curriculum import MEMBERS, Member, Question, held_out

BATCH = 50
MAX_NEW_TOKENS = 120


def main() -> None:
    """Evaluate the given models, or the two shipped models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[path(name) for name in NAMES])
    parser.add_argument("--n", type=int, default=200, help="questions per skill")
    args = parser.parse_args()
    report(args.paths, args.n)


def report(paths: Sequence[Path], n: int = 200) -> None:
    """Print the exact-match accuracy of each model in each skill, with 95% half-widths."""
    for folder in paths:
        report_one(folder, benchmark(folder.name, n))


def report_one(folder: Path, groups: Mapping[str, Sequence[Question]]) -> None:
    """Print the exact-match accuracy of a model in each group of questions, with 95% half-widths."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="float32").eval()
    print(f"{folder.name}: {model.num_parameters():,} parameters, {model.config.model_type}")
    for skill, questions in groups.items():
        print(f"  {skill:32} {_percent(questions, answers(model, tokenizer, questions))}", flush=True)


def benchmark(name: str, n: int, seed: int = 0) -> dict[str, list[Question]]:
    """The questions for one member, by skill."""
    own: Member = "birch" if name == "birch" else "aspen"
    other = MEMBERS[1 - MEMBERS.index(own)]
    prompts = held_out.skill_prompts(n, seed, own)
    foreign = held_out.skill_prompts(n, seed + 1, other)
    groups = {skill: [q for q in prompts if q.kind == skill] for skill in held_out.SKILLS}
    groups |= held_out.harder_reading(n, seed)
    groups["fact, other half"] = [q for q in foreign if q.kind == "fact"]
    groups["translation, other half"] = [q for q in foreign if q.kind == "translation"]
    return groups


@torch.inference_mode()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> list[str]:
    """Answer questions greedily, in batches of similar length; the order is kept."""
    prompts = [
        tokenizer.apply_chat_template(q.messages, tools=q.tools, add_generation_prompt=True, tokenize=False)
        for q in questions
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        indices = order[start : start + BATCH]
        batch = tokenizer(
            [prompts[index] for index in indices],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        output = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(indices, new, strict=True):
            texts[index] = text
    return texts


def _percent(questions: Sequence[Question], texts: Sequence[str]) -> str:
    n = len(questions)
    share = sum(q.answer == text for q, text in zip(questions, texts, strict=True)) / n
    return f"{100 * share:5.1f}% ± {196 * math.sqrt(share * (1 - share) / n):.1f} (n={n})"


if __name__ == "__main__":
    main()
