"""Builds all distributions of this repository: sdist, the wheel of that sdist, and checksums.

    python .packages/build.py FOLDER

Each distribution is assembled in a temporary folder first, so that its sdist has all files that its wheel needs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
SMALL_MODELS = ROOT / "adafuse_core/small_models"
CHECKSUMS = "SHA256SUMS"


def distributions() -> list[Path]:
    """The folders with a `pyproject.toml`, the main one first."""
    return [ROOT, *sorted(path.parent for path in HERE.glob("*/pyproject.toml"))]


def build(target: Path) -> list[Path]:
    """Build all distributions into a folder, and return the files."""
    for folder in distributions():
        with tempfile.TemporaryDirectory() as temporary:
            source = folder if folder == ROOT else assembled(folder, Path(temporary))
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    files = sorted([*target.glob("*.whl"), *target.glob("*.tar.gz")])
    sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (target / CHECKSUMS).write_text("".join(sums), encoding="utf-8")
    return files


def assembled(folder: Path, into: Path) -> Path:
    """A copy of a distribution with the license, and with the small models if it is theirs."""
    ignore = shutil.ignore_patterns("__pycache__")
    source = shutil.copytree(folder, into / folder.name, ignore=ignore)
    shutil.copy(ROOT / "LICENSE", source)
    if folder.name == "adafuse-small-models":
        shutil.copytree(
            SMALL_MODELS,
            source / "adafuse_small_models",
            ignore=shutil.ignore_patterns("__pycache__", "*.py"),
            dirs_exist_ok=True,
        )
    return source


if __name__ == "__main__":
    for built in build(Path(sys.argv[1])):
        print(f"{built.stat().st_size / 1e6:8.2f} MB  {built}")
