"""`adafuse serve`: ensembles behind OpenAI's HTTP interface."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from adafuse_core import AdaFuseError, ConfigError
from adafuse_integrations.cli.exit_status import DONE, FAILED
from adafuse_integrations.cli.options import add_ensemble_options, add_option, chosen_config, given, load
from adafuse_integrations.common.options import ENSEMBLE, GENERATION, MEMBER_DEFAULTS, Option, options_of
from adafuse_integrations.server.config import DEFAULT_NAME, ServerConfig

HELP = "serve ensembles over HTTP, with OpenAI's interface (needs adafuse[serve])"

_SERVER: Mapping[str, Option] = {name: each for name, each in options_of(ServerConfig).items() if name != "ensembles"}

_OF_ENSEMBLE: Mapping[str, Option] = {
    **{name: each for name, each in ENSEMBLE.items() if name not in ("members", "member_defaults")},
    **GENERATION,
    **MEMBER_DEFAULTS,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_ensemble_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument(
        "--server-config",
        metavar="FILE",
        help="YAML file with the fields of ServerConfig, such as several named ensembles and API keys.",
    )
    group.add_argument(
        "--name", help=f"Name of the ensemble that --models or --config describes. (default: {DEFAULT_NAME})"
    )
    for option in _SERVER.values():
        add_option(group, option)


def run(args: argparse.Namespace) -> int:
    """Load the models and serve them until the process is stopped."""
    config = server_config(args)
    try:
        from adafuse_integrations.server.app import create_app
        from adafuse_integrations.server.process import Server
    except ModuleNotFoundError as error:
        raise AdaFuseError(f"{error.name} is not installed", hint='pip install "adafuse[serve]"') from error
    app = create_app(config)
    app.state.answering.models.load(load)
    try:
        Server(app, config).run()
    except SystemExit:  # of uvicorn, which has said why: the address is in use, for example
        return FAILED
    return DONE


def server_config(args: argparse.Namespace) -> ServerConfig:
    """The config that the arguments describe."""
    base = ServerConfig() if args.server_config is None else ServerConfig.from_any(args.server_config)
    config = base.updated(given(args, _SERVER))
    if not (given(args, _OF_ENSEMBLE) or args.models) and args.config is None and args.name is None:
        return config
    if not config.has_default_ensemble:
        raise ConfigError(
            f"got options of an ensemble, but {args.server_config!r} has the ensembles {', '.join(config.ensembles)}",
            hint="write the options into the file",
        )
    return config.updated({"ensembles": {DEFAULT_NAME if args.name is None else args.name: chosen_config(args)}})
