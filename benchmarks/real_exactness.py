"""Checks on given models that the engine writes exactly the text of the rule.

    python benchmarks/real_exactness.py --models FOLDER FOLDER FOLDER --json PATH

Two parts, which exit with status 1 at a difference:

- `oracle`: pairs of models, in float64, against the reference implementation of the tests (`tests/oracle.py`), which
  has no cache: texts, decisions and their numbers, by the default rule and by the paper's with one and with three
  branches, for every KV store. The reference is slow, so only the first model (or `--whole` models) is used whole. The
  others are copied with `--layers` layers, at least one of each type (full and sliding attention), and the whole
  vocabulary. The text of such copies makes no sense, but is as hard to get right. Pairs of copies also answer a prompt
  that is longer than the sliding window.
- `generate`: each model whole, alone and with one branch, against its own `generate`, in float32 and float64.

Prompts: the first ones of `free_text.py`, as conversations if both models have chat templates, and as plain texts.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
from adafuse_core import Ensemble, MemberConfig
from free_text import Prompts, prompt_sets
from given_models import prose
from own_generate import OwnGenerate
from tests.agreement import ROUGH, difference
from tests.oracle import OracleAnswer, OracleEnsemble, OracleMember, loaded
from tests.strategies.oracle_beam import OracleBeam

STORES = ("tree", "fork")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"strategy": "adafuse", "tau": 0.7, "max_words": 3, "branches": 1},
    {"strategy": "adafuse", "tau": 0.7, "max_words": 3, "branches": 3},
    {"strategy": "beam", "horizon": 3},
)
CAP = 8  # maximum tokens of a word: models with few layers write long ones
MOST_ROWS = 400  # distributions that the oracle keeps; each takes up to 2 MiB
PARTS = ("oracle", "generate")


class FrugalOracle(OracleMember):
    """The oracle without logits that nobody needs: for 600 tokens and 262,144 words they take 1.2 GiB per pass."""

    def logprobs(self, ids: list[int], back: int = 0) -> torch.Tensor:
        """As `OracleMember.logprobs`, but keeps fewer distributions."""
        lengths = range(len(ids) - back, len(ids) + 1)
        if any(tuple(ids[:length]) not in self.memo for length in lengths):
            if len(self.memo) > MOST_ROWS:
                self.memo.clear()
            with torch.no_grad():
                logits = self.model(torch.tensor([ids]), logits_to_keep=len(lengths), use_cache=False).logits[0]
            rows = torch.log_softmax(logits, -1)
            self.memo.update((tuple(ids[:length]), row) for length, row in zip(lengths, rows, strict=True))
        row: torch.Tensor = self.memo[tuple(ids)]
        return row


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--models", nargs="+", required=True, help="folders, Hugging Face names, or small:NAME")
    parser.add_argument("--whole", type=int, default=1, help="in part oracle, use so many models whole (default: 1)")
    parser.add_argument("--layers", type=int, default=3, help="layers of the shortened copies (default: 3)")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of each kind (default: 2)")
    parser.add_argument("--budget", type=int, default=8, help="tokens of an answer in part oracle (default: 8)")
    parser.add_argument("--long", type=int, default=600, help="tokens of the long prompt (default: 600)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to check (default: both)")
    args = parser.parse_args()
    result = common.prepare(args)
    if args.quick:
        args.prompts, args.budget, args.long = 1, 4, 80
    result |= {"models": args.models, "rows": []}
    if "oracle" in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            result["rows"] += against_oracle(args, Path(folder))
    if "generate" in args.parts:
        result["rows"] += list(against_generate(args))
    show(result)
    common.finish(result, args.json)
    if any(row["problems"] for row in result["rows"]):
        raise SystemExit(1)


def against_oracle(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row per pair of models, kind of prompt and store."""
    folders = [Path(common.folder_of(model)) for model in args.models]
    copies = [shortened(model, folder / model.name, args.layers) for model in folders[args.whole :]]
    rows = []
    for pair in itertools.combinations([*folders[: args.whole], *copies], 2):
        sets = [prompt_sets(args.prompts, chat=chat) for chat in (False, True)[: 1 + supports_chat(pair)]]
        kinds: dict[str, Sequence[Any]] = {name: prompts for found in sets for name, prompts in found.items()}
        if args.quick or set(pair) <= set(copies):
            kinds["long"] = [prose(AutoTokenizer.from_pretrained(pair[-1]), args.long)]
        expected = expected_answers(pair, kinds, args.budget)
        for store in STORES:
            rows += compare(pair, store, kinds, expected, args.budget)
    return rows


Expected = dict[tuple[str, int], list[OracleAnswer]]  # by kind of prompt and place in SETTINGS


def expected_answers(pair: Sequence[Path], kinds: Mapping[str, Sequence[Any]], budget: int) -> Expected:
    """The oracle's answers by kind of prompt and setting. Its models are freed afterwards."""
    members = [FrugalOracle(str(path), CAP, name=path.name) for path in pair]
    expected = {}
    for place, setting in enumerate(SETTINGS):
        options = {name: value for name, value in setting.items() if name != "strategy"}
        oracle = (OracleBeam if setting["strategy"] == "beam" else OracleEnsemble)(members, **options)
        for kind, prompts in kinds.items():
            expected[kind, place] = [oracle.answer(prompt, max_new_tokens=budget) for prompt in prompts]
    del members, oracle
    loaded.cache_clear()
    gc.collect()
    return expected


def compare(
    pair: Sequence[Path], store: str, kinds: Mapping[str, Sequence[Any]], expected: Expected, budget: int
) -> Iterator[dict[str, Any]]:
    """A row per kind of prompt: the engine with one store, prompts one by one and all at once."""
    names = [path.name for path in pair]
    configs = [
        MemberConfig(model=str(path), name=path.name, kv_store=store, dtype="float64", device="cpu") for path in pair
    ]
    with Ensemble.from_pretrained(*configs, max_word_tokens=CAP) as ensemble:
        for kind, prompts in kinds.items():
            problems: list[str | None] = []
            for place, setting in enumerate(SETTINGS):
                engine = Ensemble(ensemble.config, **setting)
                wanted = expected[kind, place]
                for at_once in (1, len(prompts)):
                    answers = engine.batch(prompts, max_concurrency=at_once, max_new_tokens=budget)
                    problems += map(difference, answers, wanted, itertools.repeat(ROUGH))
                engine.close()
            texts = [answer.full_text for place in range(len(SETTINGS)) for answer in expected[kind, place]]
            yield row(" + ".join(names), kind, f"oracle, {store}", "float64", problems, texts)


def shortened(model: Path, target: Path, layers: int) -> Path:
    """Save a copy of a model with the first layers, or a later one where its type would be missing."""
    module: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    types = getattr(module.config, "layer_types", None) or ["full_attention"] * module.config.num_hidden_layers
    kept = {types.index(kind) for kind in types}
    kept |= set(itertools.islice((number for number in range(len(types)) if number not in kept), layers - len(kept)))
    chosen = sorted(kept)
    module.model.layers = torch.nn.ModuleList(module.model.layers[number] for number in chosen)
    module.config.num_hidden_layers = len(chosen)
    module.config.layer_types = [types[number] for number in chosen]
    module.save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)
    return target


def supports_chat(pair: Sequence[Path]) -> bool:
    """Whether all models have chat templates."""
    return all(AutoTokenizer.from_pretrained(path).chat_template for path in pair)


def against_generate(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per model, dtype and kind of prompt: the member alone against its own `generate`."""
    budget = 6 if args.quick else 24
    for model, dtype in itertools.product(args.models, ("float32", "float64")):
        both = (False, True)[: 1 + supports_chat([Path(common.folder_of(model))])]
        sets = [prompt_sets(args.prompts, chat=chat) for chat in both]
        kinds = {name: prompts for found in sets for name, prompts in found.items()}
        wanted = own_texts(model, args.device, dtype, kinds, budget)
        with common.ensemble([model], args.device, dtype, "guessing", branches=1, **common.TIMED) as alone:
            for kind, prompts in kinds.items():
                found = [alone.generate(prompt, max_new_tokens=budget).text for prompt in prompts]
                problems = [
                    None if text == own else f"text {text!r}, not {own!r}"
                    for text, own in zip(found, wanted[kind], strict=True)
                ]
                yield row(alone.names[0], kind, "own generate", dtype, problems, wanted[kind])


def own_texts(model: str, device: str, dtype: str, kinds: Mapping[str, Prompts], budget: int) -> dict[str, list[str]]:
    """The texts of `generate` by kind of prompt. The model is freed afterwards."""
    own = OwnGenerate(model, device, dtype)
    texts = {kind: [own.answer(prompt, budget) for prompt in prompts] for kind, prompts in kinds.items()}
    del own
    gc.collect()
    return texts


def row(
    models: str, kind: str, reference: str, dtype: str, problems: Sequence[str | None], texts: Sequence[str]
) -> dict[str, Any]:
    """What was compared, and the differences that were found."""
    wrong = [problem for problem in problems if problem]
    print(f"{models}, {kind}, {reference}, {dtype}: {len(problems)} answers, {len(wrong)} different", flush=True)
    return {
        "models": models,
        "prompts": kind,
        "reference": reference,
        "dtype": dtype,
        "answers": len(problems),
        "problems": wrong,
        "texts": list(texts),
    }


def show(result: dict[str, Any]) -> None:
    """Print a table, and the differences."""
    columns = ["models", "prompts", "reference", "dtype", "answers"]
    rows = [[*(str(one[key]) for key in columns), len(one["problems"])] for one in result["rows"]]
    common.show("answers compared", [*columns, "different"], rows)
    for one in result["rows"]:
        for problem in one["problems"]:
            print(f"{one['models']}, {one['prompts']}, {one['reference']}, {one['dtype']}: {problem}")


if __name__ == "__main__":
    main()
