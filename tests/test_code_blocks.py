"""Every code block of the README and the documentation: Python runs, commands parse, data is valid.

Blocks name models that would be downloaded; the small models take their place. `tests/integrations/langchain` runs the
other blocks of the page on LangChain.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from itertools import cycle
from pathlib import Path

import llama_index.core
import pytest
import yaml
from llama_index.core import Settings

from adafuse_core import EnsembleConfig, small_models
from adafuse_integrations.cli.main import parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
_BLOCK = re.compile(r"^```(\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MODEL = re.compile(r'"(?:(?:meta-llama|mistralai|Qwen|NousResearch)/[^"]+|[AB])"')
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def blocks(*languages):
    """Code blocks in these languages: page, line and text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _BLOCK.finditer(text):
            if found[1] in languages:
                yield page, text[: found.start()].count("\n") + 1, found[2]


def cases(*languages):
    return [pytest.param(*block, id=f"{block[0].name}:{block[1]}") for block in blocks(*languages)]


COMMANDS = [
    pytest.param(line, id=f"{page.name}:{number}: {line[:30]}")
    for page, number, text in blocks("sh", "bash")
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]

# What the blocks of a page need, and what is different where nothing may be downloaded.
BEFORE = {
    "README.md": """
from pydantic import BaseModel
from langchain_core.tools import tool
from llama_index.core import SummaryIndex
from llama_index.core.schema import TextNode
class Treaty(BaseModel):
    signed: bool
@tool
def get_weather(city: str) -> str:
    "Weather of a city."
    return "rainy"
@tool
def calculator(expression: str) -> str:
    "Result of an expression."
    return "84"
index = SummaryIndex([TextNode(text="Peru has mountains.")])
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
""",
    "configuration.md": "",
    "evaluation.md": """
from pathlib import Path
Path("data").mkdir()
Path("data/nq.jsonl").write_text('{"question": "What is the capital of Peru?", "answers": ["Lima"]}')
""",
    "llama_index.md": "",
    "lm_eval.md": "",
    "ray.md": "",
    "langchain.md": "",
    "server.md": "",
    "traces.md": "",
    "vllm.md": """
from adafuse_core.small_models import path
from tests.backends.vllm_server import Running, TinyVLLM
served = [Running(TinyVLLM(path(name), window=1024)) for name in ("aspen", "birch")]
instead = {f"http://127.0.0.1:{port}/v1": server.url for port, server in zip((8001, 8002), served)}
def after():
    for server in served:
        server.stop()
""",
}
INSTEAD = {
    '{"type": "function", "function": {"name": "get_weather", "parameters": {...}}}': (
        '{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}'
    ),
    '"cuda:0"': '"cpu"',
    '"cuda:1"': '"cpu"',
}
NOT_RUN = {  # by a text of theirs; imports are checked
    "adapters/law": "these adapters do not exist",
    "FastAPI": "its framework is not a dependency",
    "127.0.0.1:8000": "no server runs there; tests/integrations/server has such clients",
    "end_actor": "there is no cluster",
    '"arc_easy"': "its data sets would be downloaded",
}


def offline(code):
    """A block that runs without network access."""
    for text, other in INSTEAD.items():
        code = code.replace(text, other)
    names = cycle(small_models.NAMES)
    return _MODEL.sub(lambda _: f'"small:{next(names)}"', code)


def imported(code):
    """Module and name of each import from this project."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("adafuse"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize(("page", "line", "code"), cases("python", "py"))
def test_python_compiles_and_imports_what_exists(page, line, code):
    compile(code, str(page), "exec", dont_inherit=True)
    for module, name in imported(code):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("page", BEFORE)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for owner, name in ((Settings, "_llm"), (llama_index.core, "global_tokenizer")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # blocks set them; restored after the test
    names = {"__name__": "page"}
    exec(BEFORE[page], names)
    run = 0
    for path, line, code in blocks("python"):
        if path.name != page or any(text in code for text in NOT_RUN):
            continue
        if page != "langchain.md" or "meta-llama" in code:
            for text, other in names.get("instead", {}).items():
                code = code.replace(text, other)
            exec(compile(offline(code), f"{page}:{line}", "exec", dont_inherit=True), names)
            run += 1
    names.get("after", lambda: None)()
    assert run or page in ("lm_eval.md", "ray.md")


def test_every_page_with_python_is_run():
    assert {page.name for page, _, _ in blocks("python")} == set(BEFORE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist_with_their_options(line):
    words = shlex.split(line.replace("$'", "'"), comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    words = [word for word in words if word != "..." and not re.match(r"[A-Z_]+=", word)]
    match words:
        case ["adafuse", *arguments]:
            _, unknown = parser().parse_known_args(arguments)
            assert not unknown
        case ["pip", "install", *packages]:
            for package in packages:
                for extra in re.findall(r"\[(.+)\]", package):
                    assert set(extra.split(",")) <= set(EXTRAS), package
        case ["make", *targets]:
            assert set(targets) <= set(TARGETS)
        case ["docker", *_]:
            pass  # test_docker.py
        case ["ray", "start" | "status" | "job", *_] | ["serve", "deploy", _]:
            pass  # a cluster is not started
        case ["vllm", "serve", _, "--port", _]:
            pass  # another package
        case ["kubectl", "apply", "-f", manifest]:
            assert (ROOT / manifest).is_file()
        case ["kubectl", "create", "secret", *_]:
            pass
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case _:
            raise AssertionError(f"unknown command: {line}")


@pytest.mark.parametrize(("page", "line", "text"), cases("yaml"))
def test_yaml_is_a_config(page, line, text):
    value = yaml.safe_load(text)
    assert value
    if "members" in value:
        EnsembleConfig.from_any(value)


@pytest.mark.parametrize(("page", "line", "text"), cases("json"))
def test_json_is_valid(page, line, text):
    assert json.loads(text)


def test_blocks_have_a_known_language():
    known = {"python", "py", "sh", "bash", "yaml", "json"}
    assert {found[1] for page in PAGES for found in _BLOCK.finditer(page.read_text(encoding="utf-8"))} <= known
