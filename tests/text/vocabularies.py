"""Two widely used vocabularies, from files of the package `mistral-common`.

The Makefile installs the package into a separate folder that is not on the import path: transformers loads some model
folders in another way if it can import the package.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

FOLDER = Path(sys.prefix) / "vocabularies" / "mistral_common" / "data"


@functools.cache
def tekken() -> PreTrainedTokenizerFast:
    """131,072 byte-level tokens; a pre-token of punctuation includes the newlines after it."""
    source = json.loads((FOLDER / "tekken_240911.json").read_text(encoding="utf-8"))
    config = source["config"]
    size = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in source["vocab"][:size]}
    letters = bytes_to_unicode()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_merges(vocab, vocab), ignore_merges=True))
    split = pre_tokenizers.Split(Regex(config["pattern"]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer)


@functools.cache
def v3() -> PreTrainedTokenizerFast:
    """32,768 SentencePiece tokens with byte fallback."""
    source = (FOLDER / "mistral_instruct_tokenizer_240323.model.v3").read_bytes()
    entries = [dict(_fields(value)) for number, value in _fields(source) if number == 1]
    pieces = [(entry[1].decode(), struct.unpack("<f", entry[2])[0], entry.get(3, 1)) for entry in entries]
    vocab = {text: index for index, (text, _, _) in enumerate(pieces)}
    ranks = {text: -score for text, score, kind in pieces if kind == 1}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(vocab, ranks), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finish(tokenizer)


def _finish(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    control = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    opening = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", opening)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    return fast


def _merges(vocab: dict[str, int], ranks: dict[str, float]) -> list[tuple[str, str]]:
    """All pairs of tokens that merge into another token, best result first."""
    merges = []
    for token, rank in ranks.items():
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += sorted((rank, vocab[a], vocab[b], a, b) for a, b in halves if a in vocab and b in vocab)
    merges.sort(key=lambda merge: merge[0])
    return [(a, b) for *_, a, b in merges]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message, without its schema."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        size = {1: 8, 5: 4}.get(kind) or number()
        yield key >> 3, data[at : at + size]
        at += size
