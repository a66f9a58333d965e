"""Options of members on servers, and how such a member is opened. Each kind of server extends the class in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import urlsplit

from adafuse_core.backends.base import Abilities, ModelFiles, Shared
from adafuse_core.backends.servers.connection import Address, Server
from adafuse_core.backends.servers.handshake import Handshake, probe_top
from adafuse_core.backends.servers.read_kinds import ReadKinds
from adafuse_core.backends.servers.session import Format, ServerBackend
from adafuse_core.checks import expect, expect_integer, expect_number
from adafuse_core.errors import ConfigError, ModelLoadError
from adafuse_core.member_config import MemberConfig


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of a member on a server.

    Args:
        base_url: URL of the server's routes in OpenAI's format, such as `"http://127.0.0.1:8000/v1"`.
        model: Name of the model on the server. Default: the only one that it has, or else `model` of the member.
        api_key: The server's API key, if it needs one. It is sent to this server only.
        timeout: Seconds for one attempt of a request.
        deadline: Seconds in which a request is repeated if the server can't be reached, such as while it is restarted,
            and in which loading waits for it.
        top: Number of likeliest tokens that the server may report for a step (`--max-logprobs` of vLLM). Default: 20,
            or less if it allows less.
        draft_tokens: Tokens that a draft asks for at first, and more with every further request for it. A word that is
            longer costs another request, tokens after it are computed in vain.

    Attributes:
        kind: Name of the server's software.
        schema: Name of the requests' schema in `/openapi.json`, and the fields that it must have.
        since: Version that has these fields.
        spare_tokens: Tokens of the longest context that the server keeps for itself.
    """

    base_url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    deadline: float = 180.0
    top: int | None = None
    draft_tokens: int = 8

    honours: ClassVar[frozenset[str]] = frozenset()
    kind: ClassVar[str]
    schema: ClassVar[tuple[str, tuple[str, ...]]]
    since: ClassVar[str]
    spare_tokens: ClassVar[int] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", checked_url(self.base_url))
        for name, shown in (("model", self.model), ("api_key", "***")):
            value = getattr(self, name)
            expect(value is None or (isinstance(value, str) and bool(value)), name, shown, "a text or None")
        expect_number("timeout", self.timeout, above=0.0)
        expect_number("deadline", self.deadline, at_least=0.0)
        expect_integer("draft_tokens", self.draft_tokens, at_least=1)
        if self.top is not None:
            expect_integer("top", self.top, at_least=2)

    def format(self, address: Address, model: str) -> Format:
        """The requests of this kind of server."""
        raise NotImplementedError

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> ServerBackend:
        """Check the server, its model and its tokenizer; see `Opener.open_backend`."""
        if find_spec("openai") is None:
            raise ModelLoadError(
                f"members on {self.kind} servers need the package openai, which is not installed",
                hint='pip install "adafuse[vllm]"',
            )
        address = Address(base_url=self.base_url, api_key=self.api_key, timeout=self.timeout, deadline=self.deadline)
        server = Server(address)
        try:
            return self._opened(server, config, files, shared)
        except BaseException:
            server.close()
            raise

    def _opened(self, server: Server, config: MemberConfig, files: ModelFiles, shared: Shared) -> ServerBackend:
        tokenizer, vocab_size = files.tokenizer, files.architecture.get_text_config().vocab_size
        handshake = Handshake(
            server=server,
            model=self.model,
            usual=config.model,
            tokenizer=tokenizer,
            schema=self.schema,
            since=f"{self.kind} {self.since} or later",
        )
        found = handshake.run()
        form = self.format(server.address, found.model)
        ids = tokenizer("Hello world", add_special_tokens=True)["input_ids"]
        return ServerBackend(
            server=server,
            format=form,
            kinds=shared(f"server:{server.address.root}", ReadKinds),
            draft_tokens=self.draft_tokens,
            described=Abilities(
                vocab_size=vocab_size,
                dtype="chosen by the server",
                device=f"{self.kind} {found.version} at {self.base_url}",
                place=f"server:{self.base_url}/{found.model}",
                top=probe_top(server, form, ids, vocab_size, self.top),
                full_distribution=False,
                masks=False,
                cache="the server's prefix cache",
                weights=found.root,
                max_context=found.max_context - self.spare_tokens,
            ),
        )


def checked_url(url: Any) -> str:
    """The URL of the routes in OpenAI's format, without a slash at its end; `/v1` is added if it has no path."""
    expected = "a URL such as 'http://127.0.0.1:8000/v1'"
    expect(isinstance(url, str), "base_url", url, expected)
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError(
            "got a base_url that contains a user name or a password", hint="use api_key: it is kept out of logs"
        )
    valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    expect(valid, "base_url", url, expected)
    plain = url.rstrip("/")
    return plain if parts.path.strip("/") else f"{plain}/v1"
