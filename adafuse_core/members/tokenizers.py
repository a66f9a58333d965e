"""Loads a member's tokenizer, and checks it against its `tokenizer.json`."""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adafuse_core.errors import ModelLoadError, TokenizerMismatchError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.model_files import load_errors, tokenizer_location
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.text.tokens import Codec

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
        tokenizer = load_tokenizer(config)
        return PromptEncoder(
            name=config.label,
            tokenizer=tokenizer,
            template_variables=config.template_kwargs,
            dialect=config.tool_dialect,
        )


def load_tokenizer(config: MemberConfig) -> Any:
    """Load the fast tokenizer of a member's config.

    Raises:
        ModelLoadError: The tokenizer can't be loaded, is not a fast tokenizer, or differs from its `tokenizer.json`.
    """
    location = tokenizer_location(config)
    file = location.file("tokenizer.json")
    if config.tokenizer_class == "file" and file is None:
        raise ModelLoadError(f"{location.source!r} has no tokenizer.json", hint="set tokenizer_class='auto'")
    tokenizer = location.read_tokenizer(PreTrainedTokenizerFast if config.tokenizer_class == "file" else AutoTokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} is not a fast tokenizer",
            hint="convert it to a tokenizer.json, or use another tokenizer",
        )
    if file is not None:
        _check_against_file(tokenizer, Tokenizer.from_file(str(file)))
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    codec = Codec(tokenizer)
    lossy = [probe for probe in _PROBES if not codec.lossless("a" + probe)]  # answers never start a sequence
    if lossy:
        logger.warning("the tokenizer of %r changes some texts, such as %r", config.label, lossy[0])
    return tokenizer


def _check_against_file(tokenizer: Any, saved: Tokenizer) -> None:
    """Compare encodings: `AutoTokenizer` may choose another class than the saved tokenizer's, with other ids."""
    saved.no_padding()
    saved.no_truncation()
    for probe in _PROBES:
        expected = saved.encode(probe, add_special_tokens=False).ids
        got = tokenizer(probe, add_special_tokens=False)["input_ids"]
        if got != expected:
            raise TokenizerMismatchError(
                f"{type(tokenizer).__name__} encodes {probe!r} as {got[:12]}, its tokenizer.json as {expected[:12]}",
                hint="set MemberConfig(tokenizer_class='file') to use the tokenizer.json as it is",
            )
