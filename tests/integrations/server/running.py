"""A real server in a thread of the test's process, on a free port of the loopback address."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import httpx
import openai

from adafuse_core import Ensemble
from adafuse_integrations.server.app import create_app
from adafuse_integrations.server.config import ServerConfig
from adafuse_integrations.server.process import Server
from tests.integrations.stepped import LONG

QUESTION = "Who wrote The Jungle Book and what is the capital of Sudan?"
ANSWER = "The Jungle Book was written by Rudyard Kipling and the capital of Sudan is Khartoum."
MESSAGES = [{"role": "user", "content": QUESTION}]


def wait_until(holds):
    """Wait for a condition that another thread brings about."""
    since = time.monotonic()
    while not holds():
        assert time.monotonic() < since + LONG, "the condition does not come true"
        time.sleep(0.002)


class Running:
    """A server that runs, and clients for it."""

    def __init__(self, app, server, port):
        self.app, self.port = app, port
        self._server, self._clients = server, []
        self.answering = app.state.answering
        self.url = f"http://127.0.0.1:{port}"

    def client(self, key="any"):
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=LONG)
        self._clients.append(client)
        return client

    def close_clients(self):
        for client in self._clients:
            client.close()

    def async_client(self, key="any"):
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=LONG)

    def post(self, path="/v1/chat/completions", **options):
        return httpx.post(self.url + path, timeout=LONG, **options)

    def get(self, path, **options):
        return httpx.get(self.url + path, timeout=LONG, **options)

    def stop(self):
        """Tell the server to stop, as a signal does."""
        self._server.should_exit = True

    def idle(self):
        """Wait until no request runs or waits."""
        wait_until(lambda: not self.answering.admission.running and not self.answering.admission.waiting)

    def metric(self, name, **labels):
        return self.answering.metrics.registry.get_sample_value(name, labels)


@contextmanager
def serving(*members, ensembles=None, **options):
    """Serve ensembles by name, or one ensemble `pair` of some members."""
    ensembles = ensembles or {"pair": Ensemble(members=members)}
    config = ServerConfig(**options)
    app = create_app(config, ensembles)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(app, config, log_level="critical")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            running = Running(app, server, listener.getsockname()[1])
            yield running
            running.close_clients()
        finally:
            server.should_exit = True
            thread.join(LONG)
            assert not thread.is_alive(), "the server does not stop"
