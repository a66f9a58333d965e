"""Loaded models, shared by the whole process: two ensembles that name the same model share its weights.

The only module state of the library. Configs travel (copy, pickle, other threads), models stay here.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from adafuse_core.member_config import MemberConfig

if TYPE_CHECKING:
    from adafuse_core.members.member import ModelMember
    from adafuse_core.members.prompts import PromptEncoder

_members: dict[str, ModelMember] = {}
_encoders: dict[str, PromptEncoder] = {}
_users: defaultdict[str, WeakSet[object]] = defaultdict(WeakSet)
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_shared: dict[tuple[str, Callable[[], Any]], Any] = {}  # by place, and what makes it
_guard = threading.Lock()


def acquire(config: MemberConfig, user: object) -> ModelMember:
    """The member of a config, loaded at the first call for its model.

    Args:
        config: What to load.
        user: Who uses it. A model stays loaded until a user releases it and no other one is alive that
            has not; a user that vanishes without releasing leaves it loaded, ready for the next.
    """
    key = config.load_key
    with _lock(key):
        if key not in _members:
            from adafuse_core.members.loader import load_member

            _members[key] = load_member(config, _encoder(config), shared)
        with _guard:
            _users[key].add(user)
        return _members[key].named(config.label, config.weight)


def encoder(config: MemberConfig) -> PromptEncoder:
    """How the member of a config reads prompts. Its model is not loaded, and its tokenizer stays."""
    with _lock(config.load_key):
        own = copy.copy(_encoder(config))
    own.name = config.label
    return own


def release(config: MemberConfig, user: object) -> None:
    """Give a member back; its model is freed once nobody uses it."""
    key = config.load_key
    with _lock(key):
        with _guard:
            _users[key].discard(user)
            unused = not _users[key]
        if unused and key in _members:
            _members.pop(key).close()


def _lock(key: str) -> threading.Lock:
    """One for each model: loading one does not hold up another."""
    with _guard:
        return _locks[key]


def _encoder(config: MemberConfig) -> PromptEncoder:
    """The shared one, loaded at the first call; the lock of the config is held."""
    key = config.load_key
    if key not in _encoders:
        from adafuse_core.members.tokenizers import load_encoder

        _encoders[key] = load_encoder(config)
    return _encoders[key]


def shared(place: str, make: Callable[[], Any]) -> Any:
    """What all backends of a place have in common, such as the turns on a device: made by the first that asks."""
    with _guard:
        if (place, make) not in _shared:
            _shared[place, make] = make()
        return _shared[place, make]


def loaded() -> int:
    """Number of models in memory."""
    return len(_members)
