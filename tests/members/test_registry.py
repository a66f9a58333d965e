"""Loaded models are shared by all users of one config, and freed with the last user."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from adafuse_core.errors import ModelNotFoundError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import loader, registry
from tests import tiny


class User:
    """Anything that can be referred to weakly."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model that other test modules do not use."""
    return tiny.save_tiny(tmp_path_factory.mktemp("registry") / "own", tiny.byte_level())


@pytest.fixture
def config(folder):
    """The config of the model, which is released after the test."""
    gc.collect()
    before = registry.loaded()
    config = MemberConfig(model=str(folder))
    yield config
    registry.release(config, User())
    gc.collect()
    assert registry.loaded() == before


def named(config, **options):
    return MemberConfig(model=config.model, **options)


def test_users_of_one_config_share_one_model(config):
    first, second = User(), User()
    before = registry.loaded()
    a, b = registry.acquire(config, first), registry.acquire(config, second)
    assert a.backend is b.backend
    assert registry.loaded() == before + 1
    for user in (first, second):
        registry.release(config, user)


def test_every_user_has_its_own_name_and_weight(config):
    user = User()
    plain = registry.acquire(config, user)
    other = registry.acquire(named(config, name="other", weight=3.0), user)
    assert (plain.name, plain.weight) == ("own", 1.0)
    assert (other.name, other.weight) == ("other", 3.0)
    assert other.backend is plain.backend
    registry.release(config, user)


def test_another_option_is_another_model(config):
    user, other = User(), named(config, dtype="float64")
    before = registry.loaded()
    a, b = registry.acquire(config, user), registry.acquire(other, user)
    assert a.backend is not b.backend
    assert registry.loaded() == before + 2
    registry.release(config, user)
    registry.release(other, user)
    assert registry.loaded() == before


def test_a_model_stays_until_its_last_user_releases_it(config):
    first, second = User(), User()
    registry.acquire(config, first)
    member = registry.acquire(config, second)
    before = registry.loaded()
    registry.release(config, first)
    assert registry.loaded() == before
    assert member.prompt_reader.count_tokens("The quick") > 0
    assert member.backend.abilities().vocab_size == 400
    registry.release(config, second)
    assert registry.loaded() == before - 1


def test_releasing_twice_or_without_having_acquired_takes_nothing_from_others(config):
    first, second = User(), User()
    registry.acquire(config, first)
    registry.acquire(config, second)
    loaded = registry.loaded()
    for _ in range(3):
        registry.release(config, first)
        registry.release(config, User())
    assert registry.loaded() == loaded
    registry.release(config, second)


def test_releasing_what_was_never_loaded_does_nothing():
    before = registry.loaded()
    registry.release(MemberConfig(model="no/such/model"), User())
    assert registry.loaded() == before


def test_the_weights_are_freed_with_the_model(config):
    user = User()
    weights = weakref.ref(registry.acquire(config, user).backend.model.module)
    registry.release(config, user)
    gc.collect()
    assert weights() is None


def test_a_released_model_can_be_loaded_again(config):
    user = User()
    first = registry.acquire(config, user)
    registry.release(config, user)
    second = registry.acquire(config, user)
    assert second.backend is not first.backend
    assert second.backend.abilities().vocab_size == 400
    registry.release(config, user)


def test_a_deleted_user_keeps_no_model_alive(config):
    staying, leaving = User(), User()
    registry.acquire(config, leaving)
    registry.acquire(config, staying)
    loaded = registry.loaded()
    del leaving
    gc.collect()
    assert registry.loaded() == loaded
    registry.release(config, staying)
    assert registry.loaded() == loaded - 1


def test_a_model_of_a_deleted_user_is_freed_by_the_next_user(config):
    before = registry.loaded()
    user = User()
    weights = weakref.ref(registry.acquire(config, user).backend.model.module)
    del user
    gc.collect()
    assert registry.loaded() == before + 1
    successor = User()
    assert registry.acquire(config, successor).backend.model.module is weights()
    registry.release(config, successor)
    gc.collect()
    assert registry.loaded() == before
    assert weights() is None


def test_threads_that_ask_at_once_load_once(config, monkeypatch):
    loads, barrier = [], threading.Barrier(8)
    load = loader.load_member

    def counted(config, *given):
        loads.append(config)
        return load(config, *given)

    monkeypatch.setattr(loader, "load_member", counted)
    users = [User() for _ in range(8)]

    def acquire(user):
        barrier.wait()
        return registry.acquire(config, user)

    with ThreadPoolExecutor(8) as pool:
        members = list(pool.map(acquire, users))
    assert len(loads) == 1
    assert len({id(member.backend) for member in members}) == 1
    for user in users:
        registry.release(config, user)


def test_a_load_that_fails_leaves_nothing_behind(config):
    before = registry.loaded()
    for _ in range(2):
        with pytest.raises(ModelNotFoundError):
            registry.acquire(MemberConfig(model="/no/such/folder"), User())
    assert registry.loaded() == before
