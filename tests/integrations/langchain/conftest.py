"""Models that make no sense: whatever holds for their answers holds for any."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adafuse_core import small_models


@pytest.fixture(scope="session")
def random_members(tmp_path_factory):
    """Folders of the small models with random weights in place of the trained ones, same tokenizers and templates."""
    folders = []
    for seed, name in enumerate(small_models.NAMES):
        folder = tmp_path_factory.mktemp("random") / name
        shutil.copytree(small_models.path(name), folder)
        config = AutoConfig.from_pretrained(folder)
        config.initializer_range = 0.3  # wide, so that greedy text varies
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        folders.append(str(folder))
    return folders
