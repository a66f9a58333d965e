"""Members that are given as objects, such as `ScriptedMember`s, in place of configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.base import Member


def ready_made(members: Sequence[Any] | None) -> tuple[Member, ...] | None:
    """The members if they are objects that can be used as they are, None if they are configs."""
    if members is None or isinstance(members, str | Mapping):
        return None
    configs = [isinstance(member, str | Path | Mapping | MemberConfig) for member in members]
    if any(configs) and not all(configs):
        raise ConfigError("got ready-made members beside model names", hint="give one kind")
    return None if all(configs) else tuple(members)


def check_ready_made(members: Sequence[Member], configs: Sequence[MemberConfig]) -> None:
    """Refuse members whose names or weights differ from the configs'."""
    given = [(member.name, member.weight) for member in members]
    expected = [(member.label, member.weight) for member in configs]
    if given != expected:
        raise ConfigError(
            f"got ready-made members {given} (name, weight), the config has {expected}",
            hint="give each member a name of its own, and the config's names and weights if there is a config",
        )
