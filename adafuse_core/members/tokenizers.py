"""Loads a member's tokenizer, and checks it against its `tokenizer.json`."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adafuse_core import disk_cache
from adafuse_core.errors import ModelLoadError, TokenizerMismatchError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.model_files import load_errors, tokenizer_location
from adafuse_core.members.prompts import PromptEncoder

logger = logging.getLogger(__name__)

_PROBES = (
    "Hello world",
    "Hello  world,   again",
    "line one\nline two\r\n\n\tindented\n    four",
    " leading and trailing ",
    "1984 + 3.14 = 1987.14",
    "don't (stop) [now] {ok} <a href='x'> a < b",
    "Grüße aus Zürich, naïve façade, ½ €",
    "日本語のテキスト。中文 한국어 ไทย",
    "👩‍👩‍👧 🇩🇪 😀!",
)


def load_encoder(config: MemberConfig) -> PromptEncoder:
    """Load the prompt encoder of a member, without its weights. Errors are those of `load_tokenizer`."""
    with load_errors(config):
        encoder = PromptEncoder(
            name=config.label,
            tokenizer=load_tokenizer(config),
            template_variables=config.template_kwargs,
            dialect=config.tool_dialect,
        )
    lossy = [probe for probe in _PROBES if not encoder.codec.lossless("a" + probe)]  # answers never start a sequence
    if lossy:
        logger.warning("the tokenizer of %r changes some texts, such as %r", config.label, lossy[0])
    return encoder


def load_tokenizer(config: MemberConfig) -> Any:
    """Load the fast tokenizer of a member's config.

    Raises:
        ModelLoadError: The tokenizer can't be loaded, is not a fast tokenizer, or differs from its `tokenizer.json`.
    """
    location = tokenizer_location(config)
    file = location.tokenizer_file()
    if config.tokenizer_class == "file" and file is None:
        raise ModelLoadError(f"{location.source!r} has no tokenizer.json", hint="set tokenizer_class='auto'")
    tokenizer = location.read_tokenizer(PreTrainedTokenizerFast if config.tokenizer_class == "file" else AutoTokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} is not a fast tokenizer",
            hint="convert it to a tokenizer.json, or use another tokenizer",
        )
    if file is not None:
        _check_against_file(tokenizer, file)
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    return tokenizer


def _check_against_file(tokenizer: Any, file: Path) -> None:
    """Compare encodings: `AutoTokenizer` may choose another class than the saved tokenizer's, with other ids."""
    for probe, expected in zip(_PROBES, _saved_encodings(file), strict=True):
        got = tokenizer(probe, add_special_tokens=False)["input_ids"]
        if got != expected:
            raise TokenizerMismatchError(
                f"{type(tokenizer).__name__} encodes {probe!r} as {got[:12]}, its tokenizer.json as {expected[:12]}",
                hint="set MemberConfig(tokenizer_class='file') to use the tokenizer.json as it is",
            )


def _saved_encodings(file: Path) -> list[list[int]]:
    """The ids of the probes in a `tokenizer.json`, which takes seconds to load; so they are kept on disk."""
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    facts = {"file": content, "probes": list(_PROBES), "tokenizers": tokenizers.__version__}
    if (known := disk_cache.read_json("tokenizer", facts)) is not None:
        return list(known["ids"])
    saved = tokenizers.Tokenizer.from_file(str(file))
    saved.no_padding()
    saved.no_truncation()
    ids = [saved.encode(probe, add_special_tokens=False).ids for probe in _PROBES]
    disk_cache.write_json("tokenizer", facts, {"ids": ids})
    return ids
