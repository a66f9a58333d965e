"""Loaded models, shared by the whole process: two ensembles that name the same model share its weights.

The only module state of the library. Configs travel (copy, pickle, other threads), models stay here.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from typing import TYPE_CHECKING
from weakref import WeakSet

from adafuse_core.config import MemberConfig
from adafuse_core.engine.device_turns import Turns

if TYPE_CHECKING:
    from adafuse_core.members.member import ModelMember
    from adafuse_core.members.prompts import PromptEncoder

_members: dict[str, ModelMember] = {}
_encoders: dict[str, PromptEncoder] = {}
_users: defaultdict[str, WeakSet[object]] = defaultdict(WeakSet)
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_turns: defaultdict[str, Turns] = defaultdict(Turns)  # by device
_guard = threading.Lock()


def acquire(config: MemberConfig, user: object) -> ModelMember:
    """The member of a config, loaded at the first call for its model.

    Args:
        config: What to load.
        user: Who uses it. A model stays loaded until a user releases it and no other one is alive that
            has not; a user that vanishes without releasing leaves it loaded, ready for the next.
    """
    key = config.load_key
    with _guard:
        lock = _locks[key]
    with lock:  # loading one model does not hold up another
        if key not in _members:
            from adafuse_core.members.loader import load_member

            loaded = load_member(config, _encoder(config))
            loaded.backend.take_turns(_turns[loaded.place])
            _members[key] = loaded
        with _guard:
            _users[key].add(user)
        return _members[key].named(config.label, config.weight)


def encoder(config: MemberConfig) -> PromptEncoder:
    """How the member of a config reads prompts. Its model is not loaded, and its tokenizer stays."""
    with _guard:
        lock = _locks[config.load_key]
    with lock:
        own = copy.copy(_encoder(config))
    own.name = config.label
    return own


def release(config: MemberConfig, user: object) -> None:
    """Give a member back; its model is freed once nobody uses it."""
    key = config.load_key
    with _guard:
        lock = _locks[key]
    with lock:
        with _guard:
            _users[key].discard(user)
            unused = not _users[key]
        if unused and key in _members:
            _members.pop(key).close()


def _encoder(config: MemberConfig) -> PromptEncoder:
    """The shared one, loaded at the first call; the lock of the config is held."""
    key = config.load_key
    if key not in _encoders:
        from adafuse_core.members.tokenizers import load_encoder

        _encoders[key] = load_encoder(config)
    return _encoders[key]


def loaded() -> int:
    """Number of models in memory."""
    return len(_members)
