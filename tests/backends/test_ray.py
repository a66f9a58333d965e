"""Members as actors of a real Ray cluster with two nodes on this machine. Run with `make test-ray`."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adafuse_core import Ensemble, Grammar
from adafuse_core.backends import ray_actor
from adafuse_core.errors import CancelledError, ConfigError, MemberError, ModelLoadError, NonFiniteLogitsError
from adafuse_core.events import RoundDone
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.loader import load_member
from tests import tiny
from tests.agreement import apart, decisions, numbers
from tests.backends.contract import BackendContract, check_of, endless

ray = pytest.importorskip("ray", reason="run `make test-ray`")

QUESTION = [{"role": "user", "content": "What is the capital of Peru?"}]
OTHERS = ("The old tower", "Anna went to the", "2 + 3 =", "Where is the market?\n")
# Ray's processes listen on loopback only if this constant is false, as on systems that ask before a program listens.
ON_LOOPBACK = "ray._private.ray_constants.ENABLE_RAY_CLUSTER"
SECRET = "hf_thisIsNotForOthersToSee"
PATIENT, TIMEOUT = 120, 20  # seconds: of most members, and of one whose node is removed
ROUNDED = 1e-4  # tolerance in float32: passes over other numbers of tokens add in another order


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ON_LOOPBACK, False)
        head = {"num_cpus": 8, "resources": {"first": 8}, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.second = cluster.add_node(num_cpus=8, resources={"second": 8})
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def local(model, **more):
    return {"model": f"small:{model}", "name": model, "dtype": "float32", "device": "cpu"} | more


def remote(model, node, **more):
    options = {"resources": {node: 1}, "timeout": PATIENT} | more.pop("backend_options", {})
    return local(model, backend="ray", backend_options=options, **more)


@pytest.fixture(scope="module")
def ensemble(cluster):
    """Two members on two nodes."""
    with Ensemble(members=[remote("aspen", "first"), remote("birch", "second")]) as ensemble:
        yield ensemble.load()


@pytest.fixture(scope="module")
def alone():
    """The same members in this process."""
    with Ensemble(members=[local("aspen"), local("birch")]) as ensemble:
        yield ensemble.load()


def actor_of(member):
    return member.backend._channel._actor


def inside(member, function):
    """The result of a function of the actor object, called in its process."""
    return ray.get(actor_of(member).__ray_call__.remote(function), timeout=60)


def check_equal(answer, expected):
    assert (answer.text, answer.reason) == (expected.text, expected.reason)
    assert [decisions(played) for played in answer.rounds] == [decisions(played) for played in expected.rounds]
    for got, wanted in zip(answer.rounds, expected.rounds, strict=True):
        assert apart(numbers(got), numbers(wanted)) <= ROUNDED


class TestRay(BackendContract):
    steps_ahead = 40

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls, cluster):
        options = remote("birch", "second", name="contract") | {"dtype": "float64"}
        return MemberConfig(**options)


# --- the same text ---


def test_local_remote_and_mixed_ensembles_give_the_same_answers(ensemble, alone):
    mixed = Ensemble(members=[alone.members[0], ensemble.members[1]])
    for prompt in (QUESTION, *OTHERS):
        expected = alone.generate(prompt, max_new_tokens=24)
        assert expected.text
        check_equal(ensemble.generate(prompt, max_new_tokens=24), expected)
        check_equal(mixed.generate(prompt, max_new_tokens=24), expected)


@pytest.mark.parametrize("rule", [{"strategy": "adafuse"}, {"strategy": "token_union", "union": "full"}])
def test_other_rules_give_the_same_answers(ensemble, alone, rule):
    answers = [
        Ensemble(members=each.members, **rule).generate(QUESTION, max_new_tokens=16) for each in (ensemble, alone)
    ]
    check_equal(*answers)


def test_grammars_give_the_same_answers(ensemble, alone):
    grammar = Grammar.json_schema({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    check_equal(*[each.generate(QUESTION, max_new_tokens=32, grammar=grammar) for each in (ensemble, alone)])


def test_sixteen_requests_at_once(ensemble, alone):
    prompts = [QUESTION, *OTHERS, *OTHERS[::-1], *OTHERS, "The river", "In the old", "My brother"]
    assert len(prompts) == 16
    answers = ensemble.batch(prompts, max_new_tokens=16)
    for answer, expected in zip(answers, [alone.generate(p, max_new_tokens=16) for p in prompts], strict=True):
        assert answer.text == expected.text


def test_members_on_two_nodes_work_at_the_same_time(ensemble, monkeypatch):
    assert len({member.place for member in ensemble.members}) == 2
    work, ask = {"draft": [], "score": []}, ray_actor.ActorChannel.ask

    def timed(self, method, call, check):
        started = time.monotonic()
        try:
            return ask(self, method, call, check)
        finally:
            work[method].append((self._member, started, time.monotonic()))

    monkeypatch.setattr(ray_actor.ActorChannel, "ask", timed)
    ensemble.generate(OTHERS[1], max_new_tokens=24)
    for calls in work.values():
        both = [
            (a, b) for a in calls for b in calls if a[0] == "aspen" and b[0] == "birch" and a[1] < b[2] > b[1] < a[2]
        ]
        assert len(both) >= 3


# --- options and errors ---


def test_options_of_a_local_member_apply_in_the_actor(cluster):
    config = remote("birch", "first", name="options", dtype="float64", kv_store="prefill", prefix_cache=False)
    member = load_member(MemberConfig(**config))
    facts = member.describe()
    assert facts["cache"].startswith("prefill")
    assert facts["dtype"] == "float64"
    assert facts["device"].startswith("cpu of Ray node ")
    assert facts["place"].startswith("ray:")
    member.close()


def test_an_actor_that_no_node_can_run_is_refused_with_the_reason(cluster):
    config = remote("birch", "nowhere", backend_options={"load_timeout": 4})
    with pytest.raises(ModelLoadError, match=r"of 2 nodes in the cluster, 0 have the resources.*nowhere") as caught:
        load_member(MemberConfig(**config))
    assert caught.value.member == "birch"
    assert "ray status" in caught.value.hint


def test_another_cluster_than_the_connected_one_is_refused(cluster):
    with pytest.raises(ConfigError, match=r"10.9.9.9:6379.*connected to the Ray cluster"):
        load_member(MemberConfig(**remote("birch", "first", backend_options={"address": "10.9.9.9:6379"})))
    member = load_member(MemberConfig(**remote("birch", "first", backend_options={"address": cluster.address})))
    member.close()


def test_errors_of_the_model_arrive_as_they_are(cluster, tmp_path):
    folder = tiny.save_tiny(tmp_path / "broken", tiny.byte_level())
    model = tiny.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    config = MemberConfig(model=str(folder), name="broken", backend="ray", device="cpu")
    with pytest.raises(NonFiniteLogitsError, match="NaN or infinite logits") as caught:
        load_member(config)
    assert caught.value.member == "broken"


def test_secrets_are_not_shown(cluster, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    config = MemberConfig(**remote("birch", "first", name="secretive", model_kwargs={"token": SECRET}))
    member = load_member(config)
    session = member.backend.open((3, 5), window=None, lookup=False, raise_if_cancelled=lambda: None)
    session.draft([(3, 5)], 2, 1, endless)
    os.kill(inside(member, lambda _: os.getpid()), signal.SIGKILL)
    session.score([(3, 5)], [(7, 8)])
    channel = member.backend._channel
    shown = [repr(member.backend), repr(channel), str(channel), repr(session), str(member.describe()), caplog.text]
    shown += [str(channel._late("draft", 1, 1)), str(channel._lost("draft", 1, RuntimeError("x")))]
    shown += [inside(member, repr), *capfd.readouterr()]
    member.close()
    assert "trying again" in caplog.text
    for text in shown:
        assert SECRET not in text


def test_a_cluster_of_its_own_lives_as_long_as_the_process():
    code = """
import time
import ray._private.ray_constants
ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
from adafuse_core import Ensemble
member = {"model": "small:birch", "dtype": "float32", "device": "cpu", "backend": "ray"}
member["backend_options"] = {"address": "local", "num_cpus": 0.1, "timeout": 30}
with Ensemble(members=[member, member | {"kv_store": "fork"}]) as ensemble:
    ensemble.load()
    time.sleep(3)
    print("answer:", ensemble.generate("The capital of Peru is", max_new_tokens=4).text)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "answer:" in run.stdout, run.stderr


# --- cancellation and closing ---


def test_a_cancelled_call_frees_the_actor(ensemble):
    member, cancel = ensemble.members[0], threading.Event()
    long = tuple(range(5, 105)) * 5
    session = member.backend.open(long, window=None, lookup=False, raise_if_cancelled=check_of(cancel))
    threading.Timer(0.5, cancel.set).start()

    def keep_scoring():
        context = long
        for _ in range(2000):
            session.score([context], [tuple(range(5, 400))])
            session.commit(context := (*context, 7))

    with pytest.raises(CancelledError):
        keep_scoring()
    until = time.monotonic() + 5
    while users := inside(member, lambda actor: sum(each.users for each in actor._loaded._sessions.values())):
        assert time.monotonic() < until, users
    session.close()


def test_a_closed_member_refuses_calls(cluster):
    member = load_member(MemberConfig(**remote("birch", "first", name="closed")))
    session = member.backend.open((3, 5), window=None, lookup=False, raise_if_cancelled=lambda: None)
    session.draft([(3, 5)], 1, 1, endless)
    member.close()
    with pytest.raises(MemberError, match="ended by close") as caught:
        session.score([(3, 5)], [(7, 8)])
    assert not caught.value.retryable
    session.close()
    member.close()


def test_a_forked_process_refuses_calls(ensemble):
    read, write = os.pipe()
    if (child := os.fork()) == 0:  # the child must not run pytest's code
        try:
            ensemble.generate(QUESTION, max_new_tokens=4)
            message = "answered"
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    assert message.startswith("MemberError: member ")
    assert "forked" in message
    assert "spawn" in message
    assert ensemble.generate(QUESTION, max_new_tokens=4).text


# --- lost actors and nodes ---


def test_an_actor_that_is_killed_mid_answer_starts_again_and_the_text_is_the_same(ensemble, alone):
    expected = alone.generate(QUESTION, max_new_tokens=24)
    text, killed = "", 0
    for event in ensemble.stream(QUESTION, max_new_tokens=24):
        if isinstance(event, RoundDone) and killed < 2:
            os.kill(inside(ensemble.members[killed], lambda _: os.getpid()), signal.SIGKILL)
            killed += 1
        text += getattr(event, "text", "") if type(event).__name__ == "TextDelta" else ""
    assert killed == 2
    assert text == expected.text


def test_an_actor_that_is_killed_during_a_call_starts_again(ensemble, alone):
    member = ensemble.members[1]
    process = inside(member, lambda _: os.getpid())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ensemble.batch, [QUESTION, *OTHERS] * 2, max_new_tokens=24)
        time.sleep(0.7)
        os.kill(process, signal.SIGKILL)
        answers = running.result()
    assert inside(member, lambda _: os.getpid()) != process
    for answer, prompt in zip(answers, [QUESTION, *OTHERS] * 2, strict=True):
        assert answer.text == alone.generate(prompt, max_new_tokens=24).text


def test_an_actor_that_may_not_start_again_is_reported_lost(cluster):
    options = {"max_restarts": 0}
    member = load_member(MemberConfig(**remote("birch", "first", name="mortal", backend_options=options)))
    session = member.backend.open((3, 5), window=None, lookup=False, raise_if_cancelled=lambda: None)
    session.draft([(3, 5)], 1, 1, endless)
    os.kill(inside(member, lambda _: os.getpid()), signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(MemberError, match=r"Ray actor .* was lost during a call of 'score'") as caught:
        session.score([(3, 5)], [(7, 8)])
    assert time.monotonic() - started < PATIENT
    assert "max_restarts=-1" in caught.value.hint
    member.close()


def test_a_removed_node_is_an_error_within_the_timeout_and_its_return_ends_it(cluster, alone):
    expected = alone.generate(QUESTION, max_new_tokens=12)
    member = remote("birch", "second", backend_options={"timeout": TIMEOUT})
    with Ensemble(members=[local("aspen"), member]) as ensemble:
        assert ensemble.generate(QUESTION, max_new_tokens=12).text == expected.text
        cluster.remove_node(cluster.second)
        started = time.monotonic()
        with pytest.raises(MemberError, match=r"of 1 nodes in the cluster, 0 have the resources") as caught:
            ensemble.generate(QUESTION, max_new_tokens=12)
        assert time.monotonic() - started < TIMEOUT + 5
        assert caught.value.member == "birch"
        assert caught.value.retryable
        assert cluster.address in caught.value.message
        cluster.second = cluster.add_node(num_cpus=8, resources={"second": 8})
        cluster.wait_for_nodes()
        assert ensemble.generate(QUESTION, max_new_tokens=12).text == expected.text
