"""Members on real vLLM servers on loopback. `make test-vllm` installs vLLM and runs these tests; others skip them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch

from adafuse_core import Ensemble
from adafuse_core.backends.servers.read_kinds import ReadKinds
from adafuse_core.errors import ContextOverflowError, TokenizerMismatchError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.loader import load_member
from adafuse_core.small_models import path
from tests.backends.contract import BackendContract, greedy

PYTHON = os.environ.get("ADAFUSE_VLLM")  # of an environment with vLLM
WINDOW = 1024
SECONDS = 600  # in which a server starts on a busy machine
# Without a GPU, in float32, with little memory, and without compiling for a minute at the first request.
OPTIONS = [
    *("--dtype", "float32", "--max-model-len", str(WINDOW), "--enforce-eager", "--block-size", "32"),
    *("--kv-cache-memory-bytes", str(64 * 2**20), "--max-num-seqs", "64", "--enable-prompt-tokens-details"),
]
ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("What is the capital of Peru?", "Who wrote Faust?", "Tell me about yourself.")
]
LONG = "Anna went to the market with her brother, and the tallest tower is in the old town. " * 45

pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="run it with `make test-vllm`"),
    pytest.mark.timeout(1800),
]


class Process:
    """A vLLM server in a process of its own, which can be killed and started again."""

    def __init__(self, folder, name, log):
        self.folder, self.name, self.log = folder, name, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def root(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder)]
        command += ["--served-model-name", self.name, "--host", "127.0.0.1", "--port", str(self.port), *OPTIONS]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self):
        since = time.monotonic()
        while time.monotonic() - since < SECONDS:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.root}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"the server did not start: {self.log.read_text()[-3000:]}")

    def kill(self):
        """Kill the server and the processes that it has started, without a chance to say goodbye."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def metric(self, name):
        """The sum of a counter."""
        with urllib.request.urlopen(f"{self.root}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(
            float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        )


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers. The models' own sampling options would change their greedy texts."""
    folder, started = tmp_path_factory.mktemp("servers"), {}
    try:
        for name in ("aspen", "birch"):
            shutil.copytree(path(name), folder / name)
            config = folder / name / "generation_config.json"
            options = json.loads(config.read_text()) if config.exists() else {}
            config.write_text(json.dumps({**options, "repetition_penalty": 1.8, "temperature": 0.7, "do_sample": True}))
            started[name] = Process(folder / name, name, folder / f"{name}.log")
        for server in started.values():
            server.wait()
        yield started
    finally:
        for server in started.values():
            server.kill()


@pytest.fixture
def remote(servers):
    def remote(name, at=None, **options):
        options = {"base_url": servers[at or name].root, "deadline": 600.0, **options}
        return {"model": f"small:{name}", "backend": "vllm", "backend_options": options}

    return remote


@pytest.fixture
def local():
    return lambda name: {"model": f"small:{name}", "dtype": "float32", "device": "cpu"}


class TestContract(BackendContract):
    """The tests of all backends."""

    dtype = torch.float32
    tolerance = 1e-4
    counts_tokens = False  # the tests' prompts are shorter than a block of the prefix cache
    steps_ahead = 8

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls, servers):
        return MemberConfig(model="small:birch", backend="vllm", backend_options={"base_url": servers["birch"].root})

    def test_the_abilities_stay_the_same(self, backend, member):
        assert backend.abilities() == member.abilities
        assert (member.abilities.top, member.abilities.max_context) == (20, WINDOW)


@pytest.mark.parametrize("strategy", ["beam", "adafuse", "token_union", "rerank"])
def test_texts_are_those_of_local_members_in_float32(strategy, local, remote):
    texts = []
    for place in (local, remote):
        with Ensemble(members=[place("aspen"), place("birch")], strategy=strategy) as ensemble:
            texts.append([ensemble.generate(prompt, max_new_tokens=24).text for prompt in PROMPTS])
    assert texts[0] == texts[1]
    with Ensemble(members=[local("aspen"), remote("birch")], strategy=strategy) as ensemble:
        assert ensemble.generate(PROMPTS[0], max_new_tokens=24).text == texts[0][0]


def test_requests_at_the_same_time(local, remote):
    prompts = PROMPTS * 3
    with Ensemble(members=[local("aspen"), local("birch")], strategy="adafuse") as ensemble:
        expected = [answer.text for answer in ensemble.batch(prompts, max_new_tokens=16)]
    with Ensemble(members=[remote("aspen"), remote("birch")], strategy="adafuse") as ensemble:
        assert [answer.text for answer in ensemble.batch(prompts, max_new_tokens=16)] == expected


def test_scores_use_the_prefix_cache(servers, remote):
    server = servers["birch"]
    member = load_member(MemberConfig(**remote("birch")))
    ids = tuple(member.prompt_reader.tokenizer(LONG)["input_ids"])[:900]
    session = member.backend.open(ids, window=None, lookup=False, raise_if_cancelled=lambda: None)
    session.draft([ids], 4, 3, lambda *_: True)
    names = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total", "vllm:request_success_total")
    before = [server.metric(name) for name in names]
    words = [
        tuple(member.prompt_reader.tokenizer(word)["input_ids"]) for word in (" river", " the old", " 1984 towers")
    ]
    session.score([ids] * 3, words)
    hits, queries, rows = (server.metric(name) - first for name, first in zip(names, before, strict=True))
    assert rows >= 4
    assert queries >= rows * 900
    assert hits >= rows * 896  # all full blocks of the prompt, for every row
    again = member.backend.open(ids, window=None, lookup=False, raise_if_cancelled=lambda: None)
    again.draft([ids], 1, 2, lambda *_: True)
    assert again.tokens().cached >= 864
    other = member.backend.open(ids, window=None, lookup=False, raise_if_cancelled=lambda: None, namespace="other")
    other.draft([ids], 1, 2, lambda *_: True)
    assert other.tokens().cached == 0
    member.close()


def test_drafts_beside_reads_of_another_client(remote, local):
    """vLLM's first model runner loses the likeliest tokens of drafts in passes that also read given tokens."""
    member = load_member(MemberConfig(**remote("birch")))
    other = load_member(MemberConfig(**remote("birch")))
    other.backend.kinds = ReadKinds()  # as if it were in another process
    ids = tuple(member.prompt_reader.tokenizer(LONG)["input_ids"])[:100]
    done = threading.Event()

    def read():
        at = 0
        while not done.is_set():
            at += 1
            session = other.backend.open(ids, window=None, lookup=False, raise_if_cancelled=lambda: None)
            session.score([ids[: 20 + at % 50]] * 8, [(token, token + 1) for token in range(30, 38)])

    thread = threading.Thread(target=read)
    expected = load_member(MemberConfig(**local("birch")))
    thread.start()
    try:
        for length in range(60, 100, 8):
            rows = []
            for each in (member, expected):
                session = each.backend.open(ids[:length], window=None, lookup=False, raise_if_cancelled=lambda: None)
                rows.append(session.draft([ids[:length]], 12, 5, lambda *_: False)[0])
            assert greedy(rows[0]) == greedy(rows[1])
            for one, reference in zip(*rows, strict=True):
                assert list(one.logprobs) == pytest.approx(list(reference.logprobs), abs=1e-4)
    finally:
        done.set()
        thread.join()
    for each in (member, other, expected):
        each.close()


def test_another_tokenizer_is_refused(remote):
    with pytest.raises(TokenizerMismatchError, match=r"member 'aspen'.*encodes"):
        load_member(MemberConfig(**remote("aspen", at="birch")))


def test_a_prompt_that_is_too_long_is_refused(servers, remote):
    with Ensemble(members=[remote("birch")], strategy="single") as ensemble:
        with pytest.raises(ContextOverflowError, match="member 'birch'"):
            ensemble.generate(LONG * 4)
        (member,) = ensemble.members
        session = member.backend.open((5, 6), window=None, lookup=False, raise_if_cancelled=lambda: None)
        session._limit = 10**6  # so that the server itself refuses
        with pytest.raises(ContextOverflowError, match=str(WINDOW)):
            session.draft([(5,) * (WINDOW + 5)], 1, 2, lambda *_: True)


def test_a_server_that_is_killed_and_started_again_does_not_change_the_answer(servers, local, remote):
    with Ensemble(members=[local("aspen"), local("birch")]) as ensemble:
        expected = ensemble.generate(PROMPTS[2], max_new_tokens=32).text
    with Ensemble(members=[remote("aspen"), remote("birch")]).load() as ensemble:
        stream = ensemble.stream(PROMPTS[2], max_new_tokens=32)
        events = [next(stream)]
        servers["birch"].kill()
        starting = threading.Timer(1.0, servers["birch"].start)
        starting.start()
        events += stream
        starting.join()
    assert "".join(getattr(event, "text", "") for event in events) == expected
