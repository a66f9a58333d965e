"""Hand-made difficult tokenizers: each one breaks an assumption that the others support."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny

JSON = list('{}[]":,0123456789')  # characters that a vocabulary needs for JSON


def sentencepiece(*, legacy: bool = False, scheme: str = "first", control: bool = False) -> PreTrainedTokenizerFast:
    """A SentencePiece tokenizer with a BOS token, stored in one of the usual forms.

    Args:
        legacy: A normalizer adds the mark before every section, even if there is one already.
        scheme: `prepend_scheme` of the pre-tokenizer if not `legacy`.
        control: Whether `[INST]` and `[/INST]` are control tokens.
    """
    state = json.loads(tiny.metaspace().backend_tokenizer.to_str())
    if legacy:
        marks = [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]
        state["normalizer"] = {"type": "Sequence", "normalizers": marks}
        state["pre_tokenizer"] = None
    else:
        state["pre_tokenizer"]["prepend_scheme"] = scheme
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if control:
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("[INST]", "[/INST]")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = tiny.BRACKETS
    return fast


def composed(*added: AddedToken) -> PreTrainedTokenizerFast:
    """Byte-level, with NFC normalization and added tokens."""
    fast = tiny.byte_level(380, pattern=tiny.MODERN)
    fast.backend_tokenizer.normalizer = normalizers.NFC()
    fast.backend_tokenizer.add_tokens([*added])
    return fast


def decomposed() -> PreTrainedTokenizerFast:
    """Byte-level, with NFD normalization: an accent and the full stop after it are one pre-token."""
    fast = tiny.byte_level()
    fast.backend_tokenizer.normalizer = normalizers.NFD()
    return fast


def lookbehind() -> PreTrainedTokenizerFast:
    """A word is split in another way after the word `the`, at any distance."""
    return tiny.byte_level(pattern=r"(?<=\bthe\s+)\p{L}| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def phrases() -> PreTrainedTokenizerFast:
    """SentencePiece-like, with tokens that span words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "</s>"], initial_alphabet=JSON, show_progress=False
    )
    tokenizer.train_from_iterator(tiny.CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def unigram(*, split: bool) -> PreTrainedTokenizerFast:
    """A unigram model, applied to the whole text or to each word.

    The trainer finds its pieces in another order each time, with slightly other scores, so they are sorted and rounded.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=split)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=split)
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=JSON,
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny.CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    pieces = [piece for piece in state["model"]["vocab"] if piece[0] not in ("<unk>", "</s>")]
    state["model"]["vocab"] = [
        ["<unk>", 0.0],
        ["</s>", 0.0],
        *sorted([text, round(value, 1)] for text, value in pieces),
    ]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    """WordPiece: loses whitespace.

    Its pieces are those of a BPE tokenizer: a WordPiece trainer finds others each time, since its ties are random.
    """
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator(
        tiny.CORPUS, trainers.BpeTrainer(vocab_size=200, initial_alphabet=JSON, show_progress=False)
    )
    found = sorted(pieces.get_vocab())
    vocabulary = ["[UNK]", "[SEP]", *found, *(f"##{piece}" for piece in found)]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]")
