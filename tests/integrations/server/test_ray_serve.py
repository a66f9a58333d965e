"""Replicas of the server under Ray Serve, which share their members. Run with `make test-ray`."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
import yaml

from adafuse_core import Ensemble
from adafuse_core.backends.remote.ray import end_actor
from adafuse_core.errors import ConfigError, ModelLoadError, NonFiniteLogitsError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.loader import load_member
from tests import tiny

ray = pytest.importorskip("ray", reason="run `make test-ray`")
serve = pytest.importorskip("ray.serve", reason="run `make test-ray`", exc_type=ImportError)

PROMPTS = ("The old tower", "Anna went to the", "2 + 3 =", "Where is the market?\n")
KEY = "a-key-of-the-tests"
TOKENS = 12
# Ray's processes listen on loopback only if this constant is false, as on systems that ask before a program listens.
ON_LOOPBACK = "ray._private.ray_constants.ENABLE_RAY_CLUSTER"
PATIENCE = {  # for slow machines
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
MANIFESTS = Path(__file__).parents[3] / "examples/kubernetes"


def member(model, **options):
    """A shared member."""
    placed = {"actor_name": model, "num_cpus": 1, "timeout": 60, **options}
    return {
        "model": f"small:{model}",
        "dtype": "float32",
        "device": "cpu",
        "backend": "ray",
        "backend_options": placed,
    }


PAIR = [member("aspen"), member("birch")]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ON_LOOPBACK, False)
        for name, seconds in PATIENCE.items():
            patch.setenv(name, seconds)
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        ray.init("local", num_cpus=8, include_dashboard=False, **quiet)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def port(cluster, tmp_path_factory):
    """The port of two replicas, deployed by a config. Their keys are in a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path_factory.mktemp("config") / "server.yaml"
    file.write_text(yaml.safe_dump({"api_keys": [KEY], "ensembles": {"pair": {"members": PAIR}}}), encoding="utf-8")
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "adafuse",
                "import_path": "adafuse_integrations.server.ray_serve:app",
                "args": {"server_config": str(file), "max_running": 4},
                "deployments": [{"name": "AdaFuse", "num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}],
            }
        ],
    }
    deploy(config)
    yield port
    serve.shutdown()


def deploy(config):
    """Deploy a config, as the `serve` command does by way of the cluster's dashboard, and wait until it runs."""
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    serve.start(http_options=schema.http_options.model_dump(exclude_unset=True))
    serve_start().deploy_apps(schema)
    wait_for(lambda: serve.status().applications["adafuse"].status == "RUNNING")


def alive(kind):
    """The process ids of the living actors of a class, by actor id."""
    from ray._private.state import actors

    every = actors().values()
    return {
        each["ActorID"]: each["Pid"] for each in every if kind in each["ActorClassName"] and each["State"] == "ALIVE"
    }


def wait_for(holds):
    until = time.monotonic() + 300
    while not (found := holds()):
        assert time.monotonic() < until, serve.status()
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=5) as client:
        yield client


@pytest.fixture(scope="module")
def expected():
    """The texts of the same members in this process."""
    members = [{name: value for name, value in each.items() if "backend" not in name} for each in PAIR]
    with Ensemble(members=members) as ensemble:
        return [ensemble.generate(prompt, max_new_tokens=TOKENS).text for prompt in PROMPTS]


def answer(client, prompt):
    return client.completions.create(model="pair", prompt=prompt, max_tokens=TOKENS).choices[0].text


def test_replicas_share_two_actors_and_give_the_text_of_a_local_ensemble(client, expected):
    members = alive("MemberActor")
    assert len(members) == 2
    assert {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)} >= {"aspen", "birch"}
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda prompt: answer(client, prompt), PROMPTS * 4))
    assert texts == expected * 4
    assert len(alive("ServeReplica")) == 2
    assert alive("MemberActor") == members


def test_an_answer_is_streamed(client, expected):
    chunks = list(client.completions.create(model="pair", prompt=PROMPTS[0], max_tokens=TOKENS, stream=True))
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected[0]


def test_a_stream_begins_before_the_answer_is_complete(port):
    body = json.dumps({"model": "pair:birch", "prompt": "The river", "max_tokens": 200, "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200
    lines = iter(response.readline, b"")
    times = [time.monotonic() for line in lines if line.startswith(b"data:")]
    connection.close()
    assert len(times) > 5
    assert times[-1] - times[0] > 0.02


def test_a_replica_that_is_killed_is_replaced_and_its_members_go_on(client, expected):
    members, replicas = alive("MemberActor"), alive("ServeReplica")
    assert len(replicas) == 2
    killed = next(iter(replicas))
    os.kill(replicas[killed], signal.SIGKILL)
    assert [answer(client, prompt) for prompt in PROMPTS] == expected
    wait_for(lambda: len(new := alive("ServeReplica")) == 2 and killed not in new)
    assert [answer(client, prompt) for prompt in PROMPTS] == expected
    assert alive("MemberActor") == members


def test_a_shared_actor_that_was_ended_is_started_again(client, expected):
    before = alive("MemberActor")
    assert end_actor("birch")
    assert [answer(client, prompt) for prompt in PROMPTS] == expected
    after = alive("MemberActor")
    assert len(after) == 2
    assert len(set(before) & set(after)) == 1


def test_closing_a_member_leaves_its_shared_actor(client):
    before = alive("MemberActor")
    first = load_member(MemberConfig(**member("aspen")))
    first.close()
    first.close()
    assert alive("MemberActor") == before


def test_a_shared_actor_with_other_options_is_refused(client):
    secret = "hf_thisIsNotForOthersToSee"
    other = member("aspen", num_cpus=2) | {"dtype": "float64", "model_kwargs": {"token": secret}}
    with pytest.raises(ModelLoadError, match=r"'aspen'.*made with other options") as caught:
        load_member(MemberConfig(**other))
    assert "dtype='float64' (the actor has 'float32')" in caught.value.message
    assert "num_cpus=2 (the actor has 1)" in caught.value.message
    assert "model_kwargs" in caught.value.message
    assert secret not in str(caught.value)
    assert "actor_name" in caught.value.hint
    assert len(alive("MemberActor")) == 2


def test_a_shared_actor_whose_model_can_not_be_loaded_ends(cluster, tmp_path):
    folder = tiny.save_tiny(tmp_path / "broken", tiny.byte_level())
    model = tiny.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(NonFiniteLogitsError):
        load_member(MemberConfig(**member("birch", actor_name="broken") | {"model": str(folder)}))
    assert wait_for(lambda: not end_actor("broken"))


def test_a_request_without_a_key_is_refused(port):
    wrong = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="wrong", max_retries=0)
    with wrong as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize("option", [{"host": "0.0.0.0"}, {"port": 9000}])
def test_an_address_of_the_server_is_refused(option):
    from adafuse_integrations.server.ray_serve import app

    with pytest.raises(ConfigError, match="Ray Serve listens") as caught:
        app(option)
    assert "http_options" in caught.value.hint


def test_the_config_in_the_kubernetes_manifest_is_one_of_serve():
    from ray.serve.schema import ServeDeploySchema

    (manifest, *_) = yaml.safe_load_all((MANIFESTS / "ray_service.yaml").read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    assert schema.applications[0].import_path == "adafuse_integrations.server.ray_serve:app"
    assert schema.applications[0].deployments[0].name == "AdaFuse"
