"""A server on loopback with the routes of vLLM that the backend uses. It computes with a model, without any cache.

It follows version 0.32 in what matters to a client: sampling options that a request leaves out are those of the model,
`logprob_token_ids` takes the place of the likeliest tokens, errors have vLLM's form.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

FIELDS = ("logprob_token_ids", "return_tokens_as_token_ids", "cache_salt")
IMPOSSIBLE = -9999.0


class TinyVLLM:
    """A model and the answers to requests.

    Attributes:
        requests: The completion requests so far.
        faults: Called with each completion request, first one first and once each; a response that they return is sent
            in place of the answer.
    """

    def __init__(self, folder, *, name="tiny", window=256, max_logprobs=20, api_key=None, version="0.32.0"):
        self.name, self.folder, self.window, self.max_logprobs = name, str(folder), window, max_logprobs
        self.api_key, self.version, self.fields = api_key, version, FIELDS
        self.missing = ()  # paths that it does not have
        self.instead = None  # what is there in their place
        self.reports = "logprobs"  # or "logits", or "top" (the likeliest tokens in place of given ones), or "nothing"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.repetition_penalty = 5.0  # the model's own, as in a generation_config.json
        self.requests: list[dict] = []
        self.calls: list[str] = []
        self.faults: list[Callable] = []
        self.known: dict[tuple, torch.Tensor] = {}
        self.seen: dict[str, set[tuple]] = {}  # beginnings of prompts, by salt
        routes = {"/v1/models": self.models, "/version": self.tell_version, "/openapi.json": self.openapi}
        posts = {"/tokenize": self.tokenize, "/v1/completions": self.completions}
        self.app = Starlette(
            routes=[
                *(Route(path, self.checked(call)) for path, call in routes.items()),
                *(Route(path, self.checked(call), methods=["POST"]) for path, call in posts.items()),
            ]
        )

    def checked(self, call):
        async def answer(request):
            self.calls.append(request.url.path)
            if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            if request.url.path in self.missing:
                return JSONResponse(*([{"detail": "Not Found"}, 404] if self.instead is None else [self.instead]))
            return await call(request)

        return answer

    async def models(self, request):
        entry = {"id": self.name, "object": "model", "root": self.folder, "max_model_len": self.window}
        return JSONResponse({"object": "list", "data": [entry]})

    async def tell_version(self, request):
        return JSONResponse({"version": self.version})

    async def openapi(self, request):
        properties = {name: {} for name in self.fields}
        return JSONResponse({"components": {"schemas": {"CompletionRequest": {"properties": properties}}}})

    async def tokenize(self, request):
        body = await request.json()
        ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.window})

    async def completions(self, request):
        body = await request.json()
        self.requests.append(body)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Hanging):
            return await fault.until_left(request)
        if fault is not None and (response := fault(body)) is not None:
            return response
        if (refusal := self.refusal(body)) is not None:
            return refused(400, refusal)
        cached = self.cached_tokens(body)
        choices = await run_in_threadpool(self.choices, body)
        usage = {"prompt_tokens": sum(map(len, body["prompt"])), "prompt_tokens_details": {"cached_tokens": cached}}
        return JSONResponse({"object": "text_completion", "choices": choices, "usage": usage})

    def cached_tokens(self, body):
        """Tokens of the last prompt with which an earlier one of the same salt began; the last token is always read."""
        seen = self.seen.setdefault(body.get("cache_salt", ""), set())
        *_, last = prompts = [tuple(ids) for ids in body["prompt"]]
        cached = next((length for length in range(len(last) - 1, 0, -1) if last[:length] in seen), 0)
        seen.update(ids[:length] for ids in prompts for length in range(1, len(ids) + 1))
        return cached

    def refusal(self, body):
        longest = max(map(len, body["prompt"]))
        if longest + body["max_tokens"] > self.window:
            return (
                f"This model's maximum context length is {self.window} tokens. However, you requested "
                f"{body['max_tokens']} output tokens and your prompt contains {longest} input tokens."
            )
        if not body.get("logprob_token_ids") and body["logprobs"] > self.max_logprobs:
            return f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: 20"
        if len(body.get("logprob_token_ids") or ()) > 128:
            return "Requested logprob_token_ids of length 129, which is greater than max allowed: 128"
        return None

    def choices(self, body):
        """The greedy continuations of all prompts."""
        found = [Continuation(index, list(prompt)) for index, prompt in enumerate(body["prompt"])]
        for _ in range(body["max_tokens"]):
            growing = [each for each in found if each.finish == "length"]
            self.read([each.ids for each in growing])
            for each in growing:
                self.extend(each, body)
        return [each.choice() | ({"logprobs": None} if self.reports == "nothing" else {}) for each in found]

    def extend(self, continuation, body):
        logprobs = self.known[tuple(continuation.ids)]
        scores = logprobs.clone()
        scores[list(set(continuation.ids))] *= body.get("repetition_penalty", self.repetition_penalty)
        token = int(scores.argmax())
        given = body.get("logprob_token_ids") if self.reports != "top" else None
        wanted = given or logprobs.topk(body["logprobs"]).indices.tolist()
        shift = 20.0 if self.reports == "logits" else 0.0
        continuation.add(token, {each: float(logprobs[each]) + shift for each in [token, *wanted]})
        if token == self.tokenizer.eos_token_id:
            continuation.finish = "stop"

    def read(self, contexts):
        """Compute the next-token distributions of contexts and their beginnings in float64, all in one pass."""
        if not (new := [ids for ids in contexts if tuple(ids) not in self.known]):
            return
        longest = max(map(len, new))
        rows = [ids + [0] * (longest - len(ids)) for ids in new]  # the model is causal: what follows is not seen
        with torch.inference_mode():
            logits = self.model(torch.tensor(rows)).logits  # [contexts, tokens, vocab]
        for ids, row in zip(new, logits.log_softmax(-1), strict=True):
            for length in range(len(ids), 0, -1):
                if tuple(ids[:length]) in self.known:
                    break
                self.known[tuple(ids[:length])] = row[length - 1]


class Continuation:
    def __init__(self, index, ids):
        self.index, self.ids, self.finish = index, ids, "length"
        self.tokens, self.values, self.likeliest = [], [], []

    def add(self, token, logprobs):
        self.ids.append(token)
        self.tokens.append(key(token))
        self.values.append(max(logprobs[token], IMPOSSIBLE))
        self.likeliest.append({key(each): max(value, IMPOSSIBLE) for each, value in logprobs.items()})

    def choice(self):
        logprobs = {"tokens": self.tokens, "token_logprobs": self.values, "top_logprobs": self.likeliest}
        return {"index": self.index, "text": "", "finish_reason": self.finish, "logprobs": logprobs}


def key(token):
    return f"token_id:{token}"


def refused(status, message):
    return JSONResponse(
        {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}, status
    )


def failing(status=500):
    return lambda body: refused(status, "EngineCore encountered an issue.")


def garbled(body):
    return PlainTextResponse('{"choices": [', media_type="application/json")


def another_format(body):
    return JSONResponse({"choices": [{"text": "hello"}]})


def too_few(body):
    return JSONResponse({"choices": []})


def empty(body):
    return JSONResponse({"choices": [{"index": 0, "logprobs": None}]})


def not_finite(body):
    steps = {"tokens": [key(1)], "token_logprobs": [None], "top_logprobs": [{key(1): float("nan"), key(2): -1.0}]}
    choices = [{"index": index, "logprobs": steps} for index, _ in enumerate(body["prompt"])]
    return Response(json.dumps({"choices": choices}), media_type="application/json")


def not_finite_refused(body):
    return refused(400, "Out of range float values are not JSON compliant: nan")


class Hanging:
    """A fault: no answer comes. `begun` is set when the request arrives, `left` when its connection is closed."""

    def __init__(self):
        self.begun, self.left = threading.Event(), threading.Event()

    async def until_left(self, request):
        self.begun.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        self.left.set()
        return JSONResponse({})


def without_likeliest(model):
    """A fault: the likeliest tokens of all steps are lost, as if another client's request were in the same pass."""

    def answer(body):
        choices = model.choices(body)
        for steps in (choice["logprobs"] for choice in choices):
            steps["top_logprobs"] = [
                {token: value, key(0): IMPOSSIBLE}
                for token, value in zip(steps["tokens"], steps["token_logprobs"], strict=True)
            ]
        return JSONResponse({"choices": choices})

    return answer


class Running:
    """The server of a `TinyVLLM`, which can be stopped and started again at the same port."""

    def __init__(self, model):
        self.model = model
        self.port = 0
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen(64)
        self.port = listening.getsockname()[1]
        self.server = uvicorn.Server(
            uvicorn.Config(self.model.app, log_level="critical", lifespan="off", timeout_graceful_shutdown=0)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()

    def stop(self):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()


@contextlib.contextmanager
def running(folder, **options):
    """A server of a model in a folder."""
    served = Running(TinyVLLM(folder, **options))
    try:
        yield served
    finally:
        served.stop()
