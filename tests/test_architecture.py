"""The house rules that code can check: import directions, and what importing loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"langchain", "langchain_core", "llama_index", "rich", "fastapi", "openai"}

# Each package of the core may import these others of the core, besides the values at its top.
MAY_IMPORT = {
    "text": set(),
    "chat": {"text"},
    "backends": {"engine", "text"},
    "engine": {"text"},
    "members": {"backends", "chat", "text", "small_models"},
    "strategies": {"members"},
    "small_models": set(),
}
VALUES = {"checks", "errors", "config", "member_config", "rounds", "calls", "events"}
ABOVE = {"fusion": {"strategies"}, "stopping": {"chat"}}  # pure functions that a package may use


def imports(path):
    """Modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("adafuse_core"), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_imports_neither_integrations_nor_frameworks(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & (FRAMEWORKS | {"adafuse_integrations"})


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_core_packages_import_downwards_only(package):
    for path in files(f"adafuse_core/{package}"):
        parts = {name.split(".")[1] for name in imports(path) if name.startswith("adafuse_core.")}
        allowed = {package} | MAY_IMPORT[package] | VALUES | {n for n, users in ABOVE.items() if package in users}
        assert parts <= allowed, path


@pytest.mark.parametrize(("package", "others"), [("langchain", "llama_index"), ("llama_index", "langchain")])
def test_an_integration_knows_no_other_framework(package, others):
    for path in files(f"adafuse_integrations/{package}"):
        assert not any(name.split(".")[0].startswith(others) for name in imports(path)), path


@pytest.mark.parametrize("path", files("adafuse_integrations/common"), ids=lambda path: path.name)
def test_what_adapters_share_knows_none_of_them_nor_their_frameworks(path):
    names = set(imports(path))
    assert not {name.split(".")[0] for name in names} & FRAMEWORKS
    own = {name for name in names if name.startswith("adafuse_integrations.")}
    assert all(name.startswith("adafuse_integrations.common.") for name in own), own


@pytest.mark.parametrize("package", ["langchain", "llama_index", "cli"])
def test_integrations_share_through_the_common_package_alone(package):
    for path in files(f"adafuse_integrations/{package}"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("adafuse_integrations.")}
        shows = {"langchain", "llama_index"} if path.name == "demo.py" else set()
        assert used <= {package, "common"} | shows, path


def loaded_by(statement):
    """Top-level modules in memory after a statement, in a process of its own."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import adafuse_core", {"torch", "transformers", "tokenizers"}),
        ("from adafuse_core import Ensemble; Ensemble()", {"torch", "transformers", "tokenizers"}),
        ("import adafuse_integrations", {"torch", "transformers", "langchain_core", "llama_index"}),
        ("import adafuse_integrations.common.options", {"torch", "pydantic", "langchain_core", "llama_index"}),
        ("import adafuse_integrations.langchain", {"torch", "llama_index"}),
        ("import adafuse_integrations.llama_index", {"torch", "langchain_core"}),
        ("import adafuse_integrations.cli.main", {"torch", "pydantic", "langchain_core", "llama_index"}),
    ],
)
def test_importing_loads_no_more_than_it_must(statement, absent):
    assert not loaded_by(statement) & absent
