"""`adafuse cache` shows and deletes what is kept on disk."""

from __future__ import annotations

import pytest

from adafuse_core import disk_cache
from adafuse_integrations.cli.main import main


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "root", lambda: tmp_path / "adafuse")
    return tmp_path / "adafuse"


@pytest.fixture
def entries():
    for kind in ("gguf", "verdicts"):
        disk_cache.write_json(kind, {}, {"text": "a" * 1_500_000})


def test_the_folder_is_shown_with_kinds_and_sizes(root, entries, capsys):
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{root}\n  gguf  1.5 MB\n  verdicts  1.5 MB\n"


def test_an_empty_cache_is_shown_as_such(root, capsys):
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{root}\n  empty\n"


def test_one_kind_or_everything_is_deleted(root, entries, capsys):
    assert main(["cache", "--clear", "gguf"]) == 0
    assert list(disk_cache.sizes()) == ["verdicts"]
    assert main(["cache", "--clear"]) == 0
    assert not root.exists()
    assert capsys.readouterr().out == "freed 1.5 MB\n" * 2


def test_an_unknown_kind_is_an_error_that_names_those_that_exist(entries, capsys):
    assert main(["cache", "--clear", "ggufs"]) == 2
    assert "['gguf', 'verdicts']" in capsys.readouterr().err
    assert len(disk_cache.sizes()) == 2


def test_options_of_an_ensemble_are_refused(capsys):
    assert main(["cache", "--models", "small:aspen"]) == 2
    assert "unknown option" in capsys.readouterr().err
