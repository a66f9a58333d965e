"""Train both small models from scratch: `python -m training.train [--out DIR] [--seed N]`.

The same seed on the same kind of machine gives the same weights. The models train in two processes with one thread
each; on two idle cores this takes less than half an hour.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from adafuse_core import small_models
from training import evaluate, recipe
from training.curriculum import MEMBERS, Chat, Member, lessons
from training.muon import Muon

TOKENIZER_CHATS = 8_000
BATCH_TOKENS = 1_500
POOL_CHATS = 512
PROMPT_WEIGHT = 0.3
RATES = (0.01, 0.003)  # of Muon and AdamW
STEPS = 5_400
WARM_UP = 0.02
COOL_DOWN = 0.3
SHIPPED = Path(small_models.__file__).parent

Encoded = tuple[list[int], list[float]]
Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    """Train, save and evaluate both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for the model folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=train_member, args=(name, args.out, args.seed, args.steps)) for name in MEMBERS]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        raise SystemExit("training failed")
    evaluate.report([args.out / name for name in MEMBERS])


def train_member(member: Member, out: Path, seed: int, steps: int = STEPS) -> None:
    """Train one model and save it in a folder of its name."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = _tokenizer(member, seed)
    model = recipe.new_model(member, tokenizer)
    fit(model, batches(tokenizer, lessons(member, seed), random.Random(seed)), steps, member)
    model.save_pretrained(out / member)
    tokenizer.save_pretrained(out / member)


def _tokenizer(member: Member, seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on lessons of both members, taken after the first ones."""
    texts = []
    for name in MEMBERS:
        chats = itertools.islice(lessons(name, seed), 12_000, 12_000 + TOKENIZER_CHATS)
        texts += [text for chat in chats for text in _texts(chat)]
    return recipe.train_tokenizer(member, texts)


def _texts(chat: Chat) -> Iterator[str]:
    """The texts of a chat for training a tokenizer: roles, contents and calls."""
    for message in chat.messages:
        yield f"{message['role']}\n{message['content']}"
        for call in message.get("tool_calls", ()):
            yield json.dumps(call["function"])


def fit(
    model: PreTrainedModel, batches: Iterator[Batch], steps: int, name: str, rates: tuple[float, float] = RATES
) -> None:
    """Train a model.

    Args:
        model: Changed in place.
        batches: Ids and weights, each `[rows, length]`.
        steps: Number of batches.
        name: Label of the printed progress.
        rates: Maximum learning rates of Muon and AdamW.
    """
    model.train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=rates[0]),
        torch.optim.AdamW(others, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: trapezoid(step / steps)) for optimizer in optimizers
    ]
    started, seen, running = time.process_time(), 0, 0.0
    for step, (ids, weights) in enumerate(itertools.islice(batches, steps), 1):
        loss = _loss(model, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        seen += ids.numel()
        running += (loss.item() - running) / min(step, 50)
        if step % 100 == 0:
            cpu = time.process_time() - started
            print(f"{name} step {step}/{steps} loss {running:.4f} tokens {seen} cpu {cpu:.0f} s", flush=True)
    model.eval()


def _loss(model: PreTrainedModel, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean cross entropy. Padding is on the right, so a causal model needs no attention mask."""
    logits = model(input_ids=ids).logits[:, :-1]  # [rows, length - 1, vocab]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def trapezoid(progress: float) -> float:
    """The learning rate as a share of the maximum: warm-up, constant, linear decay to zero."""
    return min(1.0, (progress + 1e-3) / WARM_UP, (1.001 - progress) / COOL_DOWN)


def batches(tokenizer: PreTrainedTokenizerFast, chats: Iterator[Chat], rng: random.Random) -> Iterator[Batch]:
    """Batches of chats of similar length, as ids and weights `[rows, length]`."""
    while True:
        pool = [_encode(tokenizer, chat) for chat in itertools.islice(chats, POOL_CHATS)]
        pool.sort(key=lambda chat: len(chat[0]))
        groups: list[list[Encoded]] = [[]]
        for chat in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(chat[0]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(chat)
        rng.shuffle(groups)
        for group in groups:
            yield pad(group, tokenizer.pad_token_id)


def _encode(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> Encoded:
    """A chat's ids and their loss weights: 1 in the assistant's turns, `PROMPT_WEIGHT` elsewhere."""
    text = tokenizer.apply_chat_template(chat.messages, tools=chat.tools, tokenize=False)
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    opening = tokenizer.backend_tokenizer.encode(f"{recipe.TURN_START}assistant\n").ids
    end = tokenizer.eos_token_id
    weights, position = [PROMPT_WEIGHT] * len(ids), 0
    while position < len(ids):
        if ids[position : position + len(opening)] == opening:
            first = position + len(opening)
            position = ids.index(end, first)
            weights[first : position + 1] = [1.0] * (position + 1 - first)
        position += 1
    return ids, weights


def pad(group: list[Encoded], filler: int) -> Batch:
    """A batch of ids and weights `[rows, length]`; short rows are filled on the right, with weight 0."""
    length = max(len(ids) for ids, _ in group)
    ids = torch.tensor([ids + [filler] * (length - len(ids)) for ids, _ in group])
    weights = torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in group])
    return ids, weights


if __name__ == "__main__":
    main()
