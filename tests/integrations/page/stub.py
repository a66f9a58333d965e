"""A small server with the routes that the page uses. It sends what real ensembles answer, in the server's format."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import adafuse_integrations
from adafuse_core import Ensemble, Finished, ReasoningDelta, RoundDone, TextDelta, ToolCallDelta
from adafuse_core.checks import field_names

PAGE = Path(adafuse_integrations.__file__).parent / "server/static/index.html"
PATIENCE = 60.0  # seconds, for what happens at once


class Stub(ThreadingHTTPServer):
    """Serves the page and ensembles on a free port.

    Attributes:
        ensembles: The ensembles by name.
        bodies: The bodies of all requests for answers.
        go: Each round of an answer waits for it.
        gone: Set when a client has left before the end of its answer.
        key: The API key; None if there is none.
        failure: Status and message of all answers, if they fail.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ensembles, self.bodies, self.key, self.failure = {}, [], None, None
        self.go, self.gone = threading.Event(), threading.Event()
        self.go.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"

    def find(self, model):
        """The ensemble, or one member alone."""
        name, _, member = model.partition(":")
        whole = self.ensembles[name]
        if not member:
            return whole
        return Ensemble(whole.config, members=whole.members, strategy="single", member=member)

    def handle_error(self, request, client_address):
        """Say nothing about clients that left."""


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self):
        if self.path == "/":
            return self._send(200, PAGE.read_bytes(), "text/html")
        if self.path != "/v1/adafuse/ensembles":
            return self._send_json(404, _error("not found"))
        if self._refused():
            return None
        return self._send_json(200, {"data": [_described(*each) for each in self.server.ensembles.items()]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._refused():
            return
        self.server.bodies.append(body)
        if self.server.failure:
            self._send_json(self.server.failure[0], _error(self.server.failure[1]), {"Retry-After": "7"})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            with closing(self._chunks(body)) as chunks:
                for chunk in chunks:
                    self.wfile.write(
                        b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n"
                    )
                    self.wfile.flush()
        except OSError:
            self.server.gone.set()

    def _chunks(self, body):
        """The chunks of an answer, in the server's format."""
        options = {"max_new_tokens": body.get("max_tokens", 64), "tools": body.get("tools")}
        delta = {}
        try:
            for event in self.server.find(body["model"]).stream(body["messages"], **options):
                _add(delta, event)
                if isinstance(event, RoundDone):
                    assert self.server.go.wait(PATIENCE)
                    extra = {"round": event.round.to_dict()} if body.get("adafuse") else None
                    yield _chunk(delta, None, extra)
                    delta = {}
                if isinstance(event, Finished):
                    extra = {
                        "usage": event.usage.to_dict(),
                        "library_text": [each.to_dict() for each in event.library_text],
                    }
                    yield _chunk(delta, event.reason, extra)
        except Exception as error:
            yield _error(str(error))
            return
        yield b"[DONE]"

    def _refused(self):
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return False
        self._send_json(401, _error("the API key is wrong"))
        return True

    def _send_json(self, status, value, headers=()):
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status, content, kind, headers=()):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Log nothing."""


def _add(delta, event):
    match event:
        case TextDelta():
            delta["content"] = delta.get("content", "") + event.text
        case ReasoningDelta():
            delta["reasoning_content"] = delta.get("reasoning_content", "") + event.text
        case ToolCallDelta():
            function = {"arguments": event.arguments} | ({"name": event.name} if event.name else {})
            named = {"id": event.id} if event.id else {}
            delta.setdefault("tool_calls", []).append({"index": event.index, "function": function, **named})


def _chunk(delta, reason, extra):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"choices": [choice], **({"adafuse": extra} if extra else {})}


def _error(message):
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def _described(name, ensemble):
    strategy = ensemble.config.strategy
    members = [
        {"name": each.label, "model": each.model, "weight": each.weight, "alone": f"{name}:{each.label}"}
        for each in ensemble.config.members
    ]
    options = {option: getattr(strategy, option) for option in field_names(strategy)}
    return {"name": name, "members": members, "strategy": strategy.name, "options": options}
