"""The response to a request: a whole answer, or a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from adafuse_integrations.server.answering import Answering, Item, Question
from adafuse_integrations.server.connection import GONE, ClientGone, EventStream, server_sent, while_connected
from adafuse_integrations.server.errors import api_error, log_failure
from adafuse_integrations.server.models import ServedModel
from adafuse_integrations.server.requests import GenerationBody

_END = server_sent("[DONE]")


class Format(Protocol):
    """How a request is read and its answers are written."""

    def read(self) -> Question:
        """What the request asks."""

    async def whole(self, items: AsyncIterator[Item]) -> dict[str, Any]:
        """The response with all answers."""

    def chunks(self, items: AsyncIterator[Item]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a stream."""


async def respond(
    request: Request, body: GenerationBody, answering: Answering, served: ServedModel, form: Format
) -> Response:
    """Answer a request. If the client leaves, the generation ends within one step.

    Args:
        request: The HTTP request.
        body: Its body.
        answering: Runs the models.
        served: The model that answers.
        form: The format of the answer.
    """
    items = answering.events(served, form.read, body.choices, _namespace(request, body))
    try:
        if not body.stream:
            return JSONResponse(await while_connected(request.receive, _whole(form, items)))
        chunks = form.chunks(items)
        # An error before the first chunk has a status of its own.
        first = await while_connected(request.receive, _first(chunks))
    except ClientGone:
        return Response(status_code=GONE)
    return EventStream(_events(first, chunks, items), answering.config.send_seconds)


async def _whole(form: Format, items: AsyncGenerator[Item]) -> dict[str, Any]:
    async with aclosing(items):
        return await form.whole(items)


async def _first(chunks: AsyncGenerator[dict[str, Any]]) -> dict[str, Any]:
    return await anext(chunks)


async def _events(
    first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any]], items: AsyncGenerator[Item]
) -> AsyncGenerator[bytes]:
    """The chunks as events. An error is the last event: the status has been sent already."""
    async with aclosing(items), aclosing(chunks):
        yield server_sent(first)
        try:
            async for chunk in chunks:
                yield server_sent(chunk)
        except Exception as error:
            told = api_error(error)
            log_failure(error, told)
            yield server_sent(told.to_dict())
            return
        yield _END


def _namespace(request: Request, body: GenerationBody) -> str:
    """Clients with different keys, and their different users, don't share what was computed."""
    holder: str = request.scope.get("state", {}).get("key_holder", "")
    return f"{holder}/{body.user or ''}"
