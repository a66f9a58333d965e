"""`/health`, `/ready` and `/metrics`, for those who run the server."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from adafuse_integrations.server.answering import Answering


def router(answering: Answering) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/health")
    def health() -> dict[str, Any]:
        """Whether the process answers."""
        return {"status": "ok"}

    @routes.get("/ready", responses={503: {"description": "Models are loading, or the server is stopping."}})
    async def ready() -> JSONResponse:
        """Whether requests are answered: the models are loaded, and the server is not stopping."""
        loaded, stopping = answering.models.are_loaded, answering.admission.is_closed
        status = "stopping" if stopping else "ready" if loaded else "loading"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(answering.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
