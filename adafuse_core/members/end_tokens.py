"""The tokens that end a member's answers, read without loading weights."""

from __future__ import annotations

import contextlib
from typing import Any

import jinja2
from transformers import GenerationConfig

from adafuse_core.backends.base import ModelFiles
from adafuse_core.errors import ModelLoadError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig


def end_ids(config: MemberConfig, files: ModelFiles) -> frozenset[int]:
    """Ids of all end tokens: from model, tokenizer, chat template and `MemberConfig.end_tokens`.

    Raises:
        ModelLoadError: No end token is known, or one of `MemberConfig.end_tokens` is not in the vocabulary.
    """
    tokenizer = files.tokenizer
    declared = [tokenizer.eos_token_id]
    for source_of_ends in (files.architecture.get_text_config(), _generation_config(config, files)):
        declared.append(getattr(source_of_ends, "eos_token_id", None))
    ends: set[int] = set()
    for value in declared:
        ends |= set(value) if isinstance(value, list | tuple) else {value} - {None}
    if (turn_end := _template_end(tokenizer)) is not None:
        ends.add(turn_end)
    for token in config.end_tokens:
        index = tokenizer.backend_tokenizer.token_to_id(token)
        if index is None:
            raise ModelLoadError(
                f"end token {token!r} is not in the vocabulary",
                hint="write each end token as it stands in the tokenizer's vocabulary",
            )
        ends.add(index)
    if not ends:
        raise UnsupportedModelError(
            "neither model nor tokenizer declares an end token",
            hint="name one with MemberConfig(end_tokens=[...])",
        )
    return frozenset(ends)


def _generation_config(config: MemberConfig, files: ModelFiles) -> Any:
    """The `generation_config` that transformers gives to the loaded model."""
    if (given := config.model_kwargs.get("generation_config")) is not None:
        return given
    return files.location.read_generation_config() or GenerationConfig.from_model_config(files.architecture)


def _template_end(tokenizer: Any) -> int | None:
    """The control token that the chat template writes after an assistant message."""
    if not tokenizer.chat_template:
        return None
    answer = "adafuse-answer"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    with contextlib.suppress(jinja2.TemplateError, TypeError, ValueError, KeyError):
        after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(answer)[2]
        special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        first = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"][:1]
        return first[0] if first and first[0] in special else None
    return None
