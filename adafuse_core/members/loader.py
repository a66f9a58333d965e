"""Loads a member from its config: tokenizer, what its files declare, and a backend; all must fit together."""

from __future__ import annotations

from typing import Any

from adafuse_core.backends import opener
from adafuse_core.backends.base import ModelFiles, Shared
from adafuse_core.errors import TokenizerMismatchError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.context_windows import context_window
from adafuse_core.members.end_tokens import end_ids
from adafuse_core.members.member import ModelMember
from adafuse_core.members.model_files import hub_options, load_errors, read_architecture, source
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.members.tokenizers import load_encoder


def load_member(
    config: MemberConfig, encoder: PromptEncoder | None = None, shared: Shared = lambda _, make: make()
) -> ModelMember:
    """Load tokenizer (if it is not given) and model; the first failing check raises a `ModelLoadError`."""
    encoder = encoder or load_encoder(config)
    with load_errors(config):
        files = _read_files(config, encoder.tokenizer)
        ends = end_ids(config, files)
        backend = opener(config).open_backend(config, files, shared)
        try:
            _check_vocabulary(backend.abilities().vocab_size, encoder.tokenizer, ends)
        except TokenizerMismatchError:
            backend.close()
            raise
        return ModelMember(
            name=config.label,
            weight=config.weight,
            prompt_reader=encoder,
            backend=backend,
            end_ids=ends,
            context_window=context_window(config, files.architecture),
        )


def _read_files(config: MemberConfig, tokenizer: Any) -> ModelFiles:
    architecture = read_architecture(config)
    if architecture.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{config.model!r} is an encoder-decoder model ({architecture.model_type})",
            hint="members must be causal (decoder-only) language models",
        )
    return ModelFiles(
        source=source(config.model), options=hub_options(config), architecture=architecture, tokenizer=tokenizer
    )


def _check_vocabulary(size: int, tokenizer: Any, ends: frozenset[int]) -> None:
    # Added tokens may lie beyond: text-only models share tokenizers that can name images.
    own = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if own > size or max(ends) >= size:
        raise TokenizerMismatchError(
            f"the tokenizer has {own} tokens, the model knows {size}"
            if own > size
            else f"end token {max(ends)} is beyond the {size} tokens that the model knows",
            hint="give the tokenizer that belongs to the model",
        )
