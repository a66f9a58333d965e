"""Facts about a round that people ask for: why a candidate was committed, and how likely each member finds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def chosen(played: Mapping[str, Any]) -> Mapping[str, Any]:
    """The candidate that was chosen in a round, as in `Round.to_dict()`."""
    candidate: Mapping[str, Any] = played["candidates"][played["chosen"]]
    return candidate


def probability(candidate: Mapping[str, Any], member: str) -> float | None:
    """The probability that a member assigns to a candidate; None if it has not scored the candidate."""
    logprobs = (candidate["logprobs"] or {}).get(member)
    if logprobs is None:
        return None
    return 0.0 if None in logprobs else math.exp(math.fsum(logprobs))  # in JSON of the server, None is minus infinity


def scored_after(candidate: Mapping[str, Any]) -> str:
    """The text after a candidate that was scored with it, but not committed with it; often empty."""
    text: str = candidate.get("ahead", "")
    return text.removeprefix(candidate["text"])


def reason(played: Mapping[str, Any]) -> str:
    """Why the text of a round was committed, as a short English phrase."""
    if not played["proposers"]:
        return _without_members(played)
    text = _choice(played)
    winner = chosen(played)
    if (played["text"], played["ends"]) != (winner["text"], winner["ends"]):
        text += "; changed to fit the token budget or a context window"
    return text


def _without_members(played: Mapping[str, Any]) -> str:
    if "library_text" in played:
        return "written by AdaFuse, because the token budget or a context window is nearly full"
    return "the grammar allows no other text"


def _choice(played: Mapping[str, Any]) -> str:
    candidates = played["candidates"]
    if len(candidates) == 1:
        count = len(played["proposers"])
        return "the only candidate" + (f", proposed by {count} members" if count > 1 else "")
    score = played["score"]
    if score is None:
        return "chosen without scores"
    others = [other["score"] for place, other in enumerate(candidates) if place != played["chosen"]]
    if score <= min(others):
        return f"the lowest score, {score:.3f}; the next is {min(others):.3f}"
    return f"the score {score:.3f} is not the lowest, {min(others):.3f}: it was sampled, or preferred by an anchor"
