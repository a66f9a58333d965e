"""Loads a member from its config: tokenizer, config files and backend, checked against each other."""

from __future__ import annotations

import logging
import time
from typing import Any

from adafuse_core.backends import opener
from adafuse_core.backends.base import ModelFiles, Shared
from adafuse_core.errors import TokenizerMismatchError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.context_windows import context_window
from adafuse_core.members.end_tokens import end_ids
from adafuse_core.members.member import ModelMember
from adafuse_core.members.model_files import load_errors, member_files, read_architecture
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.members.tokenizers import load_encoder

logger = logging.getLogger(__name__)


def load_member(
    config: MemberConfig, encoder: PromptEncoder | None = None, shared: Shared = lambda _, make: make()
) -> ModelMember:
    """Load the model and, unless an encoder is given, the tokenizer. A failed check raises `ModelLoadError`."""
    started = time.monotonic()
    logger.info("member %r: loading %s", config.label, config.model)
    encoder = encoder or load_encoder(config)
    with load_errors(config):
        files = read_files(config, encoder.tokenizer)
        ends = end_ids(config, files)
        backend = opener(config).open_backend(config, files, shared)
        abilities = backend.abilities()
        try:
            _check_vocabulary(abilities.vocab_size, encoder.tokenizer, ends)
        except TokenizerMismatchError:
            backend.close()
            raise
        seconds = time.monotonic() - started
        logger.info("member %r: ready after %.1f s (%s, %s)", config.label, seconds, abilities.device, abilities.dtype)
        return ModelMember(
            name=config.label,
            weight=config.weight,
            prompt_reader=encoder,
            backend=backend,
            end_ids=ends,
            context_window=context_window(config, files.architecture),
        )


def read_files(config: MemberConfig, tokenizer: Any = None) -> ModelFiles:
    """What is known of a member's model without its weights.

    Raises:
        UnsupportedModelError: It is an encoder-decoder model.
    """
    files = member_files(config)
    architecture = read_architecture(config, files)
    if architecture.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{config.model!r} is an encoder-decoder model ({architecture.model_type})",
            hint="members must be causal (decoder-only) language models",
        )
    return ModelFiles(
        location=files.model,
        adapter=files.adapter,
        architecture=architecture,
        tokenizer=tokenizer,
        reread=read_files,
    )


def _check_vocabulary(size: int, tokenizer: Any, ends: frozenset[int]) -> None:
    # Added tokens may exceed the size: text-only models share tokenizers with tokens for images.
    own = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if own > size or max(ends) >= size:
        raise TokenizerMismatchError(
            f"the tokenizer has {own} tokens, the model knows {size}"
            if own > size
            else f"end token {max(ends)} is beyond the {size} tokens that the model knows",
            hint="set tokenizer to the one that belongs to the model",
        )
