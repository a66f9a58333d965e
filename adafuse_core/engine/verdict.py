"""The verdict of a model's self-test: which KV store it uses and why, as plain values that can be kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from adafuse_core.engine.cache_growth import CacheAbilities


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the self-test of a model has found.

    Args:
        kind: Name of the fastest KV store that reproduces fresh forward passes.
        problems: Why faster stores were not chosen.
        limits: What the store can't do, to be shown to users.
        abilities: What the model's own cache supports, for the prefill store; None for nothing.
        recorded: Whether small passes can be CUDA graphs.
        forced: Whether the user named the store.
        fallback: Whether it is the last kind, chosen because no other works.
        bytes_per_token: Bytes by which the store grows per token; 0 if unknown or constant.
    """

    kind: str
    problems: tuple[str, ...] = ()
    limits: str = ""
    abilities: CacheAbilities | None = None
    recorded: bool = False
    forced: bool = False
    fallback: bool = False
    bytes_per_token: float = 0.0

    @property
    def proves_sanity(self) -> bool:
        """Whether the test shows that the model's distributions are finite, and independent of later tokens.

        Tokens that come later are not even computed when these stores reproduce passes in which they are.
        """
        return self.kind != "prefill"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for `from_dict`."""
        return {**asdict(self), "problems": list(self.problems)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The verdict with these values. Raises `TypeError` if they are those of another version."""
        abilities = values.get("abilities")
        given = {**values, "problems": tuple(values.get("problems", ()))}
        return cls(**given | {"abilities": None if abilities is None else CacheAbilities(**abilities)})
