"""The server as an application of Ray Serve: several replicas on a cluster, behind one address.

    applications:
      - import_path: adafuse_integrations.server.ray_serve:app
        args: {ensembles: {pair: pair.yaml}}
        deployments: [{name: AdaFuse, num_replicas: 2}]

Replicas share the members that have an `actor_name`; see `adafuse_core.backends.remote.ray.Ray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve

from adafuse_core.errors import ConfigError
from adafuse_integrations.server.app import create_app
from adafuse_integrations.server.config import ServerConfig

NAME = "AdaFuse"  # of the deployment
_FORCE_SECONDS = 5  # after the deadline, replicas are killed
_OTHER_ROUTES = 16  # requests beside answers that a replica takes at the same time: lists of models, metrics


def app(args: Mapping[str, Any]) -> Any:
    """Build the application.

    Args:
        args: Fields of `ServerConfig`, and `server_config`, the path of a YAML file with further ones, which every node
            must have. Every replica reads the file, so keys in it are not stored in the cluster. `host` and `port` are
            those of Serve's `http_options`.

    Returns:
        The Serve application. Options of its deployment, `AdaFuse`, are set in Serve's config.

    Raises:
        ConfigError: An option is invalid or can't be honoured.
    """
    given = dict(args)
    config = serve_config(given)

    def build() -> FastAPI:
        served = create_app(serve_config(given))
        served.state.answering.models.load()
        return served

    deployment = serve.deployment(
        name=NAME,
        # Requests wait in the replica, which refuses those that are too many.
        max_ongoing_requests=config.max_running + config.max_queue + _OTHER_ROUTES,
        graceful_shutdown_timeout_s=config.shutdown_seconds + _FORCE_SECONDS,
    )
    return deployment(serve.ingress(build)(_Replica)).bind()


class _Replica:
    """A process that answers requests."""

    app: FastAPI  # set by Serve

    def __del__(self) -> None:
        """Cancel what is running and close all members. Shared actors go on."""
        answering = self.app.state.answering
        answering.cancel_all()
        answering.models.close()


def serve_config(args: Mapping[str, Any]) -> ServerConfig:
    """The options of the server, from the arguments of the application."""
    options = dict(args)
    path = options.pop("server_config", None)
    base = ServerConfig() if path is None else ServerConfig.from_any(path)
    config = base.updated(options)
    for name in ("host", "port"):
        if (value := getattr(config, name)) != getattr(ServerConfig, name):
            raise ConfigError(
                f"got {name}={value!r}, but Ray Serve listens, not the server",
                hint=f"leave {name} out, and set http_options in the config of Serve",
            )
    return config
