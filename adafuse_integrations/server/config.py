"""Options of the server, from arguments, a mapping or a YAML file. Nothing here needs a web framework."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from adafuse_core.checks import (
    expect,
    expect_integer,
    expect_mapping,
    expect_number,
    field_names,
    known_options,
    strings,
)
from adafuse_core.config import EnsembleConfig, default_config
from adafuse_core.errors import ConfigError
from adafuse_core.yaml_files import read_yaml

MEMBER_SEPARATOR = ":"  # in names of models: `ENSEMBLE:MEMBER`
DEFAULT_NAME = "adafuse"

_LEAST = {  # of the integer options
    **dict.fromkeys(("max_body_bytes", "max_running", "max_choices"), 1),
    **dict.fromkeys(("max_output_tokens", "max_prompt_tokens"), 1),
    "max_queue": 0,
}
_SECONDS = ("max_seconds", "body_seconds", "send_seconds", "shutdown_seconds")
_MAY_BE_NONE = ("max_prompt_tokens", "max_output_tokens", "max_seconds")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Options of the server.

    Args:
        ensembles: The ensembles by name. Each is an `EnsembleConfig`, a mapping of its fields, or the path of a YAML
            file. Clients choose one by `model`: `"NAME"`, or `"NAME:MEMBER"` for one of its members alone. Default: one
            ensemble named `adafuse` of the two small models of the package.
        host: Address to listen on. Only this machine can reach the default address.
        port: Port to listen on; 0 takes a free one.
        api_keys: Keys of the clients, any of which gives access. Without keys, everyone who can reach the address has
            access.
        cors_origins: Origins of web pages that may call the server from a browser, such as `https://chat.example.org`;
            `*` allows all. Pages of the server itself need no entry.
        max_body_bytes: Largest body of a request. Larger ones are refused with status 413.
        max_prompt_tokens: Longest prompt, in tokens of each member. None: the context windows of the members.
        max_output_tokens: Longest answer that clients may ask for, in tokens of the first member. None: no limit but
            the context windows.
        max_choices: Largest `n`, the number of answers to one request.
        max_running: Requests that are answered at the same time, each on a thread. Further requests wait.
        max_queue: Requests that wait. Further ones are refused with status 429.
        max_seconds: Time limit of an answer, including the time that it waits. None: no limit.
        body_seconds: Time limit for the client to send the body of a request.
        send_seconds: Time that a client may take to accept a part of a streamed answer.
        shutdown_seconds: Time that running answers get to finish when the server is stopped. Then they are cancelled.
    """

    ensembles: Mapping[str, EnsembleConfig] = field(
        default_factory=lambda: {DEFAULT_NAME: default_config()}, hash=False
    )
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_choices: int = 8
    max_running: int = 32
    max_queue: int = 128
    max_seconds: float | None = 600.0
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        expect_mapping("ensembles", self.ensembles)
        expect(bool(self.ensembles), "ensembles", self.ensembles, "at least one ensemble")
        configs = {_checked_name(name): EnsembleConfig.from_any(value) for name, value in self.ensembles.items()}
        object.__setattr__(self, "ensembles", configs)
        expect(isinstance(self.host, str) and bool(self.host), "host", self.host, "an address")
        expect_integer("port", self.port, at_least=0)
        expect(self.port < 2**16, "port", self.port, f"a port below {2**16}")
        for name in ("api_keys", "cors_origins"):
            object.__setattr__(self, name, strings(name, getattr(self, name)))
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise ConfigError("got a key in api_keys that is empty or has characters beyond printable ASCII")
        for name, least in _LEAST.items():
            if self._is_set(name):
                expect_integer(name, getattr(self, name), at_least=least)
        for name in _SECONDS:
            if self._is_set(name):
                expect_number(name, getattr(self, name), at_least=0.0)

    @property
    def has_default_ensemble(self) -> bool:
        """Whether the only ensemble is the default one."""
        return self.ensembles == {DEFAULT_NAME: default_config()}

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def _is_set(self, name: str) -> bool:
        return name not in _MAY_BE_NONE or getattr(self, name) is not None

    def updated(self, options: Mapping[str, Any]) -> Self:
        """A copy with some options changed. Unknown options raise `ConfigError`."""
        return dataclasses.replace(self, **known_options(field_names(self), options, "server option"))

    @classmethod
    def from_any(cls, value: Mapping[str, Any] | str | Path) -> Self:
        """A config from a mapping, or from a YAML file. Files that it names are relative to its folder."""
        if not isinstance(value, Mapping):
            value = _read_config(Path(value))
        return cls(**known_options(field_names(cls), value, "server option"))


def _checked_name(name: str) -> str:
    expect(bool(name.strip()) and MEMBER_SEPARATOR not in name, "name of an ensemble", name, "a name without ':'")
    return name


def _read_config(path: Path) -> Mapping[str, Any]:
    value = read_yaml(path, "server config")
    if not isinstance(value, Mapping):
        raise ConfigError(f"got {value!r} in {str(path)!r}, expected a mapping", hint="such as 'port: 8000'")
    ensembles = value.get("ensembles")
    if isinstance(ensembles, Mapping):
        beside = {name: path.parent / each if isinstance(each, str) else each for name, each in ensembles.items()}
        return {**value, "ensembles": beside}
    return dict(value)
