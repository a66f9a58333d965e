"""Tokenizers, chat templates and architectures of the two models, before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training.curriculum import Member

END_OF_TEXT, TURN_START, TURN_END, BIRCH_START = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"
SPECIAL = {
    "aspen": (END_OF_TEXT, TURN_START, TURN_END),
    "birch": (END_OF_TEXT, TURN_START, TURN_END, BIRCH_START),
}
TOOL_TAGS = ("<tool_call>", "</tool_call>")
VOCAB_SIZES = {"aspen": 1536, "birch": 2048}
MAX_LENGTH = 2048
Shape = Mapping[str, int]
SHAPES: dict[Member, Shape] = {
    "aspen": {
        "hidden_size": 160,
        "intermediate_size": 448,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
    "birch": {
        "hidden_size": 160,
        "intermediate_size": 480,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    },
}
TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
TEMPLATE_WORDS = {
    "aspen": {"START": "", "TOOLS": "Tools:", "ITEM": ""},
    "birch": {"START": BIRCH_START, "TOOLS": "Functions:", "ITEM": "- "},
}


def chat_template(member: Member) -> str:
    """The member's chat template: the shared template with the member's words filled in."""
    text = TEMPLATE.strip()
    for word, value in TEMPLATE_WORDS[member].items():
        text = text.replace(f"@{word}@", value)
    return text


def train_tokenizer(member: Member, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the member's tokenizer: byte-level BPE for aspen, Metaspace BPE with byte fallback for birch."""
    tokenizer = {"aspen": _byte_level, "birch": _metaspace}[member](texts)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL[member]])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TOOL_TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BIRCH_START if member == "birch" else None,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        chat_template=chat_template(member),
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )


def _byte_level(texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZES["aspen"] - len(TOOL_TAGS),
        special_tokens=list(SPECIAL["aspen"]),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _metaspace(texts: Iterable[str]) -> Tokenizer:
    """Train line by line, so that newlines, like all rare characters, are encoded by byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True),
            pre_tokenizers.Punctuation(behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZES["birch"] - len(TOOL_TAGS),
        special_tokens=[*SPECIAL["birch"], *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    return _with_plain_bytes(tokenizer)


def _with_plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Keep the byte tokens in the vocabulary, but don't match their names (such as `<0x0A>`) in text."""
    bare = Tokenizer(tokenizer.model)
    bare.pre_tokenizer, bare.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    return bare


def new_model(member: Member, tokenizer: PreTrainedTokenizerFast, shape: Shape | None = None) -> PreTrainedModel:
    """The member's model with random weights.

    Args:
        member: Whose architecture.
        tokenizer: Defines the vocabulary and the special tokens.
        shape: Sizes of the layers. Default: those of the shipped model.
    """
    end, pad = tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": pad,
        "head_dim": 32,
        **(shape or SHAPES[member]),
    }
    model = LlamaForCausalLM(LlamaConfig(**common)) if member == "aspen" else Qwen3ForCausalLM(Qwen3Config(**common))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=[end, pad], pad_token_id=pad, do_sample=False
    )
    return model
