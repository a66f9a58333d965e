"""Time, bytes and computed tokens per round of two members on different backends, at several lengths of the prompt.

    python benchmarks/backends.py --backends local ray --json PATH
    python benchmarks/backends.py --backends local ray --models FOLDER FOLDER --json PATH
    python benchmarks/backends.py --backends local vllm --servers URL URL --json PATH

`local` runs both members in this process, which decides; all other backends run each member in a process of its own, at
the same time. So on two cores, with one thread per member, two processes can take about half of the time of one. Every
backend answers the same prompts in turn (plain prose, continued), and must give the same text: weights are float32.

Times are from the end of the first round, which reads the prompt, to the last one: medians of all repetitions. Bytes
are those of the pickled calls and replies of both members (for servers, of the JSON), counted in a run of its own.
Computed tokens are those that the models read for both members after the prompt: answer, candidates and guesses. For
vLLM they are read from the servers' metrics in that run, prompt included, since they depend on the prefix cache; start
the servers with `--dtype float32`.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock
from urllib.request import urlopen

from transformers import AutoTokenizer

import common
from adafuse_core import Ensemble, Finished, RoundDone
from given_models import prose

os.environ.setdefault("RAY_worker_niceness", "0")  # the same priority as the members of this process

LENGTHS = (100, 500, 900)  # tokens of the first member


@dataclass
class Traffic:
    """Messages between this process and the members."""

    calls: int = 0
    sent: int = 0  # bytes
    received: int = 0
    computed: float | None = None  # tokens, if the members' own counts don't tell


@contextmanager
def no_traffic(args: argparse.Namespace) -> Iterator[Traffic]:
    """Counts nothing: the members are in this process."""
    yield Traffic()


@contextmanager
def vllm_traffic(args: argparse.Namespace) -> Iterator[Traffic]:
    """Counts HTTP requests, the bytes of their JSON, and the tokens that the servers compute."""
    from adafuse_core.backends.servers.connection import Server

    traffic, attempt = Traffic(), Server._attempt
    before = computed_tokens(args.servers)

    async def counted(self: Any, method: str, url: str, options: Any) -> Any:
        answer = await attempt(self, method, url, options)
        traffic.calls += 1
        traffic.sent += len(json.dumps(options.get("body", "")))
        traffic.received += len(json.dumps(answer))
        return answer

    with mock.patch.object(Server, "_attempt", counted):
        yield traffic
    traffic.computed = computed_tokens(args.servers) - before


def computed_tokens(servers: Sequence[str]) -> float:
    """Tokens that vLLM servers have computed so far: those of prompts that were not cached, and generated ones."""
    total = 0.0
    for url in servers:
        with urlopen(f"{url.removesuffix('/v1')}/metrics") as answer:
            counters = re.findall(r"^vllm:(\w+)(?:\{[^}]*\})? (\S+)$", answer.read().decode(), re.MULTILINE)
        sums = {name: sum(float(value) for other, value in counters if other == name) for name, _ in counters}
        total += sums["prefix_cache_queries_total"] - sums["prefix_cache_hits_total"] + sums["generation_tokens_total"]
    return total


@contextmanager
def ray_traffic(args: argparse.Namespace) -> Iterator[Traffic]:
    """Counts calls of Ray actors and the bytes of their arguments and results."""
    from adafuse_core.backends.remote.ray_actor import ActorChannel

    traffic, ask = Traffic(), ActorChannel.ask

    def counted(self: Any, method: str, call: Any, check: Callable[[], None]) -> Any:
        reply = ask(self, method, call, check)
        traffic.calls += 1
        traffic.sent += len(pickle.dumps(call, protocol=5))
        traffic.received += len(pickle.dumps(reply, protocol=5))
        return reply

    with mock.patch.object(ActorChannel, "ask", counted):
        yield traffic


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A cluster on this machine, which listens on loopback, as Ray does where systems ask before a program listens."""
    import ray
    from ray._private import ray_constants

    with mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Kind:
    """A backend to measure.

    Args:
        options: Options of each of its members.
        traffic: Context that counts their messages.
        running: Context in which the members are loaded and used.
    """

    options: Callable[[argparse.Namespace, int], dict[str, Any]]
    traffic: Callable[[argparse.Namespace], AbstractContextManager[Traffic]] = no_traffic
    running: Callable[[], AbstractContextManager[None]] = nullcontext


def in_process(args: argparse.Namespace, member: int) -> dict[str, Any]:
    return {"device": args.device, "dtype": "float32", **common.FORGETFUL}


def on_cluster(args: argparse.Namespace, member: int) -> dict[str, Any]:
    return {**in_process(args, member), "backend": "ray", "backend_options": {"num_cpus": 1}}


def on_server(args: argparse.Namespace, member: int) -> dict[str, Any]:
    return {"backend": "vllm", "backend_options": {"base_url": args.servers[member]}}


BACKENDS = {
    "local": Kind(in_process),
    "ray": Kind(on_cluster, ray_traffic, ray_cluster),
    "vllm": Kind(on_server, vllm_traffic),
}


@dataclass
class Timed:
    """One answer."""

    text: str = ""
    first: float = 0.0  # seconds of the first round
    seconds: float = 0.0  # of the other rounds
    rounds: int = 0
    words: int = 0
    tokens: int = 0  # computed after the prompt, of all members


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--models", nargs=2, default=("small:aspen", "small:birch"), help="default: the small models")
    parser.add_argument("--backends", nargs="+", choices=tuple(BACKENDS), default=["local"], help="default: local")
    parser.add_argument("--servers", nargs=2, metavar="URL", help="of vLLM, one per model, such as http://HOST:8000/v1")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of the prompts")
    parser.add_argument("--words", type=int, default=24, help="words of an answer (default: 24)")
    parser.add_argument("--repeats", type=int, default=5, help="timed answers per row (default: 5)")
    parser.add_argument("--strategy", default="beam", help="default: beam")
    args = parser.parse_args()
    if args.quick:
        args.lengths, args.words, args.repeats = (60,), 4, 1
    result = common.prepare(args, {"strategy": args.strategy})
    result |= {"models": list(args.models), "dtype": "float32", "words": args.words, "repeats": args.repeats}
    tokenizer = AutoTokenizer.from_pretrained(common.folder_of(args.models[0]))
    with ExitStack() as stack:
        for name in args.backends:
            stack.enter_context(BACKENDS[name].running())
        ensembles = {name: stack.enter_context(ensemble(args, BACKENDS[name])) for name in args.backends}
        result["rows"] = [
            row for length in args.lengths for row in rows(args, ensembles, prose(tokenizer, length), length)
        ]
    show(result)
    common.finish(result, args.json)


def ensemble(args: argparse.Namespace, kind: Kind) -> Ensemble:
    """The loaded members on a backend, which read every prompt anew."""
    members = [{"model": model, **kind.options(args, place)} for place, model in enumerate(args.models)]
    return Ensemble({"members": members, "strategy": args.strategy}).load()


def rows(
    args: argparse.Namespace, ensembles: dict[str, Ensemble], prompt: str, length: int
) -> Iterator[dict[str, Any]]:
    """One row per backend."""
    timed: dict[str, list[Timed]] = {name: [] for name in ensembles}
    traffic = {}
    for name, each in ensembles.items():  # also warms up
        each.forget()  # servers have a prefix cache
        with BACKENDS[name].traffic(args) as traffic[name]:
            counted = answer(each, prompt, args.words)
        traffic[name] = (traffic[name], counted.rounds)
    for _ in range(args.repeats):
        for name, each in ensembles.items():
            each.forget()
            timed[name].append(answer(each, prompt, args.words))
    texts = {one.text for answers in timed.values() for one in answers}
    assert len(texts) == 1, f"the backends give different texts: {texts}"
    for name, answers in timed.items():
        messages, all_rounds = traffic[name]
        tokens = median(one.tokens for one in answers) if messages.computed is None else messages.computed
        wall = median(one.seconds for one in answers)
        yield {
            "backend": name,
            "prompt_tokens": length,
            "first_round_ms": 1e3 * median(one.first for one in answers),
            "ms_per_round": 1e3 * wall / (answers[0].rounds - 1),
            "ms_per_word": 1e3 * wall / answers[0].words,
            "fastest_ms_per_word": 1e3 * min(one.seconds for one in answers) / answers[0].words,
            "computed_tokens_per_round": tokens / answers[0].rounds,
            "calls_per_round": messages.calls / all_rounds,
            "bytes_sent_per_round": messages.sent / all_rounds,
            "bytes_received_per_round": messages.received / all_rounds,
            "wall_over_local": wall / median(one.seconds for one in timed["local"]) if "local" in timed else None,
            "rounds": answers[0].rounds,
            "words": answers[0].words,
            "text": answers[0].text,
        }


def answer(ensemble: Ensemble, prompt: str, words: int) -> Timed:
    """An answer of at least two rounds, of about so many words."""
    found, last = Timed(), time.perf_counter()
    for event in ensemble.stream(prompt, max_new_tokens=3 * words):
        if isinstance(event, RoundDone):
            now = time.perf_counter()
            found.rounds += 1
            found.text += event.round.span.text
            if found.rounds == 1:
                found.first = now - last
            else:
                found.seconds += now - last
                found.words += len(event.round.span.text.split())
            last = now
        elif isinstance(event, Finished):
            usage = event.usage
            found.tokens = sum(usage.read_tokens.values()) - sum(usage.prompt_tokens.values())
    found.words = max(1, found.words)
    return found


def show(result: dict[str, Any]) -> None:
    columns: Sequence[tuple[str, str]] = (
        ("prompt", "prompt_tokens"),
        ("backend", "backend"),
        ("first round ms", "first_round_ms"),
        ("ms/round", "ms_per_round"),
        ("ms/word", "ms_per_word"),
        ("wall/local", "wall_over_local"),
        ("computed tokens/round", "computed_tokens_per_round"),
        ("calls/round", "calls_per_round"),
        ("bytes sent/round", "bytes_sent_per_round"),
        ("received/round", "bytes_received_per_round"),
        ("rounds", "rounds"),
    )
    rows = [[row[key] for _, key in columns] for row in result["rows"]]
    common.show("two members, both counted together", [title for title, _ in columns], rows)


if __name__ == "__main__":
    main()
