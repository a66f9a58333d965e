"""The server as a process: it listens, and it stops when running answers have ended or the deadline has passed."""

from __future__ import annotations

import asyncio
import logging
import socket

import uvicorn
from fastapi import FastAPI

from adafuse_integrations.server.answering import Answering
from adafuse_integrations.server.config import ServerConfig

logger = logging.getLogger(__name__)

_FORCE_SECONDS = 5  # after the deadline, connections of clients that do not read are closed


class Server(uvicorn.Server):
    """A uvicorn server that ends gracefully.

    At SIGTERM or SIGINT it takes no further requests, and refuses those that wait. Running answers have
    `shutdown_seconds` to finish; then they are cancelled, and their streams end with an error.

    Args:
        app: From `create_app`.
        config: Address and deadline.
        log_level: Of uvicorn's own log.
    """

    def __init__(self, app: FastAPI, config: ServerConfig, log_level: str = "info") -> None:
        self._answering: Answering = app.state.answering
        self._deadline = config.shutdown_seconds
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                log_level=log_level,
                timeout_graceful_shutdown=int(self._deadline) + _FORCE_SECONDS,
                server_header=False,
            )
        )
        if not config.api_keys and not config.is_local:
            logger.warning("everyone who reaches %s has access: set api_keys", config.host)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; see the class."""
        self._answering.admission.close()
        timer = asyncio.get_running_loop().call_later(self._deadline, self._answering.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
            self._answering.cancel_all()
