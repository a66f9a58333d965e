"""The backend for a model on a vLLM server, over its routes in OpenAI's format. docs/vllm.md describes it for users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import urlsplit

from adafuse_core.backends.base import Abilities, ModelFiles, Shared
from adafuse_core.backends.read_kinds import ReadKinds
from adafuse_core.backends.server import Address, Json, Server
from adafuse_core.backends.server_session import Drafted, ServerBackend
from adafuse_core.backends.vllm_handshake import Handshake, probe_top
from adafuse_core.checks import expect, expect_integer, expect_number
from adafuse_core.errors import ConfigError, ModelLoadError
from adafuse_core.member_config import MemberConfig
from adafuse_core.text.ids import Ids

_IMPOSSIBLE = -9999.0  # what vLLM writes for a log-probability of minus infinity
_PREFIX = "token_id:"


@dataclass(frozen=True, kw_only=True)
class VLLM:
    """Options of a member on a vLLM server.

    Args:
        base_url: URL of the server's routes in OpenAI's format, such as `"http://127.0.0.1:8000/v1"`.
        model: Name of the model on the server. Default: the only one that it has, or else `model` of the member.
        api_key: The server's API key, if it needs one. It is sent to this server only.
        timeout: Seconds for one attempt of a request.
        deadline: Seconds in which a request is repeated if the server can't be reached, such as while it is restarted,
            and in which loading waits for it.
        top: Number of likeliest tokens that the server may report for a step (`--max-logprobs`). Default: 20, or less
            if it allows less.
        draft_tokens: Tokens that a draft asks for at first, and more with every further request for it. A word that is
            longer costs another request, tokens after it are computed in vain.
    """

    base_url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    deadline: float = 180.0
    top: int | None = None
    draft_tokens: int = 8

    honours: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", checked_url(self.base_url))
        for name in ("model", "api_key"):
            value = getattr(self, name)
            shown = "***" if name == "api_key" else value
            expect(value is None or (isinstance(value, str) and bool(value)), name, shown, "a text or None")
        expect_number("timeout", self.timeout, above=0.0)
        expect_number("deadline", self.deadline, at_least=0.0)
        expect_integer("draft_tokens", self.draft_tokens, at_least=1)
        if self.top is not None:
            expect_integer("top", self.top, at_least=2)

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> ServerBackend:
        """Check the server, its model and its tokenizer; see `Opener.open_backend`."""
        if find_spec("openai") is None:
            raise ModelLoadError(
                "backend 'vllm' needs the package openai, which is not installed", hint="pip install 'adafuse[vllm]'"
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
        found = Handshake(server=server, model=self.model, usual=config.model, tokenizer=tokenizer).run()
        form = Completions(found.model)
        ids = tokenizer("Hello world", add_special_tokens=True)["input_ids"]
        return ServerBackend(
            server=server,
            format=form,
            kinds=shared(f"server:{server.address.root}", ReadKinds),
            draft_tokens=self.draft_tokens,
            described=Abilities(
                vocab_size=vocab_size,
                dtype="chosen by the server",
                device=f"vLLM {found.version} at {self.base_url}",
                place=f"vllm:{self.base_url}/{found.model}",
                top=probe_top(server, form, ids, vocab_size, self.top),
                full_distribution=False,
                masks=False,
                cache="the server's prefix cache",
                weights=found.root,
                max_context=found.max_context,
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


@dataclass(frozen=True)
class Completions:
    """Text completions of vLLM, with token ids in place of texts; see `server_session.Format`.

    Args:
        model: Name of the model on the server.
    """

    model: str
    path: ClassVar[str] = "/completions"
    most_tokens: ClassVar[int] = 128  # vLLM's limit of logprob_token_ids

    def draft(self, contexts: Sequence[Ids], max_new: int, top: int, salt: str) -> dict[str, Any]:
        """See `Format.draft`."""
        return self._greedy(contexts, max_new, salt) | {"logprobs": top}

    def drafted(self, answer: Json) -> list[list[Drafted]]:
        """See `Format.drafted`."""
        return [list(_whole_steps(choice["logprobs"])) for choice in _choices(answer)]

    def read(self, contexts: Sequence[Ids], tokens: Sequence[int], salt: str) -> dict[str, Any]:
        """See `Format.read`. `prompt_logprobs` would do the same in one row, but vLLM then skips its prefix cache."""
        return self._greedy(contexts, 1, salt) | {"logprobs": 1, "logprob_token_ids": list(tokens)}

    def values(self, answer: Json) -> list[dict[int, float]]:
        """See `Format.values`."""
        return [_by_id(choice["logprobs"]["top_logprobs"][0]) for choice in _choices(answer)]

    def cached_tokens(self, answer: Json) -> int:
        """See `Format.cached_tokens`. vLLM tells it with `--enable-prompt-tokens-details`."""
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens") or 0)

    def _greedy(self, contexts: Sequence[Ids], max_new: int, salt: str) -> dict[str, Any]:
        """The fields of all requests. Servers take the model's own sampling options for those that are left out."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": [list(context) for context in contexts],
            "max_tokens": max_new,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "return_tokens_as_token_ids": True,
        }
        return body | ({"cache_salt": salt} if salt else {})


def _choices(answer: Json) -> list[Json]:
    """The continuations, in order of the prompts."""
    return sorted(answer["choices"], key=lambda choice: choice["index"])


def _whole_steps(logprobs: Json) -> list[Drafted]:
    """The steps up to the first one whose likeliest tokens are missing; see `read_kinds`."""
    steps = []
    for token, likeliest in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        step = Drafted(_id(token), _by_id(likeliest))
        if min(step.logprobs.values()) <= _IMPOSSIBLE:
            break
        steps.append(step)
    return steps


def _by_id(logprobs: Json) -> dict[int, float]:
    return {_id(token): float(value) for token, value in logprobs.items()}


def _id(token: str) -> int:
    return int(token.removeprefix(_PREFIX))
