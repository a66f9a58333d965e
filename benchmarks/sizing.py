"""How many devices and server processes so many requests per second need: a simulation from measured costs per pass.

    python benchmarks/sizing.py --json PATH
    python benchmarks/sizing.py --costs costs.json --words 150 --prompt 800 --p95 10

A request passes through the server (`host_ms` per word, one thread of a process) and its members. A member's model
runs one pass after the other; a pass reads the next step of all requests that wait for it, and takes `pass_ms` plus
`step_ms` for each, plus `prompt_token_ms` for each token of a new prompt. A step of a request ends when all members
have taken it. Requests come at random times (Poisson), and a load balancer spreads them at random over equal copies of
a layout, so one copy is simulated, at its share of the requests. For each rate, the table has the fewest copies with
which 95 of 100 answers are complete within `--p95` seconds.

Costs are fitted to results of `throughput.py` (least squares over all concurrencies), or read from a JSON file with the
fields of `Costs` and their `hardware`. The first table compares the simulation with the measured words per second. All
other figures are simulated, not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import common
from queueing import LAYOUTS, MAX_RUNNING, Copy, Costs, Layout, Request, poisson

RESULTS = Path(__file__).parent / "results"
MEASURED = (RESULTS / "throughput.json", RESULTS / "throughput_writing.json")
RATES = (1, 3, 10, 30, 100, 300, 1000)  # requests per second
FULL = 0.7  # share of its time that a server process may be busy


# --- costs from measurements ---


def fitted(files: Sequence[dict[str, Any]], host_ms: float, call_ms: float, members: int = 2) -> Costs:
    """The costs that explain the measured times per word best.

    ms per word = pass_ms * passes per word + word_ms + prompt_token_ms * prompt tokens per word, over all rows.
    """
    rows = [(row, prompt_per_word(each, row) * members) for each in files for row in each["rows"]]
    table = np.array([[row["forwards_per_word"], 1.0, tokens] for row, tokens in rows])
    times = np.array([1e3 * row["seconds"] / row["words"] for row, _ in rows])
    if len(files) == 1:  # prompts can't be told from words
        table = table[:, :2]
    pass_ms, word_ms, *prompt_ms = map(float, np.linalg.lstsq(table, times, rcond=None)[0])
    alone = [row["forwards_per_word"] for row, _ in rows if row["concurrent"] == 1]
    steps = sum(alone) / len(alone) / members
    step_ms = max(0.0, word_ms - host_ms) / (members * steps)
    prompt = max(0.0, prompt_ms[0]) if prompt_ms else 0.0
    return Costs(
        members=members,
        steps=steps,
        pass_ms=pass_ms,
        step_ms=step_ms,
        prompt_token_ms=prompt,
        host_ms=host_ms,
        call_ms=call_ms,
    )


def prompt_per_word(file: dict[str, Any], row: dict[str, Any]) -> float:
    """Prompt tokens per word of the answers, of prompts whose lengths are spread evenly."""
    return sum(file["prompt_tokens"]) / 2 * file["prompts"] / row["words"]


def compared(files: Sequence[dict[str, Any]], costs: Costs) -> list[dict[str, Any]]:
    """Words per second, measured and simulated, at each measured concurrency.

    The server's work takes turns with the passes here, since both were measured on the same cores.
    """
    turns = costs.step_ms + costs.host_ms / (costs.members * costs.steps)
    costs = dataclasses.replace(costs, host_ms=0.0, step_ms=turns)
    rows = []
    for file in files:
        for row in file["rows"]:
            draw = random.Random(0)
            low, high = file["prompt_tokens"]
            words = max(1, round(row["words"] / file["prompts"]))
            requests = [Request(0.0, words, draw.randint(low, high)) for _ in range(file["prompts"])]
            copy = Copy(costs, LAYOUTS[0], slots=row["concurrent"]).run(requests)
            simulated = 1e3 * words * len(requests) / copy.now
            rows.append(
                {
                    "prompt_tokens": file["prompt_tokens"],
                    "concurrent": row["concurrent"],
                    "measured": row["words_per_second"],
                    "simulated": simulated,
                    "ratio": simulated / row["words_per_second"],
                }
            )
    return rows


# --- sizes ---


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What clients ask for."""

    words: int  # per answer, mean
    prompt: int  # tokens, mean
    p95: float  # seconds in which 95 of 100 answers should be complete
    seconds: float  # simulated time


def simulate(costs: Costs, layout: Layout, traffic: Traffic, rate: float, servers: int) -> dict[str, float]:
    """Latencies of one copy at a rate. The first tenth of the requests, which finds it empty, is left out."""
    requests = list(poisson(rate, traffic.seconds, traffic.words, traffic.prompt, seed=1))
    copy = Copy(costs, layout, servers, slots=MAX_RUNNING * servers).run(requests)
    pairs = sorted(zip(copy.done, copy.ends, strict=True), key=lambda pair: pair[0].arrived)[len(requests) // 10 :]
    whole = np.array([end - request.arrived for request, end in pairs]) / 1e3
    first = np.array([request.first - request.arrived for request, _ in pairs]) / 1e3
    return {
        "p50": float(np.percentile(whole, 50)),
        "p95": float(np.percentile(whole, 95)),
        "first_p95": float(np.percentile(first, 95)),
        "device_use": max(device.worked for device in copy.devices) / copy.now,
        "server_use": copy.hosting / servers / copy.now,
    }


def servers_for(costs: Costs, layout: Layout, traffic: Traffic, rate: float) -> int:
    """Server processes that a copy needs: by CPU time, and by the requests that run at the same time."""
    if not layout.remote:
        return 1
    busy = rate * traffic.words * costs.host_ms / 1e3 / FULL
    return max(1, math.ceil(busy), math.ceil(rate * traffic.p95 / MAX_RUNNING))


def most(costs: Costs, layout: Layout, traffic: Traffic) -> float:
    """The highest rate at which one copy keeps the promised time; 0 if it never does."""

    def keeps(rate: float) -> bool:
        return simulate(costs, layout, traffic, rate, servers_for(costs, layout, traffic, rate))["p95"] <= traffic.p95

    work = traffic.words * costs.steps * costs.step_ms + traffic.prompt * costs.prompt_token_ms
    low, high = 0.0, 1e3 / max(work, costs.pass_ms / MAX_RUNNING)  # the models alone can do no more
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def sized(costs: Costs, layout: Layout, traffic: Traffic, rates: Sequence[float]) -> Iterator[dict[str, Any]]:
    """One row per rate. A layout that can't keep the time at any rate has rows without copies."""
    highest = most(costs, layout, traffic)
    for rate in rates:
        row: dict[str, Any] = {"layout": layout.name, "requests_per_second": rate, "copies": None}
        if highest:
            copies = math.ceil(rate / highest)
            servers = servers_for(costs, layout, traffic, rate / copies)
            row |= {"copies": copies, "devices": copies * layout.devices(costs), "servers": copies * servers}
            row |= simulate(costs, layout, traffic, rate / copies, servers)
        yield row


def main() -> None:
    args = parsed()
    result = common.prepare(args) | {"simulated": True}
    files = [json.loads(path.read_text(encoding="utf-8")) for path in args.measured] if not args.costs else []
    costs, source = given(args, files)
    traffic = Traffic(
        words=args.words, prompt=args.prompt, p95=args.p95, seconds=(3 if args.quick else args.times) * args.p95
    )
    rates = RATES[::3] if args.quick else args.rates
    result |= {
        "costs": dataclasses.asdict(costs),
        "costs_from": source,
        "traffic": dataclasses.asdict(traffic),
        "compared": compared(files, costs),
        "rows": [row for layout in LAYOUTS for row in sized(costs, layout, traffic, rates)],
    }
    show(result)
    common.finish(result, args.json)


def parsed() -> argparse.Namespace:
    parser = common.arguments(__doc__)
    parser.add_argument("--measured", type=Path, nargs="+", default=MEASURED, help="results of throughput.py")
    parser.add_argument("--costs", type=Path, help="a JSON file with the fields of Costs, in place of --measured")
    parser.add_argument("--host-ms", type=float, default=1.0, help="CPU time of the server per word (default: 1)")
    parser.add_argument("--call-ms", type=float, default=1.4, help="time of a call to another process (default: 1.4)")
    parser.add_argument("--words", type=int, default=32, help="words of an answer, mean (default: 32)")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt, mean (default: 200)")
    parser.add_argument("--p95", type=float, default=5.0, help="seconds for 95 of 100 answers (default: 5)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests per second")
    parser.add_argument("--times", type=float, default=10, help="simulated time, in multiples of --p95 (default: 10)")
    return parser.parse_args()


def given(args: argparse.Namespace, files: Sequence[dict[str, Any]]) -> tuple[Costs, list[dict[str, str]]]:
    """The costs, and where they are from."""
    if args.costs:
        values = json.loads(args.costs.read_text(encoding="utf-8"))
        source = [{"file": args.costs.name, "hardware": values.pop("hardware")}]
        return Costs(**values), source
    source = [
        {"file": path.name, "hardware": file["hardware"], "command": file["command"]}
        for path, file in zip(args.measured, files, strict=True)
    ]
    return fitted(files, args.host_ms, args.call_ms), source


def show(result: dict[str, Any]) -> None:
    print("costs:", ", ".join(f"{name} {value:.3g}" for name, value in result["costs"].items()))
    for source in result["costs_from"]:
        print("from", ", ".join(source.values()))
    if result["compared"]:
        columns = ("prompt tokens", "concurrent", "measured words/s", "simulated", "ratio")
        rows = [[f"{row['prompt_tokens']}", *list(row.values())[1:]] for row in result["compared"]]
        common.show("the simulation and the measurement", columns, rows)
    traffic = result["traffic"]
    keys = ("requests_per_second", "copies", "devices", "servers", "p50", "p95", "first_p95", "device_use")
    columns = ("layout", "requests/s", "copies", "devices", "servers", "p50 s", "p95 s", "first word p95 s", "use")
    rows = [[row["layout"], *(row.get(key) for key in keys)] for row in result["rows"]]
    note = f"simulated: answers of {traffic['words']} words, prompts of {traffic['prompt']} tokens, p95 of"
    common.show(f"fewest copies with p95 <= {traffic['p95']:g} s", columns, rows, f"{note} complete answers")


if __name__ == "__main__":
    main()
