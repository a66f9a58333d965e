"""Checks of members that are passed as objects, such as `ScriptedMember`s, instead of configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.base import Member


def ready_made(members: Sequence[Any] | None) -> tuple[Member, ...] | None:
    """The members if they are objects; None if they are configs."""
    if not members:
        return None
    configs = [isinstance(member, str | Path | Mapping | MemberConfig) for member in members]
    for member, is_config in zip(members, configs, strict=True):
        if not is_config and not hasattr(member, "open"):
            raise ConfigError(
                f"got {member!r} as a member, expected a model name, a mapping, a MemberConfig or a ready-made member",
                hint="for a model that is already loaded, pass the name or path from which it was loaded",
            )
    if any(configs) and not all(configs):
        raise ConfigError("got ready-made members together with model names", hint="pass only one kind")
    return None if all(configs) else tuple(members)


def check_ready_made(members: Sequence[Member], configs: Sequence[MemberConfig], defaults: Mapping[str, Any]) -> None:
    """Refuse members whose names or weights differ from the config's, and options for loading members."""
    if defaults:
        raise ConfigError(
            f"got options of members ({', '.join(defaults)}) for ready-made members, which are already loaded",
            hint="leave these options out",
        )
    given = [(member.name, member.weight) for member in members]
    expected = [(member.label, member.weight) for member in configs]
    if given != expected:
        raise ConfigError(
            f"got ready-made members {given} (name, weight), the config has {expected}",
            hint="use unique names and, with a config, its names and weights",
        )
