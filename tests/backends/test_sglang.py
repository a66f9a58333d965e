"""The backend for SGLang servers, against a small server on loopback with the same routes; not with SGLang itself."""

from __future__ import annotations

import pytest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

from adafuse_core import Ensemble, MemberConfig
from adafuse_core.errors import UnsupportedModelError
from adafuse_core.members.loader import load_member
from tests import tiny
from tests.backends.vllm_server import Running, TinyVLLM

PROMPT = "The quick brown"


class TinySGLang(TinyVLLM):
    """Answers `/generate` as SGLang 0.5.23 does, which has no `/version`."""

    def __init__(self, folder, **options):
        super().__init__(folder, **options)
        self.missing = ("/version", "/v1/completions")
        self.fields = ("token_ids_logprob", "cache_salt")
        self.app.routes.append(Route("/generate", self.checked(self.generate), methods=["POST"]))

    async def openapi(self, request):
        fields = {name: {} for name in self.fields}
        return JSONResponse({"components": {"schemas": {"GenerateReqInput": {"properties": fields}}}})

    async def generate(self, request):
        body = await request.json()
        self.requests.append(body)
        return JSONResponse([await run_in_threadpool(self.generated, body, ids) for ids in body["input_ids"]])

    def generated(self, body, ids):
        sampling, wanted = body["sampling_params"], (body.get("token_ids_logprob") or [[]])[0]
        plain = {**sampling, "prompt": [ids], "max_tokens": sampling["max_new_tokens"]}
        top = body.get("top_logprobs_num", 1)
        (steps,) = (choice["logprobs"] for choice in self.choices({**plain, "logprobs": top}))
        tokens = [int(token.removeprefix("token_id:")) for token in steps["tokens"]]
        row = self.known[tuple(ids)]
        info = {
            "cached_tokens": 0,
            "output_token_logprobs": [[v, t, None] for v, t in zip(steps["token_logprobs"], tokens, strict=True)],
            "output_top_logprobs": [
                [[value, int(token.removeprefix("token_id:")), None] for token, value in each.items()]
                for each in steps["top_logprobs"]
            ],
            "output_token_ids_logprobs": [[[float(row[token]), token, None] for token in wanted]],
        }
        return {"text": "", "output_ids": tokens, "meta_info": info}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tiny.save_tiny(tmp_path_factory.mktemp("served") / "bytes", tiny.byte_level(), tiny.llama)
    server = Running(TinySGLang(folder))
    yield server
    server.stop()


@pytest.fixture
def remote(served):
    return {"model": served.model.folder, "backend": "sglang", "backend_options": {"base_url": served.url}}


def test_texts_and_scores_are_those_of_local_members(remote):
    local, answers = {"model": remote["model"], "dtype": "float64", "device": "cpu"}, []
    for member in (local, remote):
        with Ensemble(members=[member], strategy="adafuse", tau=0.9) as ensemble:
            answers.append(ensemble.generate(PROMPT, max_new_tokens=12))
    assert answers[0].text == answers[1].text
    assert [played.candidates for played in answers[0].rounds] == [played.candidates for played in answers[1].rounds]
    for one, other in zip(answers[0].rounds, answers[1].rounds, strict=True):
        assert one.fused == pytest.approx(other.fused, abs=1e-9)


def test_requests_set_all_sampling_options(remote, served):
    with Ensemble(members=[remote], strategy="single") as ensemble:
        ensemble.generate(PROMPT, max_new_tokens=2, cache_namespace="a")
    last = served.model.requests[-1]
    assert last["sampling_params"].items() >= {"temperature": 0.0, "repetition_penalty": 1.0, "top_k": -1}.items()
    assert last["cache_salt"]


def test_an_older_server_is_refused(remote, served, monkeypatch):
    monkeypatch.setattr(served.model, "fields", ("token_ids_logprob",))
    with pytest.raises(UnsupportedModelError, match="does not know cache_salt") as caught:
        load_member(MemberConfig(**remote))
    assert "SGLang 0.5.23" in caught.value.hint
