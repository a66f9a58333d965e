"""Results on disk: written atomically, read back for the same facts only, and never needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adafuse_core import disk_cache

FACTS = {"dtype": "float32", "versions": ["2.13", "5.23"]}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "root", lambda: tmp_path / "adafuse")
    return tmp_path / "adafuse"


def test_an_entry_is_found_for_its_own_facts_only():
    assert disk_cache.read_json("verdicts", FACTS) is None
    disk_cache.write_json("verdicts", FACTS, {"tree": "yes"})
    assert disk_cache.read_json("verdicts", FACTS) == {"tree": "yes"}
    assert disk_cache.read_json("verdicts", FACTS | {"dtype": "float64"}) is None
    assert disk_cache.read_json("others", FACTS) is None


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", '{"facts": {}, "value": {"tree": "no"}}', "\x00"])
def test_a_damaged_entry_counts_as_missing(root, damaged):
    disk_cache.write_json("verdicts", FACTS, {"tree": "yes"})
    (file,) = root.rglob("*.json")
    file.write_text(damaged)
    assert disk_cache.read_json("verdicts", FACTS) is None


@pytest.mark.skipif(os.name != "posix", reason="needs a device file")
def test_a_folder_that_is_not_writable_is_no_error(monkeypatch):
    monkeypatch.setattr(disk_cache, "root", lambda: Path("/dev/null/adafuse"))
    disk_cache.write_json("verdicts", FACTS, {"tree": "yes"})
    assert disk_cache.read_json("verdicts", FACTS) is None


def test_clearing_removes_one_kind_or_all(root):
    disk_cache.write_json("verdicts", FACTS, {"tree": "yes"})
    disk_cache.write_json("others", FACTS, {})
    assert disk_cache.clear("verdicts") > 0
    assert disk_cache.read_json("verdicts", FACTS) is None
    assert disk_cache.read_json("others", FACTS) == {}
    disk_cache.clear()
    assert not root.exists()
    assert disk_cache.clear() == 0


def test_only_kinds_of_entries_can_be_cleared(root):
    root.mkdir()
    beside = root.parent / "beside"
    beside.mkdir()
    for kind in ("../beside", "..", str(beside), "", "."):
        assert disk_cache.clear(kind) == 0
    assert beside.exists()
    assert root.exists()


def test_sizes_are_told_by_kind():
    assert disk_cache.sizes() == {}
    disk_cache.write_json("verdicts", FACTS, {})
    folder = disk_cache.folder("texts", FACTS, lambda: written("a" * 5000), 1)
    assert disk_cache.sizes() == {"texts": size(folder), "verdicts": disk_cache.clear("verdicts")}
    assert size(folder) > 5000


# --- folders ---


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def written(text):
    """A function that writes a folder with one text."""
    return lambda folder: (folder / "text").write_text(text)


def test_a_folder_is_written_once_for_its_facts():
    made = []
    for facts in (FACTS, FACTS, FACTS | {"dtype": "float64"}):
        folder = disk_cache.folder("texts", facts, lambda: written(str(made.append(1) or len(made))), 1)
    assert len(made) == 2
    assert (folder / "text").read_text() == "2"


def test_errors_of_reading_are_raised_and_leave_nothing(root):
    with pytest.raises(ZeroDivisionError):
        disk_cache.folder("texts", FACTS, lambda: 1 / 0, 1)
    assert [path.suffix for path in (root / "texts").iterdir()] == [".lock"]
    assert disk_cache.folder("texts", FACTS, lambda: written("x"), 1)  # the lock is free again


def test_errors_of_writing_are_logged_and_leave_nothing(root, caplog):
    assert disk_cache.folder("texts", FACTS, lambda: lambda folder: 1 / 0, 1) is None
    assert "division by zero" in caplog.text
    assert [path.suffix for path in (root / "texts").iterdir()] == [".lock"]


def test_processes_that_want_a_folder_at_once_write_it_once(root):
    script = (
        "import sys, time; from pathlib import Path; from adafuse_core import disk_cache\n"
        f"disk_cache.root = lambda: Path({str(root)!r})\n"
        "def write(folder):\n"
        "    print('writes', flush=True)\n"
        "    (folder / 'a').write_text('half'); time.sleep(1); (folder / 'b').write_text('whole')\n"
        "found = disk_cache.folder('texts', {}, lambda: write, 1)\n"
        "print((found / 'b').read_text())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in "abc"]
    printed = "".join(process.communicate(timeout=120)[0] for process in running).split()
    assert sorted(printed) == ["whole"] * 3 + ["writes"]
