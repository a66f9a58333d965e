"""What a request passes before it is read: the API key, and the limits of its body."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adafuse_integrations.server.access import Hosts, Keys
from adafuse_integrations.server.config import ServerConfig
from adafuse_integrations.server.errors import ApiError

OPEN_PATHS = ("/", "/health", "/ready", "/openapi.json")  # need no key

Observe = Callable[[str, int], None]


class Door:
    """Middleware that checks the key of a request, reads its body within limits, and counts its status.

    Args:
        app: The application.
        config: Keys and limits.
        observe: Called with path and status of every response.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, observe: Observe) -> None:
        self._app, self._config, self._observe = app, config, observe
        self._keys, self._hosts = Keys(config.api_keys), Hosts(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = self._counted(scope, send)
        try:
            headers = Headers(scope=scope)
            self._hosts.check(headers)
            if scope["path"] not in OPEN_PATHS:
                scope.setdefault("state", {})["key_holder"] = self._keys.holder(headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            await error.response()(scope, receive, counted)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), counted)

    def _counted(self, scope: Scope, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._observe(getattr(route, "path", "other"), message["status"])
            await send(message)

        return counted

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None if the client has left."""
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._config.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._config.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise ApiError(
                408,
                f"the body was not complete after {self._config.body_seconds} seconds",
                code="request_timeout",
                headers={"Connection": "close"},
            ) from error

    def _too_large(self) -> ApiError:
        limit = self._config.max_body_bytes
        return ApiError(
            413,
            f"the body is too large: this server accepts {limit} bytes",
            code="request_too_large",
            headers={"Connection": "close"},
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever follows it, such as the end of the connection."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
