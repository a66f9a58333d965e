"""The distributions: built from the repository, unpacked into an empty folder, and used from there."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import adafuse_core
import adafuse_integrations.langchain
import adafuse_integrations.llama_index
from adafuse_core import ModelNotFoundError, small_models
from adafuse_core.members.model_files import source

ROOT = Path(__file__).parent.parent
PACKAGES = ROOT / ".packages"
PROJECTS = {
    path.parent.name: tomllib.loads(path.read_text(encoding="utf-8")) for path in PACKAGES.glob("*/pyproject.toml")
}
MAIN = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
THIN = {
    "langchain-adafuse/langchain_adafuse": adafuse_integrations.langchain,
    "llama-index-llms-adafuse/llama_index/llms/adafuse": adafuse_integrations.llama_index,
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with all distributions."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, str(PACKAGES / "build.py"), str(folder)], check=True, capture_output=True)
    return folder


def unpack(built, name, into):
    (wheel,) = built.glob(f"{name}-*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(into)


def test_all_distributions_have_the_same_version():
    versions = {project["project"]["version"] for project in (MAIN, *PROJECTS.values())}
    assert versions == {adafuse_core.__version__}
    pinned = [
        requirement
        for project in (MAIN, *PROJECTS.values())
        for requirements in (
            project["project"].get("dependencies", []),
            *project["project"].get("optional-dependencies", {}).values(),
        )
        for requirement in requirements
        if requirement.startswith("adafuse") and "==" in requirement
    ]
    assert len(pinned) == 5
    assert {requirement.partition("==")[2] for requirement in pinned} == versions


@pytest.mark.parametrize("path", THIN)
def test_a_thin_package_has_exactly_the_names_of_its_adapter(path):
    tree = ast.parse((PACKAGES / path / "__init__.py").read_text(encoding="utf-8"))
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imported] == [THIN[path].__name__]
    assert [alias.name for alias in imported[0].names] == THIN[path].__all__
    assert ast.literal_eval(tree.body[-1].value) == THIN[path].__all__


def test_llama_hub_finds_the_class():
    hub = PROJECTS["llama-index-llms-adafuse"]["tool"]["llamahub"]
    assert (PACKAGES / "llama-index-llms-adafuse" / hub["import_path"].replace(".", "/") / "__init__.py").is_file()
    assert set(hub["class_authors"]) <= set(adafuse_integrations.llama_index.__all__)


def test_every_distribution_has_a_wheel_an_sdist_and_checksums(built):
    names = {name.replace("-", "_") for name in ("adafuse", *PROJECTS)}
    version = adafuse_core.__version__
    files = {f"{name}-{version}{end}" for name in names for end in ("-py3-none-any.whl", ".tar.gz")}
    lines = (built / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, name in map(str.split, lines)}
    assert set(sums) == files
    for name, digest in sums.items():
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == digest
    for wheel in built.glob("*.whl"):
        with ZipFile(wheel) as archive:
            assert any(entry.endswith("licenses/LICENSE") for entry in archive.namelist())


def test_only_the_small_models_are_large(built):
    sizes = {file.name.partition("-")[0]: file.stat().st_size for file in built.glob("*.whl")}
    assert sizes.pop("adafuse_small_models") > 5e6
    assert max(sizes.values()) < 1e6


PROGRAM = """
import sys

import adafuse_core
from adafuse_core import ModelNotFoundError
from langchain_adafuse import ChatAdaFuse
from llama_index.llms.adafuse import AdaFuseLLM

print(adafuse_core.__file__)
try:
    ChatAdaFuse().invoke("What is the capital of Peru?")
except ModelNotFoundError as error:
    print(error.hint)
sys.path.append(sys.argv[1])
print(ChatAdaFuse().invoke("What is the capital of Peru?").text)
print(AdaFuseLLM().complete("What is the capital of Peru?").text)
"""


def test_installed_packages_work_and_name_the_package_of_the_small_models(built, tmp_path):
    for name in ("adafuse", "langchain_adafuse", "llama_index_llms_adafuse"):
        unpack(built, name, tmp_path)
    unpack(built, "adafuse_small_models", tmp_path / "later")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "later"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    path, hint, *answers = done.stdout.splitlines()
    assert path == str(tmp_path / "adafuse_core/__init__.py")
    assert hint.startswith('pip install "adafuse[small-models]"')
    assert answers == ["The capital of Peru is Lima."] * 2


def test_missing_small_models_are_an_error_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setattr(small_models, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="adafuse-small-models is not installed"):
        small_models.path("aspen")
    with pytest.raises(ModelNotFoundError, match="'small:aspen'") as caught:
        source("small:aspen")
    assert small_models.INSTALL in caught.value.hint
