"""Loads a member from its config: tokenizer, model, end tokens, and the checks that make it fit for an ensemble."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import jinja2
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from adafuse_core.backends.local import LocalBackend
from adafuse_core.config import MemberConfig
from adafuse_core.engine.forward import Model
from adafuse_core.engine.selftest import choose_store, is_causal, is_finite, tokens_in_free_memory
from adafuse_core.errors import (
    AdaFuseError,
    ModelLoadError,
    NonFiniteLogitsError,
    TokenizerMismatchError,
    UnsupportedModelError,
)
from adafuse_core.members.member import ModelMember
from adafuse_core.members.sources import context_window, hub_options, not_found, source
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


def load_member(config: MemberConfig) -> ModelMember:
    """Load tokenizer and model; the first failing check raises a `ModelLoadError` that names the member."""
    name = config.label
    try:
        files = source(config.model)
        architecture = _architecture(config, files)
        tokenizer = _load_tokenizer(config, source(config.tokenizer) if config.tokenizer else files)
        model = _load_model(config, files, architecture)
        _check_model(model, tokenizer)
        window = context_window(config, model.module.config)
        return ModelMember(
            name=name,
            weight=config.weight,
            tokenizer=tokenizer,
            backend=_backend(config, model),
            end_ids=_end_ids(config, tokenizer, model),
            context_window=window,
            template_variables=config.template_kwargs,
            dialect=config.tool_dialect,
        )
    except AdaFuseError as error:
        error.member = error.member or name
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each raise kinds of their own
        folder = Path(files)
        if not (folder / "config.json").is_file() and (isinstance(error, OSError) or folder.is_dir()):
            raise not_found(config.model, error, name) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(
            f"can't load {config.model!r}: {reason}",
            member=name,
            hint="check the options of this member and the files of its model; the cause is chained to this error",
        ) from error


def _architecture(config: MemberConfig, files: str) -> Any:
    """The model's transformers config."""
    architecture = AutoConfig.from_pretrained(files, **hub_options(config))
    if architecture.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{config.model!r} is an encoder-decoder model ({architecture.model_type})",
            hint="members must be causal (decoder-only) language models",
        )
    return architecture


def _load_tokenizer(config: MemberConfig, name: str) -> Any:
    options = hub_options(config, tokenizer=True)
    at = {key: value for key, value in options.items() if key != "trust_remote_code"}
    file = cached_file(name, "tokenizer.json", **at, _raise_exceptions_for_missing_entries=False)
    if config.tokenizer_class == "file":
        if file is None:
            raise ModelLoadError(f"{name!r} has no tokenizer.json", hint="set tokenizer_class='auto'")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **options)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} is no fast tokenizer",
            hint="convert it to a tokenizer.json, or give another one",
        )
    if file is not None:
        _check_against_file(tokenizer, Tokenizer.from_file(file))
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    codec = Codec(tokenizer)
    lossy = [probe for probe in _PROBES if not codec.lossless("a" + probe)]  # an answer never stands at the start
    if lossy:
        logger.warning("the tokenizer of %r changes some texts, such as %r", config.label, lossy[0])
    return tokenizer


def _check_against_file(tokenizer: Any, saved: Tokenizer) -> None:
    """`AutoTokenizer` may put another class in place of the saved tokenizer, with other ids."""
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
        choice = choose_store(model, config.kv_store, own_attention=own_attention)
    except ValueError as error:
        raise UnsupportedModelError(
            f"kv_store={config.kv_store!r} does not work with {config.model!r}: {error}",
            hint="leave kv_store at 'auto'",
        ) from error
    return LocalBackend(model, choice, name=config.label, max_kv_tokens=limit)


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
