"""Who may use the server: API keys, and without them the programs and pages of this machine."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers

from adafuse_integrations.server.config import ServerConfig
from adafuse_integrations.server.errors import ApiError


class Keys:
    """The API keys of a server. Without keys, everyone has access.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def holder(self, headers: Headers) -> str:
        """A name for the key of a request, which does not reveal the key; empty if the server has no keys.

        Raises:
            ApiError: The request has no key, or a wrong one.
        """
        if not self._digests:
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("the request has no API key: send it in the header 'Authorization: Bearer KEY'")
        given = _digest(key.strip())
        # Every key is compared, each in constant time: the time of an answer tells nothing about the keys.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if not any(matches):
            raise _refused("the API key is wrong")
        return given.hex()


class Hosts:
    """The names by which a server without keys may be called, if it is for this machine alone.

    A page of another site can let a browser resolve the name of that site to this machine, and then read answers of
    local servers. Its requests have that name as their host.

    Args:
        config: Address and keys.
    """

    def __init__(self, config: ServerConfig) -> None:
        local = config.is_local and not config.api_keys
        self._allowed = {"localhost", "127.0.0.1", "::1", config.host} if local else None

    def check(self, headers: Headers) -> None:
        """Raise `ApiError` if a request calls the server by another name."""
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self._allowed is not None and name.lower() not in self._allowed:
            raise ApiError(
                403,
                f"got the host {name!r}, but this server is for its own machine: call it localhost, or set API keys",
                code="host_not_allowed",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _refused(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
