"""The backend for vLLM servers, against a small server on loopback with the same routes."""

from __future__ import annotations

import logging
import os
import pickle
import threading

import pytest
from starlette.responses import JSONResponse

from adafuse_core import Ensemble, Grammar
from adafuse_core.backends.servers import connection as server_module
from adafuse_core.backends.servers import session as server_session
from adafuse_core.backends.servers.known_steps import KnownSteps
from adafuse_core.backends.servers.read_kinds import ReadKinds
from adafuse_core.backends.servers.vllm import VLLM
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
        options = {"deadline": 20.0, "draft_tokens": 4, **options, "base_url": url or servers[name].url}
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
    options = {"strategy": strategy} | ({"horizon": 2, "beams": 2} if strategy == "beam" else {})
    with Ensemble(members=[local("bytes"), local("pieces")], **options) as ensemble:
        plain = ensemble.generate(PROMPT, max_new_tokens=6)
    mixed = [local("bytes"), remote("pieces")]
    for members in ([remote("bytes"), remote("pieces")], *[mixed] * (strategy == "adafuse")):
        with Ensemble(members=members, **options) as ensemble:
            found = ensemble.generate(PROMPT, max_new_tokens=6)
        assert found.text == plain.text
        assert len(found.rounds) == len(plain.rounds)
        for one, other in zip(found.rounds, plain.rounds, strict=True):
            assert one.candidates == other.candidates
            assert one.fused == pytest.approx(other.fused, abs=1e-9)


def test_what_answers_have_told_is_not_asked_again(remote, servers):
    member = load_member(MemberConfig(**remote()))
    requests, prompt = servers["bytes"].model.requests, (5, 6, 7)
    session = member.backend.open(prompt, window=None, lookup=False, raise_if_cancelled=lambda: None)
    ((*steps,),) = session.draft([prompt], 6, 3, lambda *_: False)
    count = len(requests)
    session.score([prompt, prompt], [greedy(steps), (steps[0].ids[2],)])
    session.commit((*prompt, *greedy(steps)[:2]))
    session.draft([(*prompt, *greedy(steps)[:2])], 4, 3, lambda *_: False)
    assert len(requests) == count
    unknown = next(token for token in range(400) if token not in steps[0].ids[:5])
    session.score([prompt, prompt], [(unknown, 8), (unknown, 9)])
    assert len(requests) == count + 1
    assert requests[-1]["prompt"] == [list(prompt), [*prompt, unknown]]
    assert sorted(requests[-1]["logprob_token_ids"]) == sorted([8, 9, unknown])
    assert "prompt_logprobs" not in requests[-1]  # vLLM would not use its prefix cache
    member.close()


def test_many_tokens_are_read_in_several_requests(remote, servers):
    member = load_member(MemberConfig(**remote()))
    prompt = (5, 6, 7)
    session = member.backend.open(prompt, window=None, lookup=False, raise_if_cancelled=lambda: None)
    rows = session.score([prompt] * 300, [(token, 3) for token in range(300)])
    sent = [body for body in servers["bytes"].model.requests if "logprob_token_ids" in body]
    assert max(len(body["logprob_token_ids"]) for body in sent) <= 128
    assert max(len(body["prompt"]) for body in sent) <= 64
    reference = servers["bytes"].model
    reference.read([[*prompt, token] for token in range(300)])
    for token, row in enumerate(rows):
        assert row[0] == pytest.approx(float(reference.known[prompt][token]), abs=1e-9)
        assert row[1] == pytest.approx(float(reference.known[(*prompt, token)][3]), abs=1e-9)
    member.close()


def test_sampling_options_of_the_served_model_do_not_matter(answer, expected, servers):
    model = servers["bytes"].model
    assert model.repetition_penalty > 1
    assert answer() == expected
    assert all(body["repetition_penalty"] == 1 and body["temperature"] == 0 for body in model.requests)


def test_requests_share_cached_prefixes_of_their_namespace_only(remote, servers):
    with Ensemble(members=[remote()], strategy="single").load() as ensemble:

        def salts(namespace):
            servers["bytes"].model.requests.clear()
            ensemble.generate(PROMPT, max_new_tokens=2, cache_namespace=namespace)
            return {body.get("cache_salt") for body in servers["bytes"].model.requests}

        first, other = salts("alice"), salts("bob")
        assert salts("") == {None}
        assert len(first) == len(other) == 1
        assert first != other
        assert salts("alice") == first
        assert "alice" not in str(first)
        ensemble.forget("alice")
        assert salts("alice") != first
        assert salts("bob") == other


# --- the server fails ---


@pytest.mark.parametrize("fault", [failing(500), failing(503)])
def test_errors_of_the_server_are_retried(answer, expected, servers, fault, caplog):
    servers["bytes"].model.faults += [lambda _: None, lambda _: None, fault, fault]  # not of the handshake
    assert answer() == expected
    (warning,) = [record for record in caplog.records if record.name.endswith("backends.servers.connection")]
    assert servers["bytes"].url in warning.getMessage()


def test_an_answer_goes_on_after_the_server_was_started_again(remote, servers, expected):
    served = servers["bytes"]
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        stream, text = ensemble.stream(PROMPT, max_new_tokens=12), []
        text.append(next(stream))
        served.stop()
        starting = threading.Timer(0.2, served.start)
        starting.start()
        text += stream
        starting.join()
    assert "".join(getattr(event, "text", "") for event in text) == expected


def test_a_server_that_stays_away_is_an_error_with_address_attempts_and_hint(remote, servers):
    served = servers["bytes"]
    with Ensemble(members=[remote(deadline=0.1)], strategy="single") as ensemble:
        ensemble.load()
        served.stop()
        try:
            with pytest.raises(MemberError, match=r"member 'bytes': .* did not answer: \d+ attempts in") as caught:
                ensemble.generate(PROMPT, max_new_tokens=12)
        finally:
            served.start()
        assert served.url in caught.value.message
        assert "deadline" in caught.value.hint
        assert caught.value.retryable
        assert ensemble.generate(PROMPT, max_new_tokens=2).text  # the next request finds it again


def test_a_server_that_fails_at_one_request_only_is_not_asked_forever(remote, servers):
    with Ensemble(members=[remote(deadline=1e6)], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.requests.clear()
        servers["bytes"].model.faults += [failing(500)] * 50
        with pytest.raises(MemberError, match="attempts"):
            ensemble.generate(PROMPT, max_new_tokens=4)
    assert len(servers["bytes"].model.requests) == 5


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (401, False), (404, False), (429, True)])
def test_refused_requests_are_not_repeated(remote, servers, status, retryable):
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.requests.clear()
        servers["bytes"].model.faults.append(failing(status))
        with pytest.raises(MemberError, match=rf"member 'bytes'.*{servers['bytes'].url}.*HTTP {status}") as caught:
            ensemble.generate(PROMPT, max_new_tokens=4)
    assert caught.value.retryable is retryable
    assert caught.value.hint
    assert len(servers["bytes"].model.requests) == 1


@pytest.mark.parametrize(
    "fault", [vllm_server.garbled, vllm_server.another_format, vllm_server.too_few, vllm_server.empty]
)
def test_answers_in_another_format_are_errors(remote, servers, fault):
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.faults.append(fault)
        with pytest.raises(MemberError, match=r"(?s)member 'bytes'.*(not JSON|unknown format)") as caught:
            ensemble.generate(PROMPT, max_new_tokens=4)
    assert servers["bytes"].url in caught.value.message
    assert not caught.value.retryable


@pytest.mark.parametrize("fault", [vllm_server.not_finite, vllm_server.not_finite_refused])
def test_numbers_that_are_not_finite_are_errors(remote, servers, fault):
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.faults.append(fault)
        with pytest.raises(NonFiniteLogitsError, match="member 'bytes'"):
            ensemble.generate(PROMPT, max_new_tokens=4)


def test_a_call_that_takes_too_long_is_repeated(answer, expected, servers):
    hanging = vllm_server.Hanging()
    servers["bytes"].model.faults += [lambda _: None, lambda _: None, hanging]
    assert answer(timeout=0.3) == expected
    assert hanging.left.wait(10)  # the connection was closed


def test_a_request_is_cancelled_while_the_server_works(remote, servers):
    cancel, failed = threading.Event(), []
    hanging = vllm_server.Hanging()
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.faults.append(hanging)

        def ask():
            with pytest.raises(CancelledError) as caught:
                ensemble.generate(PROMPT, cancel=cancel)
            failed.append(caught.value)

        thread = threading.Thread(target=ask)
        thread.start()
        assert hanging.begun.wait(10)
        cancel.set()
        thread.join(10)
        assert hanging.left.wait(10)  # the server can stop, too
    assert failed


def test_likeliest_tokens_that_other_clients_have_displaced_are_read_again(answer, expected, servers):
    model = servers["bytes"].model
    lost = vllm_server.without_likeliest(model)
    model.faults += [lambda _: None, lambda _: None, lost, lost]
    assert answer() == expected
    assert [body["prompt"] for body in model.requests[2:4]] == [model.requests[4]["prompt"]] * 2


def test_drafts_without_likeliest_tokens_are_an_error_at_the_deadline(remote, servers):
    with Ensemble(members=[remote(deadline=0.05)], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.faults += [vllm_server.without_likeliest(servers["bytes"].model)] * 100
        with pytest.raises(MemberError, match="likeliest tokens") as caught:
            ensemble.generate(PROMPT, max_new_tokens=4)
    assert "logprob_token_ids" in caught.value.hint


def test_a_model_that_is_freed_while_it_is_in_use_is_an_error(remote, servers):
    hanging, failed = vllm_server.Hanging(), []
    ensemble = Ensemble(members=[remote()], strategy="single").load()
    servers["bytes"].model.faults.append(hanging)

    def ask():
        with pytest.raises(MemberError, match=r"freed by close\(\)") as caught:
            ensemble.generate(PROMPT)
        failed.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    assert hanging.begun.wait(10)
    ensemble.close()
    thread.join(10)
    assert failed


def test_a_failed_request_ends_those_that_were_sent_with_it(remote, servers):
    hanging = vllm_server.Hanging()
    member = load_member(MemberConfig(**remote()))
    servers["bytes"].model.faults += [hanging, failing(400)]
    session = member.backend.open((5, 6, 7), window=None, lookup=False, raise_if_cancelled=lambda: None)
    with pytest.raises(MemberError, match="HTTP 400"):
        session.score([(5, 6, 7)] * 200, [(token,) for token in range(200)])
    assert hanging.left.wait(10)
    member.close()


def test_another_model_after_an_outage_is_refused(remote, servers):
    model = servers["bytes"].model
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        ensemble.load()
        model.faults.append(failing(500))
        model.window += 1
        try:
            with pytest.raises(MemberError, match=r"replaced during an outage.*context window") as caught:
                ensemble.generate(PROMPT, max_new_tokens=4)
        finally:
            model.window -= 1
    assert not caught.value.retryable


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_connections_of_its_own(remote, expected):
    with Ensemble(members=[remote()], strategy="single") as ensemble:

        def text():
            return ensemble.generate(PROMPT, max_new_tokens=12).text

        assert text() == expected
        assert in_child(text) == expected
        assert text() == expected


# --- the handshake ---


def test_a_prompt_that_is_too_long_is_refused_before_it_is_sent(remote, servers):
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.requests.clear()
        with pytest.raises(ContextOverflowError, match=r"member 'bytes'.* 256") as caught:
            ensemble.generate("word " * 70)
    assert "max-model-len" in caught.value.hint
    assert not servers["bytes"].model.requests


def test_a_prompt_that_the_server_finds_too_long_is_the_same_error(remote, servers):
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        ensemble.load()
        servers["bytes"].model.window = 10
        try:
            with pytest.raises(ContextOverflowError, match=r"member 'bytes'.*maximum context length is 10"):
                ensemble.generate("The quick brown fox jumps over", max_new_tokens=4)
        finally:
            servers["bytes"].model.window = 256


def test_an_answer_ends_where_the_context_of_the_server_is_full(remote, local, servers):
    prompt = "x " * 122
    with Ensemble(members=[{**local("bytes"), "context_window": 256}], strategy="single") as ensemble:
        expected = ensemble.generate(prompt, max_new_tokens=40)
    with Ensemble(members=[remote()], strategy="single") as ensemble:
        found = ensemble.generate(prompt, max_new_tokens=40)
    assert (found.text, found.reason) == (expected.text, expected.reason)
    assert found.reason == "length"
    assert found.usage.completion_tokens["bytes"] < 16


def refusal(config, kind, match):
    with pytest.raises(kind, match=match) as caught:
        load_member(MemberConfig(**config))
    assert caught.value.hint
    return caught.value


def test_another_tokenizer_is_refused(remote, servers):
    error = refusal(remote("bytes", servers["pieces"].url), TokenizerMismatchError, "encodes .* as .* tokenizer as")
    assert servers["pieces"].url in error.message


def test_a_model_that_the_server_lacks_is_refused_with_those_that_it_has(remote):
    refusal(remote(model="pieces"), ModelNotFoundError, r"no model 'pieces'.*\['bytes'\]")
    load_member(MemberConfig(**remote(model="bytes"))).close()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fields": ("cache_salt",)}, "does not know logprob_token_ids and return_tokens_as_token_ids"),
        ({"reports": "logits"}, "add up to"),
        ({"reports": "top"}, "does not report the log-probabilities of given tokens"),
        ({"window": None}, "max_model_len"),
        ({"missing": "/tokenize"}, "/tokenize .*HTTP 404"),
        ({"missing": "/v1/models", "instead": {"hello": 1}}, "unknown format"),
        ({"reports": "nothing"}, "unknown format"),
    ],
)
def test_a_server_that_lacks_something_is_refused(remote, servers, monkeypatch, change, match):
    for name, value in change.items():
        monkeypatch.setattr(servers["bytes"].model, name, value)
    error = refusal(remote(), UnsupportedModelError, match)
    assert servers["bytes"].url in error.message


def test_the_number_of_likeliest_tokens_is_what_the_server_allows(remote, servers, monkeypatch):
    monkeypatch.setattr(servers["bytes"].model, "max_logprobs", 7)
    with Ensemble(members=[remote()], branches=5) as ensemble:
        (member,) = ensemble.load().members
        assert member.abilities.top == 5
    with pytest.raises(ConfigError, match=r"member 'bytes'.*reads the 6 likeliest tokens.*reports 5"):
        Ensemble(members=[remote()], branches=6).load()
    refusal(remote(top=9), ModelLoadError, "logprobs of 9")
    member = load_member(MemberConfig(**remote(top=7)))
    assert member.abilities.top == 7
    member.close()


def test_a_server_that_is_not_there_is_an_error_when_the_ensemble_is_loaded(remote):
    refusal(remote(url="http://127.0.0.1:9/v1", deadline=0.05), ModelLoadError, "127.0.0.1:9.*did not answer")


def test_the_version_and_the_list_of_fields_may_be_missing(remote, servers, monkeypatch):
    monkeypatch.setattr(servers["bytes"].model, "missing", ("/version", "/openapi.json"))
    member = load_member(MemberConfig(**remote()))
    assert "unknown version" in member.abilities.device
    member.close()


def test_what_needs_masks_or_whole_distributions_is_refused(remote, local):
    with Ensemble(members=[local("pieces"), remote()]) as ensemble, pytest.raises(ConfigError, match="mask"):
        ensemble.generate(PROMPT, grammar=Grammar.regex("[a-z]+"))
    with pytest.raises(ConfigError, match=r"member 'bytes'.*whole next-token distributions"):
        Ensemble(members=[local("pieces"), remote()], strategy="token_union", union="full").load()
    with pytest.raises(ConfigError, match=r"member 'bytes'.*reads the 21 likeliest tokens.*reports 20"):
        Ensemble(members=[local("pieces"), remote()], strategy="token_union", top_tokens=21).load()


# --- options and secrets ---


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "base_url"),
        ({"base_url": "127.0.0.1:8000"}, "base_url='127.0.0.1:8000', expected a URL"),
        ({"base_url": "http://user:pass@127.0.0.1"}, "user name or a password"),
        ({"base_url": "http://127.0.0.1", "timeout": 0}, "timeout=0"),
        ({"base_url": "http://127.0.0.1", "deadline": -1}, "deadline=-1"),
        ({"base_url": "http://127.0.0.1", "top": 1}, "top=1"),
        ({"base_url": "http://127.0.0.1", "draft_tokens": 0}, "draft_tokens=0"),
        ({"base_url": "http://127.0.0.1", "api_key": 7}, "api_key='\\*\\*\\*'"),
        ({"base_url": "http://127.0.0.1", "modle": "x"}, "modle"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ConfigError, match=match) as caught:
        Ensemble(members=[{"model": "m", "backend": "vllm", "backend_options": options}])
    assert "pass@" not in str(caught.value)


def test_urls_may_leave_out_the_path():
    for url in ("http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/"):
        assert VLLM(base_url=url).base_url == "http://127.0.0.1:8000/v1"
    assert VLLM(base_url="https://host/models/a/v1").base_url == "https://host/models/a/v1"


def test_the_api_key_is_sent_and_appears_nowhere_else(remote, servers, monkeypatch, caplog, tmp_path):
    model = servers["bytes"].model
    monkeypatch.setattr(model, "api_key", KEY)
    with caplog.at_level(logging.DEBUG), Ensemble(members=[remote(api_key=KEY)], strategy="single") as ensemble:
        found = ensemble.generate(PROMPT, max_new_tokens=3)
        ensemble.save(tmp_path / "saved.yaml")
        (config,) = ensemble.config.members
        (member,) = ensemble.members
        model.faults.append(lambda _: JSONResponse({"error": {"message": f"no {KEY}"}}, 400))
        with pytest.raises(MemberError) as caught:
            ensemble.generate(PROMPT, max_new_tokens=3)
        shown = [repr(ensemble.config), repr(config), str(caught.value), found.trace.to_json(), repr(found)]
        shown += [str(ensemble.describe()), repr(member.backend), repr(member.backend.server.address), caplog.text]
        shown += [config.load_key, (tmp_path / "saved.yaml").read_text(), repr(VLLM(base_url="http://a", api_key=KEY))]
    assert len(model.requests) > 2
    assert not [text for text in shown if KEY in text]
    assert pickle.loads(pickle.dumps(config)).backend_options["api_key"] == KEY
    other = MemberConfig(**remote(api_key="sk-other"))
    assert other.load_key != config.load_key


def test_a_wrong_api_key_is_refused(remote, servers, monkeypatch):
    monkeypatch.setattr(servers["bytes"].model, "api_key", KEY)
    error = refusal(remote(), ModelLoadError, "HTTP 401")
    assert "api_key" in error.hint


# --- the parts ---


def test_known_steps_survive_changes_of_the_last_tokens():
    known = KnownSteps(tuple(range(20)))
    for length in (18, 20, 21, 22):
        known.at(tuple(range(length))).add({5: float(length)})
    known.at((*range(20), 99)).add({5: 1.0})
    assert known.tokens_read == 23
    known.commit(tuple(range(21)))
    kept = {length: known.get(tuple(range(length))) for length in (18, 20, 21, 22)}
    assert {length for length, step in kept.items() if step} == {18, 20, 21, 22}
    assert known.get((*range(20), 99)) is None
    known.commit((*range(10), 50))  # shorter, and other tokens
    assert known.get(tuple(range(21))) is None
    known.at((*range(10), 50, 51)).add({1: 0.5})
    assert known.get((*range(10), 50, 51)).logprobs == {1: 0.5}
    known.at((7, 8)).add({2: 0.5})
    assert known.get((7, 8)).logprobs == {2: 0.5}
    assert known.get((*range(10), 50, 51)).logprobs == {1: 0.5}


def test_kinds_of_requests_take_turns():
    kinds, running, mixed = ReadKinds(), [], []

    def work(kind):
        for _ in range(20):
            with kinds.turn(kind, lambda: None):
                running.append(kind)
                mixed.append(len({*running}))
                running.remove(kind)

    threads = [threading.Thread(target=work, args=[kind]) for kind in ("draft", "read") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert mixed == [1] * 120


def test_waiting_for_a_turn_ends_when_the_request_is_cancelled():
    kinds = ReadKinds()

    def check():
        raise CancelledError("cancelled")

    with kinds.turn("draft", check):
        with pytest.raises(CancelledError), kinds.turn("read", check):
            pass
        with kinds.turn("draft", check):  # nobody waits any more
            pass
