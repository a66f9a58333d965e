"""Streaming clients of `adafuse serve`: waits, words, memory, and what clients leave behind that go away.

    python benchmarks/server.py --threads 2 --json PATH

The server runs in a process of its own on the small models, the clients are those of OpenAI. They stream the questions
of the demo one after the other for some time; each answer must equal the one that the server gives to a single client.
Then other clients go away at random places of their answers, and the KV memory of running requests must be empty again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import openai

import common
from adafuse_integrations.cli.questions import questions

MODEL = "adafuse"
_KV = re.compile(r'^adafuse_kv_tokens\{member="(\w+)",model="adafuse",of="(\w+)"\} (\S+)', re.MULTILINE)


@dataclass
class Measured:
    """What the clients have seen."""

    first: list[float] = field(default_factory=list)  # seconds to the first word
    words: list[float] = field(default_factory=list)  # seconds for each further word
    total: int = 0  # words
    answers: int = 0
    different: int = 0
    left: int = 0


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--clients", type=int, default=32, help="clients that stream (default: 32)")
    parser.add_argument("--leaving", type=int, default=64, help="clients that go away (default: 64)")
    parser.add_argument("--seconds", type=float, default=120.0, help="time of the first part (default: 120)")
    args = parser.parse_args()
    if args.quick:
        args.clients, args.leaving, args.seconds = 3, 6, 2.0
    result = common.prepare(args)
    asked = [question.question for question in questions("quiz")][: 4 if args.quick else 40]
    with served(args) as (url, process):
        result |= asyncio.run(measured(url, process.pid, asked, args))
    show(result)
    common.finish(result, args.json)
    assert result["different"] == 0, "an answer differs from the one that a single client gets"
    assert not any(result["kv_running_after"].values()), "clients that left hold KV memory"


@contextmanager
def served(args: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, and its address."""
    options = ["--port", "0", "--max-running", str(args.clients), "--max-queue", str(args.leaving)]
    command = [sys.executable, "-m", "adafuse_integrations.cli.main", "serve", *options, "--device", args.device]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "running on" in line)
        yield line.partition("running on ")[2].split()[0], process
    finally:
        process.terminate()
        process.communicate()


async def measured(url: str, pid: int, asked: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Both parts of the measurement."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        expected = {question: await streamed(client, question, Measured()) for question in asked}
        seen, memory = Measured(), [memory_mb(pid)]
        until = time.monotonic() + args.seconds
        streams = [stream_until(client, asked, place, until, expected, seen) for place in range(args.clients)]
        watch = asyncio.create_task(watch_memory(pid, memory))
        await asyncio.gather(*streams)
        watch.cancel()
        until = time.monotonic() + args.seconds / 4
        await asyncio.gather(*(leave_until(client, asked, place, until, seen) for place in range(args.leaving)))
    kv = await kv_tokens(url)
    return {
        "clients": args.clients,
        "answers": seen.answers,
        "different": seen.different,
        "words_per_second": seen.total / args.seconds,
        "first_word_seconds": percentiles(seen.first),
        "word_seconds": percentiles(seen.words),
        "memory_mb": [memory[place * (len(memory) - 1) // 4] for place in range(5)],
        "left": seen.left,
        "kv_running_after": kv["running"],
        "kv_cached_after": kv["cached"],
    }


async def stream_until(
    client: openai.AsyncOpenAI, asked: Sequence[str], place: int, until: float, expected: dict[str, str], seen: Measured
) -> None:
    """One client: question after question."""
    while time.monotonic() < until:
        question = asked[place % len(asked)]
        seen.different += await streamed(client, question, seen) != expected[question]
        seen.answers += 1
        place += 1


async def streamed(client: openai.AsyncOpenAI, question: str, seen: Measured) -> str:
    """The answer to a question, with the times of its words."""
    before, text = time.monotonic(), ""
    messages: Any = [{"role": "user", "content": question}]
    async for chunk in await client.chat.completions.create(model=MODEL, messages=messages, stream=True):
        new = chunk.choices[0].delta.content or ""
        now, words = time.monotonic(), len(new.split())
        seen.total += words
        if words and not text:
            seen.first.append(now - before)
        elif words:
            seen.words += [(now - before) / words] * words
        before, text = (now if words else before), text + new
    return text


async def leave_until(
    client: openai.AsyncOpenAI, asked: Sequence[str], place: int, until: float, seen: Measured
) -> None:
    """One client that goes away at a random place of each answer."""
    chance = random.Random(place)
    while time.monotonic() < until:
        messages: Any = [{"role": "user", "content": chance.choice(asked)}]
        async with await client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream:
            left = chance.randint(0, 5)
            async for _ in stream:
                if (left := left - 1) < 0:
                    break
        seen.left += 1


async def kv_tokens(url: str) -> dict[str, dict[str, float]]:
    """Tokens in KV memory by member, once no request runs."""
    async with httpx.AsyncClient() as client:
        for _ in range(300):
            text = (await client.get(f"{url}/metrics")).text
            if "adafuse_requests_running 0.0" in text:
                break
            await asyncio.sleep(0.1)
    found: dict[str, dict[str, float]] = {"running": {}, "cached": {}}
    for member, kind, value in _KV.findall(text):
        found[kind][member] = float(value)
    return found


async def watch_memory(pid: int, memory: list[float]) -> None:
    """Sample the memory of the server."""
    while True:
        memory.append(memory_mb(pid))
        await asyncio.sleep(0.5)


def memory_mb(pid: int) -> float:
    """Resident memory of a process; 0 where it is unknown."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    cuts = quantiles(values, n=20)
    return {"p50": cuts[9], "p95": cuts[18]}


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    rows = [
        (name, *(1000 * result[key][each] for each in ("p50", "p95")))
        for name, key in (("time to first word, ms", "first_word_seconds"), ("time per word, ms", "word_seconds"))
    ]
    note = f"{result['answers']} answers, {result['different']} different from a single client's"
    common.show(f"{result['clients']} streaming clients", ("", "p50", "p95"), rows, note)
    rows = [
        ("words per second", result["words_per_second"]),
        ("memory at the start and after each quarter, MB", ", ".join(f"{each:.0f}" for each in result["memory_mb"])),
        ("clients that left", result["left"]),
        ("KV tokens of running requests afterwards", sum(result["kv_running_after"].values())),
        ("KV tokens kept for later requests", sum(result["kv_cached_after"].values())),
    ]
    common.show("server", ("", ""), rows)


if __name__ == "__main__":
    main()
