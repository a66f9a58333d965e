"""The application: routes, limits and errors of a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import adafuse_core
from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import AdaFuseError
from adafuse_integrations.server import chat, completions, health, models, page
from adafuse_integrations.server.answering import Answering
from adafuse_integrations.server.config import ServerConfig
from adafuse_integrations.server.door import Door
from adafuse_integrations.server.errors import ApiError, api_error, log_failure, unreadable_request
from adafuse_integrations.server.models import Models


def create_app(config: ServerConfig | None = None, ensembles: Mapping[str, Ensemble] | None = None) -> FastAPI:
    """Create the ASGI application. Models are loaded on first use, unless they are loaded already.

    Args:
        config: Options of the server; default: the defaults.
        ensembles: Ensembles by name, in place of those of the config.

    Returns:
        The application; `app.state.answering` runs the ensembles.
    """
    config = config or ServerConfig()
    if ensembles is None:
        ensembles = {name: Ensemble(each) for name, each in config.ensembles.items()}
    answering = Answering(config, Models(ensembles))
    app = FastAPI(
        title="AdaFuse",
        version=adafuse_core.__version__,
        description="Ensembles of language models behind OpenAI's interface.",
        docs_url=None,  # these pages load assets from elsewhere
        redoc_url=None,
    )
    app.state.answering = answering
    for routes in (
        chat.router(answering),
        completions.router(answering),
        models.router(answering.models),
        health.router(answering),
        page.router(),
    ):
        app.include_router(routes)
    _handle_errors(app)
    counter = answering.metrics.requests
    app.add_middleware(Door, config=config, observe=lambda path, status: counter.labels(path, str(status)).inc())
    if config.cors_origins:  # outermost: browsers ask without a key, and read errors
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    @app.exception_handler(AdaFuseError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        told = api_error(error)
        log_failure(error, told)
        return told.response()

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        return unreadable_request(error).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        codes: dict[int, Any] = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code)
        return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers).response()
