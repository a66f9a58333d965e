"""CPU time of the deciding process per word, when its members run in other processes.

    python benchmarks/host_cost.py --json PATH

This is `--host-ms` of `sizing.py`, without HTTP: text, candidates, decisions, and the calls to the members. Members
are the small models as actors of a Ray cluster of their own (`adafuse[ray]`). The CPU time of this process, all
threads, is divided by the words of its answers.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import common
from adafuse_core import Ensemble
from adafuse_core.small_models import NAMES

PROMPTS = ("The old tower", "Anna went to the", "My brother", "Where is the market?\n", "The river", "In the old")
RULES = ("beam", "adafuse")


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--words", type=int, default=40, help="tokens of an answer (default: 40)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 6], help="answers at a time (default: 1 6)")
    args = parser.parse_args()
    if args.quick:
        args.words, args.concurrency = 4, [1]
    result = common.prepare(args)
    placed = {"device": "cpu", "dtype": "float32", "backend": "ray", "backend_options": {"address": "local"}}
    members = [{"model": f"small:{name}", **placed} for name in NAMES]
    with Ensemble(members=members) as first:
        first.load()
        rows = [
            measured(Ensemble(members=first.members, strategy=rule), number, args.words)
            for rule in RULES
            for number in args.concurrency
        ]
    result |= {"models": list(NAMES), "rows": rows}
    columns = ("rule", "at a time", "words", "CPU ms per word", "CPU ms per round", "wall ms per word")
    common.show("CPU time of the deciding process", columns, [list(row.values()) for row in rows])
    common.finish(result, args.json)


def measured(ensemble: Ensemble, concurrent: int, budget: int) -> dict[str, Any]:
    """CPU time of all prompts, so many at a time."""
    ensemble.generate(PROMPTS[0], max_new_tokens=budget)  # warm-up
    began, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(concurrent) as pool:
        answers = list(pool.map(lambda prompt: ensemble.generate(prompt, max_new_tokens=budget), PROMPTS))
    used, wall = time.process_time() - used, time.perf_counter() - began
    words = sum(len(answer.text.split()) for answer in answers)
    rounds = sum(len(answer.rounds) for answer in answers)
    return {
        "rule": ensemble.config.strategy.name,
        "concurrent": concurrent,
        "words": words,
        "cpu_ms_per_word": 1e3 * used / words,
        "cpu_ms_per_round": 1e3 * used / rounds,
        "wall_ms_per_word": 1e3 * wall / words,
    }


if __name__ == "__main__":
    main()
