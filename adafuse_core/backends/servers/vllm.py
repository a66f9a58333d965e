"""The backend for models on vLLM servers: text completions with token ids. docs/vllm.md describes it for users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adafuse_core.backends.servers.connection import Address, Json
from adafuse_core.backends.servers.options import ServerOptions
from adafuse_core.backends.servers.session import Drafted
from adafuse_core.text.ids import Ids

_IMPOSSIBLE = -9999.0  # what vLLM writes for a log-probability of minus infinity
_PREFIX = "token_id:"


@dataclass(frozen=True, kw_only=True)
class VLLM(ServerOptions):
    """A member on a vLLM server. The options are those of `ServerOptions`."""

    kind: ClassVar[str] = "vLLM"
    schema: ClassVar[tuple[str, tuple[str, ...]]] = (
        "CompletionRequest",
        ("logprob_token_ids", "return_tokens_as_token_ids", "cache_salt"),
    )
    since: ClassVar[str] = "0.32"

    def format(self, address: Address, model: str) -> Completions:
        """See `ServerOptions.format`."""
        return Completions(model)


@dataclass(frozen=True)
class Completions:
    """Text completions of vLLM, with token ids in place of texts; see `session.Format`.

    Args:
        model: Name of the model on the server.
    """

    model: str
    path: str = "/completions"
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
