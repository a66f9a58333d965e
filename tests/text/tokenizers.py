"""More tokenizers, made by hand to be difficult: each breaks what one could believe about the others."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny


def sentencepiece(*, legacy: bool = False, scheme: str = "first", control: bool = False) -> PreTrainedTokenizerFast:
    """The ways in which vocabularies of the SentencePiece kind are stored, with an opening token.

    Args:
        legacy: A normalizer puts the mark in front of every section, also where one stands already.
        scheme: Of the pre-tokenizer otherwise.
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
    """Byte-level tokens of composed characters, and words that were added to the vocabulary."""
    fast = tiny.byte_level(380, pattern=tiny.MODERN)
    fast.backend_tokenizer.normalizer = normalizers.NFC()
    fast.backend_tokenizer.add_tokens([*added])
    return fast


def decomposed() -> PreTrainedTokenizerFast:
    """Byte-level tokens, accents apart from their letters: a stop after an accent is one piece with it."""
    fast = tiny.byte_level()
    fast.backend_tokenizer.normalizer = normalizers.NFD()
    return fast


def looking_back() -> PreTrainedTokenizerFast:
    """A word is split in another way after the word `the`, however far back that began."""
    return tiny.byte_level(pattern=r"(?<=\bthe\s+)\p{L}| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def phrases() -> PreTrainedTokenizerFast:
    """SentencePiece-like, with tokens of more than one word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(tiny.CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def unigram(*, split: bool) -> PreTrainedTokenizerFast:
    """The likeliest pieces of a whole text at once, or of each word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=split)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=split)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(tiny.CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    """Pieces of words and nothing between them: blanks are lost."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(tiny.CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]")
