"""The process-wide registry of loaded models: ensembles with the same model share its weights.

Apart from caches and locks, this registry and the registrations in `forks.py` are the only module-level state of the
library. Configs are copied and pickled; models stay here.
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
from adafuse_core.members import progress_bars

if TYPE_CHECKING:
    from adafuse_core.members.member import ModelMember
    from adafuse_core.members.prompts import PromptEncoder

_members: dict[str, ModelMember] = {}
_encoders: dict[str, PromptEncoder] = {}
_users: defaultdict[str, WeakSet[object]] = defaultdict(WeakSet)
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_shared: dict[tuple[str, Callable[[], Any]], Any] = {}  # by place and factory
_guard = threading.Lock()
_loading: list[str] = []  # models that any thread is loading
_interrupted: list[str] = []  # models that the parent was loading when this process was forked


def acquire(config: MemberConfig, user: object) -> ModelMember:
    """The member of a config. The first call loads its model.

    Args:
        config: Config of the member.
        user: Object that uses the member. A model is freed when a user releases it and no other user is alive. A user
            that is garbage-collected without releasing the model leaves it loaded.
    """
    key = config.load_key
    with _lock(key):
        if key not in _members:
            from adafuse_core.members.loader import load_member

            with _loading_model(config):
                _members[key] = load_member(config, _encoder(config), shared)
        with _guard:
            _users[key].add(user)
        return _members[key].named(config.label, config.weight)


def encoder(config: MemberConfig) -> PromptEncoder:
    """The prompt encoder of a config. Its tokenizer stays loaded; its model is not loaded."""
    with _lock(config.load_key):
        own = copy.copy(_encoder(config))
    own.name = config.label
    return own


def release(config: MemberConfig, user: object) -> None:
    """Release a member. The model is freed if it has no other user."""
    key = config.load_key
    with _lock(key):
        with _guard:
            _users[key].discard(user)
            unused = not _users[key]
        if unused and key in _members:
            _members.pop(key).close()


def _lock(key: str) -> threading.Lock:
    """The lock of a model, so that loading one does not block others."""
    with _guard:
        return _locks[key]


@contextmanager
def _loading_model(config: MemberConfig) -> Iterator[None]:
    """Record that a model is being loaded. A process forked meanwhile refuses to load: its locks may stay locked."""
    if _interrupted:
        raise ModelLoadError(
            f"this process was forked while its parent loaded a model ({_interrupted[0]})",
            member=config.label,
            hint="fork before or after models are loaded, or start processes with multiprocessing's 'spawn'",
        )
    _loading.append(config.model)
    try:
        with progress_bars.hidden():
            yield
    finally:
        _loading.remove(config.model)


def _after_fork() -> None:
    """Replace the locks, and record the models that the parent was loading."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()
    _interrupted.extend(_loading)
    _loading.clear()


def _encoder(config: MemberConfig) -> PromptEncoder:
    """The shared encoder, loaded by the first call. The caller holds the lock of the config."""
    key = config.load_key
    if key not in _encoders:
        from adafuse_core.members.tokenizers import load_encoder

        with _loading_model(config):
            _encoders[key] = load_encoder(config)
    return _encoders[key]


def shared(place: str, make: Callable[[], Any]) -> Any:
    """An object shared by all backends of a place, such as the scheduler of a device. The first call creates it."""
    with _guard:
        if (place, make) not in _shared:
            _shared[place, make] = make()
        return _shared[place, make]


def loaded() -> int:
    """Number of models in memory."""
    return len(_members)


call_after_fork(_after_fork)
