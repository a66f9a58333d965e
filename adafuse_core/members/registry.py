"""Loaded models, shared by the whole process: two ensembles that name the same model share its weights.

The module state of the library, beside the list of what is renewed in forked children (`forks.py`). Configs travel
(copy, pickle, other threads), models stay here.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from adafuse_core.errors import ModelLoadError
from adafuse_core.forks import call_after_fork
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
_loading: list[str] = []  # what is being loaded, on any thread
_broken_off: list[str] = []  # what the parent was loading when this process was forked


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

            with _noted(config):
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


@contextmanager
def _noted(config: MemberConfig) -> Iterator[None]:
    """Around loading. A child of a process that was loading can't load: what another thread began never ends there."""
    if _broken_off:
        raise ModelLoadError(
            f"this process was forked while its parent loaded a model ({_broken_off[0]})",
            member=config.label,
            hint="fork before or after models are loaded, or start processes with multiprocessing's 'spawn'",
        )
    _loading.append(config.model)
    try:
        yield
    finally:
        _loading.remove(config.model)


def _after_fork() -> None:
    """Make new locks, and note what the parent was loading."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()
    _broken_off.extend(_loading)
    _loading.clear()


def _encoder(config: MemberConfig) -> PromptEncoder:
    """The shared one, loaded at the first call; the lock of the config is held."""
    key = config.load_key
    if key not in _encoders:
        from adafuse_core.members.tokenizers import load_encoder

        with _noted(config):
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


call_after_fork(_after_fork)
