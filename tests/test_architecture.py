"""Architecture rules: which package may import which, what importing loads, length of files and functions."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE, INTEGRATIONS = "adafuse_core", "adafuse_integrations"

# Top-level packages and modules of the core, lowest first, with the ones that each may import.
MAY_IMPORT = {
    "errors": set(),
    "rounds": set(),
    "calls": set(),
    "small_models": set(),
    "forks": set(),
    "disk_cache": set(),
    "json_lines": set(),
    "yaml_files": {"errors"},
    "checks": {"errors"},
    "text": {"errors", "forks"},
    "events": {"calls", "rounds"},
    "trace": {"checks", "errors", "rounds"},
    "generation": {"calls", "events", "rounds", "trace"},
    "batch": {"errors", "events", "generation"},
    "stopping": {"events"},
    "fusion": {"checks", "errors", "rounds"},
    "chooser": {"fusion", "rounds"},
    "chat": {"calls", "checks", "errors", "events", "rounds", "stopping", "text"},
    "member_config": {"chat", "checks", "errors"},
    "engine": {"errors", "forks", "text"},
    "backends": {"checks", "disk_cache", "engine", "errors", "forks", "member_config", "text"},
    "members": {
        *("backends", "chat", "checks", "disk_cache", "errors", "forks", "member_config", "rounds", "small_models"),
        *("stopping", "text"),
    },
    "strategies": {"chat", "checks", "chooser", "errors", "fusion", "members", "rounds", "text"},
    "config": {"backends", "checks", "errors", "member_config", "small_models", "strategies", "yaml_files"},
    "budget": {"chat", "errors", "members", "rounds", "text"},
    "member_failures": {"config", "errors", "events", "members", "rounds"},
    "decode": {
        *("budget", "chat", "chooser", "config", "errors", "events", "member_failures", "members", "rounds"),
        "strategies",
    },
    "telemetry": {"config", "errors", "events", "members"},
    "request": {
        "chat",
        "checks",
        "config",
        "decode",
        "errors",
        "events",
        "generation",
        "member_failures",
        "members",
        "rounds",
        "stopping",
        "telemetry",
    },
    "warmup": {"chat"},
    "ensemble": {
        *("batch", "chat", "checks", "config", "errors", "events", "generation", "member_config", "members"),
        *("json_lines", "request", "rounds", "warmup"),
    },
    "evaluation": {
        "checks",
        "config",
        "disk_cache",
        "ensemble",
        "errors",
        "generation",
        "json_lines",
        "rounds",
        "strategies",
        "text",
        "trace",
    },
}

# Packages of the integrations, with the packages that each may import and its framework.
MAY_SPEAK = {
    "common": (set(), set()),
    "langchain": ({"common"}, {"langchain", "langchain_core"}),
    "llama_index": ({"common"}, {"llama_index", "llama_index_instrumentation"}),
    "lm_eval": ({"common"}, {"lm_eval"}),
    "server": ({"common"}, {"fastapi", "ray", "starlette", "uvicorn"}),
    "cli": (
        {"common", "langchain", "llama_index", "lm_eval", "server"},
        {"rich", "langchain_core", "llama_index", "lm_eval"},
    ),
}
# Libraries that single files of the core may import.
OF_ONE_FILE = {
    "backends/remote/ray.py": {"ray"},
    "backends/remote/ray_actor.py": {"ray"},
    "backends/servers/connection.py": {"openai"},
}
FRAMEWORKS = {
    *("langchain", "langchain_core", "langgraph", "llama_index", "llama_index_instrumentation", "rich"),
    *("fastapi", "starlette", "uvicorn", "openai", "lm_eval", "vllm", "ray"),
}


def files(top):
    return sorted((ROOT / top).rglob("*.py"))


def module(path):
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Modules that a file imports anywhere; `from package import module` counts as `package.module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (name if is_ours(name := f"{node.module}.{a.name}") else node.module for a in node.names)


def is_ours(name):
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def roots(path):
    return {name.split(".")[0] for name in imports(path)}


def rooms(top):
    """Packages and modules directly inside a package."""
    return {path.stem for path in (ROOT / top).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}


def used_rooms(path, top):
    """Subpackages and modules of a package that a file imports; `__init__` for the package itself."""
    inside = [name.split(".") for name in imports(path) if name.split(".")[0] == top]
    return {parts[1] if len(parts) > 1 else "__init__" for parts in inside}


def room_files(top, room):
    path = ROOT / top / room
    return files(f"{top}/{room}") if path.is_dir() else [path.with_suffix(".py")]


def test_every_package_has_a_row():
    assert set(MAY_IMPORT) == rooms(CORE) - {"__init__"}
    assert set(MAY_SPEAK) == rooms(INTEGRATIONS) - {"__init__"}


def test_rows_point_downwards_only():
    below = set()
    for room, allowed in MAY_IMPORT.items():
        assert allowed <= below, room
        below.add(room)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_core_packages_import_only_allowed_packages(room):
    for path in room_files(CORE, room):
        assert used_rooms(path, CORE) <= MAY_IMPORT[room] | {room}, path
        own = OF_ONE_FILE.get(path.relative_to(ROOT / CORE).as_posix(), set())
        assert not roots(path) & ((FRAMEWORKS - own) | {INTEGRATIONS, "training", "tests", "benchmarks"}), path


@pytest.mark.parametrize("room", MAY_SPEAK)
def test_integration_packages_import_only_their_own_framework(room):
    others, spoken = MAY_SPEAK[room]
    for path in room_files(INTEGRATIONS, room):
        assert used_rooms(path, INTEGRATIONS) <= others | {room}, path
        assert roots(path) & FRAMEWORKS <= spoken, path
        assert not roots(path) & {"training", "tests", "benchmarks"}, path


def test_there_are_no_import_cycles():
    # `adafuse_core/__init__.py` imports its names lazily.
    every = {module(path): path for top in (CORE, INTEGRATIONS) for path in files(top) if module(path) != CORE}
    graph = {name: {other for other in imports(path) if other in every} - {name} for name, path in every.items()}
    assert len(graph) > 90
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("top", [CORE, INTEGRATIONS, "benchmarks", "examples"])
def test_no_file_is_longer_than_350_lines(top):
    assert files(top)
    long = {
        str(path): size for path in files(top) if (size := len(path.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long


@pytest.mark.parametrize("top", [CORE, INTEGRATIONS])
def test_the_median_function_has_at_most_ten_lines(top):
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files(top)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = [node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, kinds)]
    assert len(lengths) > 200
    assert statistics.median(lengths) <= 10


def loaded_by(statement):
    """Top-level modules that a statement loads in a new process."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import adafuse_core", {"torch", "transformers", "tokenizers"}),
        ("from adafuse_core import Ensemble; Ensemble()", {"torch", "transformers", "tokenizers"}),
        ("import adafuse_core.backends.servers.vllm", {"torch", "transformers", "openai", "httpx"}),
        ("import adafuse_integrations", {"torch", "transformers", "langchain_core", "llama_index"}),
        ("import adafuse_integrations.langchain", {"torch", "llama_index"}),
        ("import adafuse_integrations.llama_index", {"torch", "langchain_core"}),
        ("import adafuse_integrations.cli.main", {"torch", "langchain_core", "llama_index", "lm_eval", "fastapi"}),
        ("import adafuse_integrations.server.app", {"torch", "langchain_core", "llama_index", "openai"}),
    ],
)
def test_importing_loads_no_heavy_packages(statement, absent):
    assert not loaded_by(statement) & absent
