"""Forward passes and tokens read per word.

All modes of the engine write the same text (checked, in float64), so their counters can be compared per word.
Modes: `guessing` (the default: members verify each other's drafts, and prompt lookup), its parts `verify` and `lookup`,
`plain` (KV cache only), `uncached` (no cache at all), and `single`: each member alone, greedy, with `generate` of
transformers. The ensembles decide by the paper's rule, `strategy="adafuse"`.

    python benchmarks/cost.py --json PATH
    python benchmarks/cost.py --models FOLDER FOLDER --json PATH

The second command measures other models, by CPU time; see `model_cost.py`. The rest of this page is about the first.

The main figure is the number of forward passes per committed word, summed over the members, without each member's first
pass over the prompt; the table also shows it with these passes. On one device they run one after another. "Busiest
member" sums, over the rounds, the passes of the member with the most passes: a lower bound of the sequential passes if
each member had its own device. `single` is the mean of the members. `uncached` answers only the first two prompts.

Prompts: see `regimes.py`. The three regimes differ in how much of the answer can be copied from the prompt; the share
of word starts with a margin of at least tau (default 0.7) is printed. The small models are first fine-tuned for the
task, for one and a half minutes; `--trained DIR` keeps the result. The prompts are the first ones of a seeded
generator, without selection. The small models write repetitive text, so guesses are right more often than in free
prose of the same confidence.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import common
import model_cost
import regimes
from adafuse_core import Ensemble, RoundDone, TextDelta
from adafuse_core.small_models import NAMES, path

MODES = ("guessing", "verify", "lookup", "plain", "uncached")
LENGTHS = (64, 256, 1024)
UNCACHED = 2  # prompts answered in mode "uncached", which is slow
BUDGET = 160  # maximum tokens of an answer; 40 to 60 words


@dataclass
class Measured:
    """Texts and counters of one mode over several prompts."""

    texts: list[str] = field(default_factory=list)
    spans: list[tuple[Any, ...]] = field(default_factory=list)  # committed, per prompt
    rounds: list[Any] = field(default_factory=list)
    forwards: int = 0
    tokens: int = 0
    busiest: int = 0
    prompt_passes: int = 0
    prompt_tokens: int = 0
    longest_prompt: int = 0

    @property
    def words(self) -> int:
        return sum(map(common.count_words, self.texts))

    def figures(self) -> dict[str, float]:
        """Counters per word."""
        return {
            "forwards": (self.forwards - self.prompt_passes) / self.words,
            "with_prompts": self.forwards / self.words,
            "busiest": self.busiest / self.words,
            "tokens": (self.tokens - self.prompt_tokens) / self.words,
        }


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--prompts", type=int, help="prompts per regime (default: 8), or per set with --models (3)")
    parser.add_argument("--trained", type=Path, help="folder of the fine-tuned small models; created if missing")
    parser.add_argument("--dtype", help="of the weights (default: float64; with --models that of the files)")
    parser.add_argument("--models", nargs="+", help="measure these models: folders or names on the Hugging Face Hub")
    parser.add_argument("--sets", nargs="+", help="with --models: sets of prompts (default: all of free_text.py)")
    parser.add_argument("--budget", type=int, default=24, help="with --models: tokens of an answer (default: 24)")
    parser.add_argument("--repeats", type=int, default=3, help="with --models: runs of each prompt (default: 3)")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=["guessing"],
        help="with --models: engine modes (default: guessing)",
    )
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="with --models: conversations or plain texts (default: conversations if all models have chat templates)",
    )
    args = parser.parse_args()
    result = common.prepare(args, common.TIMED)
    if args.models:
        model_cost.run(args, result)
    else:
        run_small_models(args, result)
    common.finish(result, args.json)


def run_small_models(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Measure the fine-tuned small models, or briefly the shipped ones."""
    args.dtype = args.dtype or "float64"
    if args.quick:
        run(args, result, folder=None, n=1, budget=8, lengths=(64,))
        return
    with contextlib.ExitStack() as stack:
        folder = args.trained or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train(folder)
        run(args, result, folder, args.prompts or 8, BUDGET, LENGTHS)


def train(folder: Path) -> None:
    if not all((folder / name / "model.safetensors").is_file() for name in NAMES):
        regimes.train(folder)


def run(args: Any, result: dict[str, Any], folder: Path | None, n: int, budget: int, lengths: Sequence[int]) -> None:
    """Fill the result and print the tables."""
    result |= {
        "prompts_per_regime": n,
        "prompts_uncached": min(n, UNCACHED),
        "dtype": args.dtype,
        "members": list(NAMES),
        "same_text": True,
    }
    alone = [Alone(folder / name if folder else path(name), args.device, args.dtype) for name in NAMES]
    for branches, key in ((3, "regimes"), (1, "regimes_one_branch")):
        ensembles = {
            mode: common.small_ensemble(args.device, args.dtype, mode, folder, branches=branches, **common.TIMED)
            for mode in MODES
        }
        result[key] = {}
        for regime in regimes.REGIMES:
            prompts = regimes.prompts(regime, n)
            measured = {
                mode: measure(ensembles[mode], prompts[:UNCACHED] if mode == "uncached" else prompts, budget)
                for mode in MODES
            }
            check(measured)
            single = [one.figures(prompts, budget) for one in alone]
            result[key][regime] = summary(measured, single, ensembles["plain"].config.strategy.tau, prompts)
            show(regime, branches, result[key][regime])
        if branches == 3:
            result["tokens_per_word_at"] = by_length(ensembles, lengths, budget // 4)


def measure(ensemble: Ensemble, prompts: Sequence[Any], budget: int) -> Measured:
    """Answer the prompts one by one and read the counters after every round."""
    done = Measured()
    for prompt in prompts:
        text, spans = "", []
        before = last = common.counts(ensemble)
        for event in ensemble.stream(prompt, max_new_tokens=budget):
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, RoundDone):
                now = common.counts(ensemble)
                done.busiest += max((now - last).forwards.values())
                last = now
                spans.append(event.round.span)
                done.rounds.append(event.round)
        lengths = ensemble.count_tokens(prompt)
        spent = common.counts(ensemble) - before
        done.texts.append(text)
        done.spans.append(tuple(spans))
        done.forwards += sum(spent.forwards.values())
        done.tokens += sum(spent.tokens.values())
        done.prompt_passes += len(lengths)
        done.busiest -= 1
        done.prompt_tokens += sum(lengths.values())
        done.longest_prompt = max(done.longest_prompt, *lengths.values())
    return done


def check(measured: dict[str, Measured]) -> None:
    """Exit unless all modes commit the same words."""
    plain = measured["plain"]
    for mode, other in measured.items():
        for number, (ours, theirs) in enumerate(zip(plain.spans, other.spans, strict=False)):
            if ours != theirs:
                texts = f"plain: {plain.texts[number]!r}\n{mode}: {other.texts[number]!r}"
                raise SystemExit(f"prompt {number}: {mode!r} and 'plain' commit different words\n{texts}")


class Alone:
    """One member with `generate` of transformers, greedy, with its forward passes counted."""

    def __init__(self, source: Path, device: str, dtype: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(source)
        self._model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map=device).eval()
        self._model.register_forward_pre_hook(self._count)
        self._passes = 0

    def figures(self, prompts: Sequence[Any], budget: int) -> dict[str, float]:
        """Forward passes per word, without and with the passes over the prompts."""
        self._passes = words = 0
        for prompt in prompts:
            inputs = self._tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
            with torch.inference_mode():
                output = self._model.generate(**inputs, max_new_tokens=budget, do_sample=False)
            answer = output[0, inputs["input_ids"].shape[1] :]
            words += common.count_words(self._tokenizer.decode(answer, skip_special_tokens=True))
        return {"forwards": (self._passes - len(prompts)) / words, "with_prompts": self._passes / words}

    def _count(self, *_: Any) -> None:
        self._passes += 1


def summary(
    measured: dict[str, Measured], single: Sequence[dict[str, float]], tau: float, prompts: Sequence[Any]
) -> dict[str, Any]:
    """The figures of one regime; the forward passes per word are keyed by mode."""
    if measured["plain"].longest_prompt > 512:
        raise SystemExit("a prompt is longer than one pass")
    details: dict[str, dict[str, float | None]] = {mode: {**done.figures()} for mode, done in measured.items()}
    alone = {key: mean([one[key] for one in single]) for key in single[0]}
    details["single"] = {**alone, "busiest": alone["forwards"], "tokens": alone["forwards"]}
    plain = measured["plain"]
    return {
        **{mode: figures["forwards"] for mode, figures in details.items()},
        "share": common.share_confident(plain.rounds, tau),
        "tokens_per_word": details["guessing"]["tokens"],
        "with_prompts": {mode: figures["with_prompts"] for mode, figures in details.items()},
        "busiest": {mode: figures["busiest"] for mode, figures in details.items()},
        "tokens": {mode: figures["tokens"] for mode, figures in details.items()},
        "single_by_member": dict(zip(NAMES, (one["forwards"] for one in single), strict=True)),
        "copied": mean([common.copied(t, p[-1]["content"]) for t, p in zip(plain.texts, prompts, strict=True)]),
        "repeats": mean([common.repeats(text) for text in plain.texts]),
        "words_per_answer": plain.words / len(plain.texts),
        "words_per_round": plain.words / len(plain.rounds),
        "lone_candidates": sum(len(played.candidates) == 1 for played in plain.rounds) / len(plain.rounds),
        "words": plain.words,
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def show(regime: str, branches: int, one: dict[str, Any]) -> None:
    rows = [
        [
            mode,
            one[mode],
            common.ratio(one[mode], one["plain"]),
            common.ratio(one[mode], one["single"]),
            one["with_prompts"][mode],
            one["busiest"][mode],
            one["tokens"][mode],
        ]
        for mode in (*MODES, "single")
    ]
    title = (
        f"{regime}, B={branches}: {one['share']:.2f} of the word starts are confident; {one['words_per_answer']:.0f} "
        f"words per answer, {one['words_per_round']:.2f} per round; of the pairs of neighbouring words "
        f"{one['copied']:.0%} stand in the prompt, {one['repeats']:.0%} earlier in the answer"
    )
    columns = ["per word", "forwards", "/ plain", "/ single", "with prompts", "busiest member", "tokens read"]
    common.show(
        title,
        columns,
        rows,
        f"without the first pass over each prompt, but for 'with prompts'; uncached: first {UNCACHED} prompts",
    )


def by_length(ensembles: dict[str, Ensemble], lengths: Sequence[int], budget: int) -> dict[str, dict[str, float]]:
    """Tokens read per word for several prompt lengths, without the tokens of the prompt.

    With tau 0 every word start is confident, so that rounds don't depend on the text. "written": tokens of the answer
    per word, all members together. "agreed": share of rounds in which all members draft the same span; in the other
    rounds each member also reads the other members' drafts. These models agree less after prompts that are longer than
    those of their training.
    """
    ensembles = {mode: Ensemble(ensemble.config, tau=0.0) for mode, ensemble in ensembles.items()}
    counted = ensembles["plain"].members[0].prompt_reader.count_text_tokens
    table: dict[str, dict[str, float]] = {}
    for length in lengths:
        prompts = [regimes.prompt_of_length(length, counted, seed) for seed in range(2)]
        measured = {mode: measure(ensembles[mode], prompts, budget) for mode in ("guessing", "plain", "uncached")}
        check(measured)
        plain = measured["plain"]
        written = sum(sum(ensembles["plain"].count_text_tokens(text).values()) for text in plain.texts)
        table[str(length)] = {mode: done.figures()["tokens"] for mode, done in measured.items()}
        agreed = sum(len(played.candidates) == 1 for played in plain.rounds) / len(plain.rounds)
        table[str(length)] |= {"written": written / plain.words, "agreed": agreed}
    common.show(
        "tokens read per word by length of the prompt (tau=0), the prompt itself not counted",
        ["tokens of prompt", *next(iter(table.values()))],
        [[length, *figures.values()] for length, figures in table.items()],
    )
    return table


if __name__ == "__main__":
    main()
