"""Models with random weights: their time per pass is that of trained models of this shape; text and margins are not.

The greedy text of random models repeats, which would favour prompt lookup. So each model adds a random vector per
position to its last hidden state: the text then hardly repeats, and prompt lookup finds almost nothing.
"""

from __future__ import annotations

import gc
import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

import common
from adafuse_core import Ensemble
from adafuse_core.small_models import path

LLAMA, QWEN, TWIN = "llama", "qwen3", "llama-twin"
SPREADS = {"confident": 60.0, "unsure": 10.0}  # factor on the output head
WINDOW = 4096


def shapes() -> dict[str, dict[str, Any]]:
    """Shapes of the models, the same for both architectures."""
    size = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        "60m": dict(zip(size, (768, 2048, 8, 12, 4), strict=True)) | {"vocab_size": 4096},
        "8b": dict(zip(size, (4096, 14336, 32, 32, 8), strict=True)) | {"vocab_size": 128_256},
        "tiny": dict(zip(size, (64, 128, 2, 4, 2), strict=True)) | {"vocab_size": 4096},
    }


def write_configs(folder: Path, shape: dict[str, Any]) -> None:
    """Write folders with a tokenizer and a config, without weights."""
    ends = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    common_part = {**shape, **ends, "max_position_embeddings": WINDOW, "tie_word_embeddings": False}
    head = shape["hidden_size"] // shape["num_attention_heads"]
    for name, config, tokenizer in (
        (LLAMA, LlamaConfig(**common_part), "aspen"),
        (TWIN, LlamaConfig(**common_part), "aspen"),
        (QWEN, Qwen3Config(**common_part, head_dim=head), "birch"),
    ):
        config.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(path(tokenizer)).save_pretrained(folder / name)


class RandomModels:
    """Makes models on the target device, and ensembles of them.

    Args:
        device: Device in PyTorch's notation.
        dtype: Data type of the weights.
        folder: Receives the models' configs and tokenizers.
        shape: One of `shapes()`.
    """

    def __init__(self, device: str, dtype: str, folder: Path, shape: dict[str, Any]) -> None:
        self.device, self.dtype, self.folder = device, dtype, folder
        write_configs(folder, shape)

    def sizes(self, bandwidth: float) -> dict[str, Any]:
        """Number of parameters per model, and the minimum time to read the weights once on the GPU."""
        figures: dict[str, Any] = {"parameters": {}}
        for name in (LLAMA, QWEN):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.folder / name))
            read = model.num_parameters() - model.get_input_embeddings().weight.numel()
            figures["parameters"][name] = model.num_parameters()
            if self.device.startswith("cuda"):
                item = getattr(torch, self.dtype).itemsize
                figures.setdefault("weight_read_floor_ms", {})[name] = read * item / bandwidth / 1e9
        return figures

    def tokenizer(self, name: str) -> Any:
        """The tokenizer of a model."""
        return AutoTokenizer.from_pretrained(self.folder / name)

    def prompt(self, tokens: int) -> str:
        """Plain words, about `tokens` tokens of the first model."""
        tokenizer = self.tokenizer(LLAMA)
        words = [word for word in Path(__file__).read_text(encoding="utf-8").split() if word.isalpha()]
        rng = random.Random(tokens)
        text = " ".join(rng.choices(words, k=tokens))
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return text[: offsets[tokens - 1][1]]

    @contextmanager
    def ensemble(self, names: Sequence[str], spread: float, mode: str, branches: int) -> Iterator[Ensemble]:
        """An ensemble of random models, freed afterwards."""
        of_ensemble, of_member = common.MODES[mode]
        members = [
            {
                "model": str(self.folder / name),
                "device": self.device,
                "dtype": self.dtype,
                **common.FORGETFUL,
                **of_member,
            }
            for name in names
        ]

        class Maker:
            from_pretrained = staticmethod(lambda files, **_: self.model(Path(files).name, spread))

        with common.loading(mode), mock.patch("transformers.AutoModelForCausalLM", Maker):
            ensemble = Ensemble({"members": members, "branches": branches, **of_ensemble, **common.TIMED}).load()
        try:
            yield ensemble
        finally:
            ensemble.close()
            del ensemble
            if self.device.startswith("cuda"):
                gc.collect()
                torch.cuda.empty_cache()

    def model(self, name: str, spread: float) -> Any:
        """A model with random weights, equal for equal architectures, that writes only plain words."""
        config = AutoConfig.from_pretrained(self.folder / name)
        torch.manual_seed(zlib.crc32(config.model_type.encode()))
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype)).eval()
        vocab = AutoTokenizer.from_pretrained(self.folder / name).get_vocab()
        plain = [
            index for token, index in vocab.items() if token.lstrip("Ġ▁").isascii() and token.lstrip("Ġ▁").isalpha()
        ]
        head = model.get_output_embeddings().weight
        with torch.no_grad():
            scale = torch.zeros(head.shape[0], 1, dtype=head.dtype, device=head.device)
            scale[plain] = spread
            head.mul_(scale)
        add_positions(model)
        return model


def add_positions(model: Any) -> None:
    """Add a random vector per position to the last hidden states, so that the text doesn't repeat."""
    weight = model.get_output_embeddings().weight
    table = torch.randn(WINDOW, weight.shape[1], dtype=weight.dtype, device=weight.device)
    seen: list[torch.Tensor] = []

    def note(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen[:] = [options["position_ids"] if "position_ids" in options else arguments[1]]

    model.model.rotary_emb.register_forward_pre_hook(note, with_kwargs=True)
    model.model.norm.register_forward_hook(lambda _, __, hidden: hidden + table[seen[0]])
