"""Members load side by side; a failure leaves nothing loaded and names its member."""

from __future__ import annotations

import threading

import pytest

from adafuse_core.errors import ModelLoadError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import loader, registry
from adafuse_core.members.member_set import MemberSet
from tests import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("side-by-side")
    return [tiny.save_tiny(root / name, tiny.byte_level()) for name in ("one", "two")]


def member_set(*models):
    return MemberSet([MemberConfig(model=str(model)) for model in models], None, lambda members: None)


def test_tokenizers_are_read_while_other_members_load(folders, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    load = loader.load_member
    monkeypatch.setattr(loader, "load_member", lambda *given: both.wait() is not None and load(*given))
    members = member_set(*folders)
    assert [member.name for member in members.load()] == ["one", "two"]
    members.close()


def test_the_error_is_that_of_the_first_member_that_fails_and_nothing_stays_loaded(folders):
    before = registry.loaded()
    members = member_set(folders[0], folders[0].parent / "absent", folders[1], folders[1].parent / "missing")
    with pytest.raises(ModelLoadError) as caught:
        members.load()
    assert caught.value.member == "absent"
    assert members.loaded is None
    assert registry.loaded() == before


def test_a_set_loads_again_after_a_failure(folders, tmp_path):
    late = tmp_path / "late"
    members = member_set(folders[0], late)
    with pytest.raises(ModelLoadError):
        members.load()
    tiny.save_tiny(late, tiny.byte_level())
    assert len(members.load()) == 2
    members.close()
