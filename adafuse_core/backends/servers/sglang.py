"""The backend for models on SGLang servers: the native route `/generate` with token ids.

It follows the documentation and the source of SGLang 0.5.23, and has been tested with a server that has the same
routes. It has not been run with SGLang itself, which needs a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adafuse_core.backends.servers.connection import Address, Json
from adafuse_core.backends.servers.options import ServerOptions
from adafuse_core.backends.servers.session import Drafted
from adafuse_core.text.ids import Ids


@dataclass(frozen=True, kw_only=True)
class SGLang(ServerOptions):
    """A member on an SGLang server, which has one model. The options are those of `ServerOptions`."""

    kind: ClassVar[str] = "SGLang"
    schema: ClassVar[tuple[str, tuple[str, ...]]] = ("GenerateReqInput", ("token_ids_logprob", "cache_salt"))
    since: ClassVar[str] = "0.5.23"
    spare_tokens: ClassVar[int] = 6

    def format(self, address: Address, model: str) -> Generate:
        """See `ServerOptions.format`."""
        return Generate(f"{address.root}/generate")


@dataclass(frozen=True)
class Generate:
    """SGLang's own requests; see `session.Format`.

    Args:
        path: URL of the route.
    """

    path: str
    most_tokens: ClassVar[int] = 1024  # SGLang has no limit

    def draft(self, contexts: Sequence[Ids], max_new: int, top: int, salt: str) -> dict[str, Any]:
        """See `Format.draft`."""
        return _greedy(contexts, max_new, salt) | {"top_logprobs_num": top}

    def drafted(self, answer: Json) -> list[list[Drafted]]:
        """See `Format.drafted`."""
        return [_steps(each["meta_info"]) for each in answer]

    def read(self, contexts: Sequence[Ids], tokens: Sequence[int], salt: str) -> dict[str, Any]:
        """See `Format.read`."""
        return _greedy(contexts, 1, salt) | {"token_ids_logprob": [list(tokens)] * len(contexts)}

    def values(self, answer: Json) -> list[dict[int, float]]:
        """See `Format.values`."""
        return [_by_id(each["meta_info"]["output_token_ids_logprobs"][0]) for each in answer]

    def cached_tokens(self, answer: Json) -> int:
        """See `Format.cached_tokens`."""
        return int(answer[0]["meta_info"].get("cached_tokens") or 0)


def _greedy(contexts: Sequence[Ids], max_new: int, salt: str) -> dict[str, Any]:
    """The fields of all requests."""
    body: dict[str, Any] = {
        "input_ids": [list(context) for context in contexts],
        "sampling_params": {
            "temperature": 0.0,
            "max_new_tokens": max_new,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        },
        "return_logprob": True,
    }
    return body | ({"cache_salt": salt} if salt else {})


def _steps(info: Json) -> list[Drafted]:
    tokens = [int(token) for _, token, _ in info["output_token_logprobs"]]
    return [Drafted(*each) for each in zip(tokens, map(_by_id, info["output_top_logprobs"]), strict=True)]


def _by_id(logprobs: Json) -> dict[int, float]:
    """Log-probabilities by token, from triples of log-probability, token and text."""
    return {int(token): float(value) for value, token, _ in logprobs}
