"""Which members answer, and with what they are loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig

_SHIPPED = "small:"  # models that come with the package: loading them takes no token


def checked_ensemble(given: Any) -> Ensemble:
    """The ensemble that an adapter is to be made from; else a `ConfigError`."""
    if not isinstance(given, Ensemble):
        raise ConfigError(
            f"got {given!r}, expected an Ensemble",
            hint="to name models, give members=[...]; of a config, make Ensemble.from_config(...)",
        )
    return given


def selected(members: Sequence[MemberConfig], model: str | None) -> list[MemberConfig]:
    """The members that `model` names, in its order; all if it is None.

    Args:
        members: Of the ensemble.
        model: Names of members, or of the models they run, joined by `+`.

    Raises:
        ConfigError: It names one that is not there.
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
    """The member, to be loaded with a Hugging Face token unless it has its own."""
    if token is None or member.model.startswith(_SHIPPED):
        return member
    return dataclasses.replace(member, model_kwargs={"token": token, **member.model_kwargs})
