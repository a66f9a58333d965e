"""Models given with `--models`, in place of `RandomModels`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import common
from adafuse_core import Ensemble
from free_text import PROSE


class GivenModels:
    """Loads models of the user, and ensembles of them. The interface is that of `RandomModels`.

    Args:
        device: Device in PyTorch's notation.
        dtype: Data type of the weights, or "auto" for that of the files.
        models: Folders, names on the Hugging Face Hub, or `small:NAME`.
    """

    def __init__(self, device: str, dtype: str, models: Sequence[str]) -> None:
        self.device, self.dtype, self.models = device, dtype, tuple(models)

    def sizes(self, _: float) -> dict[str, Any]:
        """Number of parameters per model."""
        figures = {}
        for name in self.models:
            config = AutoConfig.from_pretrained(common.folder_of(name))
            with torch.device("meta"):
                figures[name] = AutoModelForCausalLM.from_config(config).num_parameters()
        return {"parameters": figures}

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of a model."""
        return AutoTokenizer.from_pretrained(common.folder_of(name))

    def model(self, name: str, _: float) -> Any:
        """A model outside of the ensemble."""
        folder = common.folder_of(name)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype, device_map=self.device).eval()

    def prompt(self, tokens: int) -> str:
        """Beginnings of prose, joined and repeated to about `tokens` tokens of the first model."""
        return prose(self.tokenizer(self.models[0]), tokens)

    @contextmanager
    def ensemble(self, names: Sequence[str], _: float, mode: str, branches: int) -> Iterator[Ensemble]:
        """An ensemble of the models. They stay loaded for the next one, but for those without a cache."""
        ensemble = common.ensemble(names, self.device, self.dtype, mode, branches=branches, **common.TIMED)
        try:
            yield ensemble
        finally:
            if mode == "uncached":
                ensemble.close()


def prose(tokenizer: Any, tokens: int) -> str:
    """Beginnings of prose, joined and repeated to about this many tokens, without a blank at the end."""
    text = " ".join(itertools.chain.from_iterable(itertools.repeat(PROSE, 1 + tokens // 100)))
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[tokens][0]].rstrip()
