"""Writes a tiny Llama as a GGUF file, as converters do: weights, architecture, tokenizer and chat template in one."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedTokenizerFast

from tests import tiny

WIDTH, LAYERS, HEADS, WINDOW = 64, 2, 4, 512
NORMAL, CONTROL = 1, 3  # kinds of tokens
QUANTIZED = gguf.GGMLQuantizationType.Q8_0


def write_gguf(
    path: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    seed: int = 0,
    weights: gguf.GGMLQuantizationType = QUANTIZED,
    left_out: str = "",
    pieces: int = 1,
) -> Path:
    """A byte-level model with random weights, by default quantized in blocks of eight bits.

    Args:
        path: The file.
        tokenizer: Its tokenizer.
        seed: Seed of the weights.
        weights: Type of the matrices; norms are in single precision.
        left_out: A matrix that is missing, as in a damaged file.
        pieces: The header says that the model has so many files.
    """
    tokenizer = tokenizer or tiny.byte_level()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokenizer))
    _add_tokenizer(writer, tokenizer)
    if pieces > 1:
        writer.add_uint16("split.count", pieces)
    matrices = _matrices(len(tokenizer), np.random.default_rng(seed))
    _add_weights(writer, {name: values for name, values in matrices.items() if name != left_out}, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    merges = tokenizer.backend_tokenizer.to_str()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges(_merges(merges))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _merges(state: str) -> list[str]:
    import json

    merges = json.loads(state)["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _matrices(vocab: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    square, wide = (WIDTH, WIDTH), (2 * WIDTH, WIDTH)
    shapes = {"token_embd": (vocab, WIDTH), "output": (vocab, WIDTH)}
    for layer in range(LAYERS):
        parts = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
        parts |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    return {name: draw.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()}


def _add_weights(writer: gguf.GGUFWriter, matrices: dict[str, np.ndarray], kind: gguf.GGMLQuantizationType) -> None:
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    for name, values in matrices.items():
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
