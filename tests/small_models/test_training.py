"""The training code reproduces the shipped tokenizers and templates; the packages don't import it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from adafuse_core import small_models
from training import train

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", small_models.NAMES)
def test_training_reproduces_the_shipped_tokenizer_and_template(name, tmp_path):
    train.train_member(name, tmp_path, seed=0, steps=1)
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name / file).read_bytes() == (small_models.path(name) / file).read_bytes()
    assert (tmp_path / name / "model.safetensors").exists()


@pytest.mark.parametrize("package", ["adafuse_core", "adafuse_integrations"])
def test_the_packages_do_not_import_training(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "training" for name in names), path
