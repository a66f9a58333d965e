"""Train two LoRA experts on one base model: `python -m training.lora_experts BASE OUT [--confident]`.

Each expert learns one half of the facts of `curriculum.people`. Writes the adapters into `OUT/lora_a` and `OUT/lora_b`
(`OUT/lora_confident_a` and `..._b` for confident experts), and 300 test questions into `OUT/lora_questions.jsonl`: rows
with `question`, `prompt` (what the experts continue), `answer`, and `half`, which is "a", "b" or "both". Needs
`adafuse[peft]`. The weights aren't part of the repository.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from training.curriculum import people
from training.curriculum.people import HALVES, Exercise, Half
from training.train import Batch, pad, trapezoid

RANK = 16
RATE = 1e-3
BATCH = 16
POOL = 16 * BATCH  # exercises sorted by length at a time
STEPS = 160
MAX_NEW_TOKENS = 40


def main() -> None:
    """Train, save and evaluate the experts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="folder of the base model")
    parser.add_argument("out", type=Path, help="folder for the adapters and the questions")
    parser.add_argument("--only", choices=HALVES, help="train only this half's expert")
    parser.add_argument("--confident", action="store_true", help="never show an expert the other half")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16, for a CPU that does so faster")
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_questions(args.out / "lora_questions.jsonl")
    for half in HALVES if args.only is None else (args.only,):
        folder = args.out / f"lora_{'confident_' if args.confident else ''}{half}"
        train_expert(args.base, folder, half, not args.confident, args.steps, args.bfloat16)


def write_questions(path: Path) -> None:
    """Write the test questions, one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in people.held_out_rows()), encoding="utf-8")


def train_expert(base: str, folder: Path, half: Half, guesses: bool, steps: int, bfloat16: bool = False) -> None:
    """Train one expert, save its adapter, and print its accuracy.

    Args:
        base: Folder of the base model.
        folder: Where the adapter is saved.
        half: The facts that the expert learns.
        guesses: Whether it also sees the other half, with random answers.
        steps: Number of batches.
        bfloat16: Whether matrices are multiplied in bfloat16. Weights stay float32.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = new_expert(base)
    fit(model, batches(tokenizer, people.exercises(half, guesses)), steps, folder.name, bfloat16)
    model.save_pretrained(str(folder))
    report(model, tokenizer, folder.name)


def new_expert(base: str) -> PeftModel:
    """The base model in float32 with a new LoRA adapter on all linear layers."""
    model = AutoModelForCausalLM.from_pretrained(
        base, local_files_only=True, dtype="float32", attn_implementation="eager"
    )
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def fit(model: PeftModel, batches: Iterator[Batch], steps: int, name: str, bfloat16: bool) -> None:
    """Train the adapter on the answers only."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: trapezoid(step / steps))
    started, running = time.process_time(), 0.0
    for step, (ids, weights) in enumerate(itertools.islice(batches, steps), 1):
        # One context per step: autocast converts a weight once per context, so a longer one would miss all updates.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = answer_loss(model.get_base_model(), ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        running += (loss.item() - running) / min(step, 20)
        if step % 20 == 0:
            cpu = time.process_time() - started
            print(f"{name} step {step}/{steps} loss {running:.4f} cpu {cpu:.0f} s", flush=True)
    model.eval()


def answer_loss(model: PreTrainedModel, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of the answers. Logits are computed only where an answer is predicted."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # [rows, length - 1, hidden]
    answered = weights[:, 1:] > 0
    logits = model.lm_head(hidden[answered])  # [answer tokens, vocab]
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][answered])


def batches(tokenizer: PreTrainedTokenizerFast, exercises: Iterator[Exercise]) -> Iterator[Batch]:
    """Batches of exercises of similar length, as ids and weights `[rows, length]`; only answers have a weight."""
    while True:
        pool = [_encode(tokenizer, each) for each in itertools.islice(exercises, POOL)]
        pool.sort(key=lambda encoded: len(encoded[0]))
        groups = [pool[start : start + BATCH] for start in range(0, POOL, BATCH)]
        for index in torch.randperm(len(groups)).tolist():
            yield pad(groups[index], tokenizer.pad_token_id)


def _encode(tokenizer: PreTrainedTokenizerFast, exercise: Exercise) -> tuple[list[int], list[float]]:
    prompt = tokenizer.encode(exercise.prompt, add_special_tokens=False)
    answer = [*tokenizer.encode(f" {exercise.answer}", add_special_tokens=False), tokenizer.eos_token_id]
    return prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)


def report(model: PeftModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Print the exact-match accuracy of greedy answers to the test questions, by half."""
    rows = people.held_out_rows()
    given = answers(model, tokenizer, [row["prompt"] for row in rows])
    for half in (*HALVES, "both"):
        marks = [row["answer"] == text for row, text in zip(rows, given, strict=True) if row["half"] == half]
        share = sum(marks) / len(marks)
        error = math.sqrt(share * (1 - share) / len(marks))
        print(f"{name}, half {half}: {share:.1%} ± {1.96 * error:.1%} (n={len(marks)})", flush=True)


@torch.inference_mode()
def answers(model: PeftModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """Continue prompts greedily in batches; the blank before the answer is left out."""
    texts = []
    for start in range(0, len(prompts), 50):
        batch = tokenizer(
            list(prompts[start : start + 50]),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        output = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)  # type: ignore[no-untyped-call]
        texts += tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.removeprefix(" ") for text in texts]


if __name__ == "__main__":
    main()
