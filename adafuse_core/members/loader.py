"""Loads a member from its config: tokenizer, model, end tokens, and the checks that make it fit for an ensemble."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import jinja2
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adafuse_core.backends.local import LocalBackend
from adafuse_core.config import MemberConfig
from adafuse_core.engine.forward import Model
from adafuse_core.engine.free_memory import tokens_in_free_memory
from adafuse_core.engine.sanity import is_causal, is_finite
from adafuse_core.engine.store_choice import Unfit, choose_store
from adafuse_core.errors import (
    ModelLoadError,
    NonFiniteLogitsError,
    TokenizerMismatchError,
    UnsupportedModelError,
)
from adafuse_core.members.member import ModelMember
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.members.sources import context_window, hub_options, load_errors, source
from adafuse_core.members.tokenizers import load_encoder

logger = logging.getLogger(__name__)


def load_member(config: MemberConfig, encoder: PromptEncoder | None = None) -> ModelMember:
    """Load tokenizer (if it is not given) and model; the first failing check raises a `ModelLoadError`."""
    encoder = encoder or load_encoder(config)
    with load_errors(config):
        files = source(config.model)
        architecture = _architecture(config, files)
        model = _load_model(config, files, architecture)
        _check_model(model, encoder.tokenizer)
        return ModelMember(
            name=config.label,
            weight=config.weight,
            encoder=encoder,
            backend=_backend(config, model),
            end_ids=_end_ids(config, encoder.tokenizer, model),
            context_window=context_window(config, model.module.config),
        )


def _architecture(config: MemberConfig, files: str) -> Any:
    """The model's transformers config."""
    architecture = AutoConfig.from_pretrained(files, **hub_options(config))
    if architecture.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{config.model!r} is an encoder-decoder model ({architecture.model_type})",
            hint="members must be causal (decoder-only) language models",
        )
    return architecture


def _load_model(config: MemberConfig, files: str, architecture: Any) -> Model:
    options: dict[str, Any] = {**config.model_kwargs, **hub_options(config), "dtype": config.dtype}
    for option in ("attn_implementation", "quantization_config", "device_map"):
        if (value := getattr(config, option)) is not None:
            options[option] = value
    soft_cap = getattr(architecture.get_text_config(), "attn_logit_softcapping", None)
    if "attn_implementation" not in options and soft_cap is not None:
        options["attn_implementation"] = "eager"  # before transformers 5.21 the default drops the soft cap in silence
    if config.device_map is None:
        options["device_map"] = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Model(AutoModelForCausalLM.from_pretrained(files, **options))


def _check_model(model: Model, tokenizer: Any) -> None:
    # Added tokens may lie beyond: text-only models share tokenizers that can name images.
    size = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if size > model.vocab_size:
        raise TokenizerMismatchError(
            f"the tokenizer has {size} tokens, the model knows {model.vocab_size}",
            hint="give the tokenizer that belongs to the model",
        )
    if not is_finite(model):
        raise NonFiniteLogitsError(
            "the model returned NaN or infinite logits when it was tried out",
            hint="load it in another dtype (bfloat16 or float32), or check its weights",
        )
    if not is_causal(model):
        raise UnsupportedModelError(
            "its predictions depend on later tokens, so it is no causal language model (encoder-only?)",
            hint="members must be causal (decoder-only) language models",
        )


def _backend(config: MemberConfig, model: Model) -> LocalBackend:
    limit = config.max_kv_tokens or tokens_in_free_memory(model)
    own_attention = config.attn_implementation is not None or "attn_implementation" in config.model_kwargs
    try:
        choice = choose_store(
            model, config.kv_store, graphs=config.cuda_graphs, own_attention=own_attention, most=limit
        )
    except Unfit as error:
        raise UnsupportedModelError(
            f"{error.setting} does not work with {config.model!r}: {error.problem}", hint="leave it at its default"
        ) from error
    return LocalBackend(model, choice, name=config.label)


def _end_ids(config: MemberConfig, tokenizer: Any, model: Model) -> frozenset[int]:
    """Every token that ends an answer: declared by model or tokenizer, written by the template, or given."""
    declared = [tokenizer.eos_token_id]
    for source_of_ends in (model.module.config.get_text_config(), model.module.generation_config):
        declared.append(getattr(source_of_ends, "eos_token_id", None))
    ends: set[int] = set()
    for value in declared:
        ends |= set(value) if isinstance(value, list | tuple) else {value} - {None}
    if (turn_end := _template_end(tokenizer)) is not None:
        ends.add(turn_end)
    vocab = tokenizer.get_vocab()
    for token in config.end_tokens:
        if token not in vocab:
            raise ModelLoadError(
                f"end token {token!r} is not in the vocabulary",
                hint="write each end token as it stands in the tokenizer's vocabulary",
            )
        ends.add(vocab[token])
    if not ends:
        raise UnsupportedModelError(
            "neither model nor tokenizer declares an end token",
            hint="name one with MemberConfig(end_tokens=[...])",
        )
    if max(ends) >= model.vocab_size:
        raise TokenizerMismatchError(
            f"end token {max(ends)} is beyond the {model.vocab_size} tokens that the model knows",
            hint="give the tokenizer that belongs to the model",
        )
    return frozenset(ends)


def _template_end(tokenizer: Any) -> int | None:
    """The control token that the chat template writes after an assistant's turn."""
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
