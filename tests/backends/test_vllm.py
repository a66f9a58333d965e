"""The backend for vLLM servers, against a small server on loopback with the same routes."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading

import pytest
from starlette.responses import JSONResponse

from adafuse_core import Ensemble, Grammar
from adafuse_core.backends import server as server_module
from adafuse_core.backends import server_session
from adafuse_core.backends.known_steps import KnownSteps
from adafuse_core.backends.read_kinds import ReadKinds
from adafuse_core.backends.vllm import VLLM
from adafuse_core.errors import (
    CancelledError,
    ConfigError,
    ContextOverflowError,
    MemberError,
    ModelLoadError,
    ModelNotFoundError,
    NonFiniteLogitsError,
    TokenizerMismatchError,
    UnsupportedModelError,
)
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.loader import load_member
from adafuse_core.small_models import path
from tests import tiny
from tests.backends import vllm_server
from tests.backends.contract import BackendContract, greedy
from tests.backends.vllm_server import failing, running
from tests.integrations.test_forks import in_child

PROMPT = "The quick brown"
KEY = "sk-very-secret-42"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return {
        "bytes": tiny.save_tiny(folder / "bytes", tiny.byte_level(), tiny.llama),
        "pieces": tiny.save_tiny(folder / "pieces", tiny.metaspace(), tiny.sliding_mistral, seed=1),
    }


@pytest.fixture(scope="module")
def servers(folders):
    with running(folders["bytes"], name="bytes") as one, running(folders["pieces"], name="pieces") as other:
        yield {"bytes": one, "pieces": other}


@pytest.fixture(autouse=True)
def fresh(servers, monkeypatch):
    """No faults are left of other tests, and retries follow each other quickly."""
    for served in servers.values():
        served.model.requests.clear()
        served.model.faults.clear()
    monkeypatch.setattr(server_module, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(server_session, "_WAIT_SECONDS", 0.01)


@pytest.fixture
def remote(folders, servers):
    """The config of a member on a server."""

    def remote(name="bytes", url=None, **options):
        options = {"deadline": 20.0, **options, "base_url": url or servers[name].url}
        return {"model": str(folders[name]), "name": name, "backend": "vllm", "backend_options": options}

    return remote


@pytest.fixture
def local(folders):
    return lambda name: {"model": str(folders[name]), "name": name, "dtype": "float64", "device": "cpu"}


@pytest.fixture
def answer(remote, local):
    """The answer of one member on a server, and the plain answer of the same model."""

    def answer(prompt=PROMPT, **options):
        with Ensemble(members=[remote(**options)], strategy="single") as ensemble:
            return ensemble.generate(prompt, max_new_tokens=12).text

    return answer


@pytest.fixture(scope="module")
def expected(folders):
    config = {"model": str(folders["bytes"]), "dtype": "float64", "device": "cpu"}
    with Ensemble(members=[config], strategy="single") as ensemble:
        return ensemble.generate(PROMPT, max_new_tokens=12).text


class TestContract(BackendContract):
    """The tests of all backends."""

    steps_ahead = 8  # of the first answer

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        with running(path("birch"), window=2048) as served:
            options = {"base_url": served.url, "draft_tokens": 4}
            yield MemberConfig(model="small:birch", backend="vllm", backend_options=options)

    def test_the_abilities_stay_the_same(self, backend, member, reference):
        assert backend.abilities() == member.abilities
        assert member.abilities.vocab_size == reference.model.config.vocab_size
        assert (member.abilities.top, member.abilities.masks, member.abilities.max_context) == (20, False, 2048)


# --- the same answers ---


@pytest.mark.parametrize("strategy", ["adafuse", "beam", "token_union"])
def test_text_and_rounds_are_those_of_local_members(strategy, local, remote):
    options = {"strategy": strategy} | ({"horizon": 3} if strategy == "beam" else {})
    with Ensemble(members=[local("bytes"), local("pieces")], **options) as ensemble:
        plain = ensemble.generate(PROMPT, max_new_tokens=8)
    for members in ([remote("bytes"), remote("pieces")], [local("bytes"), remote("pieces")]):
        with Ensemble(members=members, **options) as ensemble:
            found = ensemble.generate(PROMPT, max_new_tokens=8)
        assert found.text == plain.text
        assert len(found.rounds) == len(plain.rounds)
        for one, other in zip(found.rounds, plain.rounds, strict=True):
            assert one.candidates == other.candidates
            assert one.fused == pytest.approx(other.fused, abs=1e-9)
