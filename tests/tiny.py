"""Tiny models with hand-made tokenizers, built on the spot: they disagree about spaces, newlines, digits and bytes.

Weights are random but wide, so that greedy text varies and margins lie on both sides of any tau.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps.",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n",
    "In 1984 there were 3.14 and 2,718 reasons; 42 of them were good.",
    "| name | value |\n|------|-------|\n| a < b | 17 |\n",
    "Grüße aus Zürich! Ça va? Mañana será otro día.",
    "日本語のテキストです。世界は広い。中文也可以。",
    "Smile 😀 and wave 👋🏽, family 👩‍👩‍👧 and flags 🇩🇪.",
    "Question: what is it?\nAnswer: it is what it is.\n",
] * 4

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
)


def byte_level(vocab: int = 400, *, pattern: str | None = None, chat: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `pattern` splits the text first (the newer vocabularies' way)."""
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML if chat else None
    return fast


# In the manner of recent vocabularies: punctuation and the newlines after it are one piece, digits come in threes.
MODERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def metaspace(vocab: int = 450, *, chat: bool = True) -> PreTrainedTokenizerFast:
    """BPE on words marked with `▁`, with byte fallback (the SentencePiece way)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    common = "".join(map(chr, range(128))) + "üßé日本世"  # all other characters fall back to bytes
    tokenizer.train_from_iterator(["".join(c for c in text if c in common) for text in CORPUS], trainer)
    plain = Tokenizer.from_str(_bytes_not_special(tokenizer.to_str()))
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = BRACKETS if chat else None
    return fast


def _bytes_not_special(text: str) -> str:
    """The trainer lists the byte tokens as added ones; in real vocabularies they are ordinary."""
    import json

    state = json.loads(text)
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(state)


def characters() -> PreTrainedTokenizerFast:
    """One token per byte and no merges at all."""
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{{ 'assistant: ' }}"
    )
    return fast


def crossing() -> PreTrainedTokenizerFast:
    """BPE without any pre-tokenizer: tokens run across spaces and newlines as they please."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"
    return fast


_SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}


def llama(vocab: int) -> PretrainedConfig:
    return LlamaConfig(vocab_size=vocab, **_SHAPE)


def long_llama(vocab: int) -> PretrainedConfig:
    return LlamaConfig(vocab_size=vocab, **_SHAPE | {"max_position_embeddings": 4096})


def qwen2(vocab: int) -> PretrainedConfig:
    return Qwen2Config(vocab_size=vocab, **_SHAPE)


def qwen3(vocab: int) -> PretrainedConfig:
    return Qwen3Config(vocab_size=vocab, head_dim=12, **_SHAPE)


def sliding_mistral(vocab: int) -> PretrainedConfig:
    return MistralConfig(vocab_size=vocab, sliding_window=16, **_SHAPE)


def long_sliding_mistral(vocab: int) -> PretrainedConfig:
    return MistralConfig(vocab_size=vocab, sliding_window=16, **_SHAPE | {"max_position_embeddings": 4096})


def mistral(vocab: int) -> PretrainedConfig:
    return MistralConfig(vocab_size=vocab, sliding_window=256, **_SHAPE)


def sliding_gemma2(vocab: int) -> PretrainedConfig:
    return Gemma2Config(vocab_size=vocab, sliding_window=16, head_dim=12, query_pre_attn_scalar=12, **_SHAPE)


def sliding_gemma3(vocab: int) -> PretrainedConfig:
    layers = ["sliding_attention", "full_attention"]
    options = {"sliding_window": 16, "head_dim": 12, "query_pre_attn_scalar": 12, "layer_types": layers}
    return Gemma3TextConfig(vocab_size=vocab, **options, **_SHAPE)


def phi3(vocab: int) -> PretrainedConfig:
    return Phi3Config(vocab_size=vocab, pad_token_id=0, **_SHAPE)


def olmo2(vocab: int) -> PretrainedConfig:
    return Olmo2Config(vocab_size=vocab, **_SHAPE)


def mixtral(vocab: int) -> PretrainedConfig:
    return MixtralConfig(vocab_size=vocab, num_local_experts=4, sliding_window=None, **_SHAPE)


def sliding_gpt_oss(vocab: int) -> PretrainedConfig:
    return GptOssConfig(vocab_size=vocab, num_local_experts=4, head_dim=12, sliding_window=16, **_SHAPE)


def lfm2(vocab: int) -> PretrainedConfig:
    return Lfm2Config(vocab_size=vocab, layer_types=["conv", "full_attention"], **_SHAPE)


def qwen3_next(vocab: int) -> PretrainedConfig:
    return Qwen3NextConfig(
        vocab_size=vocab,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        decoder_sparse_step=1,
        head_dim=16,
        **_SHAPE,
    )


def falcon_h1(vocab: int) -> PretrainedConfig:
    return FalconH1Config(vocab_size=vocab, mamba_d_ssm=64, mamba_n_heads=4, **_SHAPE)


def gpt2(vocab: int) -> PretrainedConfig:
    return GPT2Config(vocab_size=vocab, n_embd=48, n_layer=2, n_head=4, n_positions=512, initializer_range=0.3)


def save_tiny(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: Callable[[int], PretrainedConfig] = llama,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Build a model for a tokenizer and save both to a folder."""
    torch.manual_seed(seed)
    settings = config(len(tokenizer))
    settings.eos_token_id = tokenizer.eos_token_id
    settings.bos_token_id = tokenizer.bos_token_id
    settings.pad_token_id = None
    AutoModelForCausalLM.from_config(settings, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
