"""What all tests share: no network, one thread per process, no progress bars, small models on the spot."""

from __future__ import annotations

import os
import shutil
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="adafuse-tests-")  # a user's caches are neither read nor written
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers

from tests import tiny

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

_counted: dict[str, int] = {}


def pytest_unconfigure():
    """Remove the caches of this process."""
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Random models whose tokenizers disagree: name -> folder."""
    folder = tmp_path_factory.mktemp("tiny")
    recipes = {
        "bytes": (tiny.byte_level(), tiny.llama),
        "pieces": (tiny.metaspace(), tiny.sliding_mistral),
        "characters": (tiny.characters(), tiny.gpt2),
        "crossing": (tiny.crossing(), tiny.sliding_gemma2),
        "modern": (tiny.byte_level(380, pattern=tiny.MODERN), tiny.qwen3),
    }
    return {
        name: tiny.save_tiny(folder / name, tokenizer, config, seed=seed)
        for seed, (name, (tokenizer, config)) in enumerate(recipes.items())
    }


@pytest.fixture
def count(record_property):
    """Adds what a test has shown to the sums that are printed; to have shown less than it should is a failure."""

    def add(what, number, *, at_least):
        assert number >= at_least, f"{what}: {number}, fewer than {at_least}"
        record_property(what, number)

    return add


def pytest_runtest_logreport(report):
    """Add up what tests counted with `count` or `record_property`, also over several processes."""
    if report.when == "call" and report.passed:
        for name, value in report.user_properties:
            if isinstance(value, int):
                _counted[name] = _counted.get(name, 0) + value


def pytest_terminal_summary(terminalreporter):
    """Print the sums."""
    for name, value in sorted(_counted.items()):
        terminalreporter.write_line(f"{name}: {value}")
