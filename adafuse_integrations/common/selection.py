"""Selection of the members that answer, and of the access token that loads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig

_BUNDLED = "small:"  # prefix of the models in the package, which load without an access token


def checked_ensemble(given: Any) -> Ensemble:
    """The argument of `from_ensemble`; raises `ConfigError` for anything but an `Ensemble`."""
    if not isinstance(given, Ensemble):
        raise ConfigError(
            f"got {given!r}, expected an Ensemble",
            hint="to name models, give members=[...]; to use a config, call Ensemble.from_config(...)",
        )
    return given


def select_members(members: Sequence[MemberConfig], model: str | None) -> list[MemberConfig]:
    """Select the members that `model` names, in that order.

    Args:
        members: All members of the ensemble.
        model: Names of members, or of the models that they run, joined by `+`; None selects all members.

    Raises:
        ConfigError: The ensemble has no member or model of that name.
    """
    if model is None:
        return list(members)
    chosen: list[MemberConfig] = []
    for name in model.split("+"):
        named = [member for member in members if member.label == name]
        found = named or [member for member in members if member.model == name]
        if not found:
            labels = ", ".join(member.label for member in members)
            raise ConfigError(
                f"got model={model!r}, but there is no member {name!r}",
                hint=f"the members are {labels}: name some of them, joined by '+'",
            )
        chosen += [member for member in found if member not in chosen]
    return chosen


def with_token(member: MemberConfig, token: str | None) -> MemberConfig:
    """Add a Hugging Face token to a member that has no token of its own."""
    if token is None or member.model.startswith(_BUNDLED):
        return member
    return dataclasses.replace(member, model_kwargs={"token": token, **member.model_kwargs})
