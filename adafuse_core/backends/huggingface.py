"""Opens the local backend: loads a Hugging Face model, checks what it computes, and chooses its KV store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM

from adafuse_core.backends import RUN_OPTIONS
from adafuse_core.backends.base import ModelFiles, Shared
from adafuse_core.backends.local import LocalBackend
from adafuse_core.engine.device_turns import Turns
from adafuse_core.engine.forward import Model
from adafuse_core.engine.free_memory import tokens_in_free_memory
from adafuse_core.engine.sanity import is_causal, is_finite
from adafuse_core.engine.store_choice import StoreChoice, UnsupportedSetting, choose_store
from adafuse_core.errors import NonFiniteLogitsError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig


@dataclass(frozen=True, kw_only=True)
class Local:
    """Models of transformers in this process. Fields of `MemberConfig` say how they run; there are no other options."""

    honours: ClassVar[frozenset[str]] = frozenset(RUN_OPTIONS)

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> LocalBackend:
        """Load the model and check it; see `Opener.open_backend`."""
        model = _load_model(config, files)
        _check_model(model)
        limit = config.max_kv_tokens or tokens_in_free_memory(model)
        backend = LocalBackend(model, _choose_store(config, model, limit), name=config.label)
        backend.take_turns(shared(backend.abilities().place, Turns))
        return backend


def _load_model(config: MemberConfig, files: ModelFiles) -> Model:
    options: dict[str, Any] = {**config.model_kwargs, **files.options, "dtype": config.dtype}
    for option in ("attn_implementation", "quantization_config", "device_map"):
        if (value := getattr(config, option)) is not None:
            options[option] = value
    soft_cap = getattr(files.architecture.get_text_config(), "attn_logit_softcapping", None)
    if "attn_implementation" not in options and soft_cap is not None:
        options["attn_implementation"] = "eager"  # before transformers 5.21 the default drops the soft cap in silence
    if config.device_map is None:
        options["device_map"] = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Model(AutoModelForCausalLM.from_pretrained(files.source, **options))


def _check_model(model: Model) -> None:
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


def _choose_store(config: MemberConfig, model: Model, limit: int | None) -> StoreChoice:
    user_attention = config.attn_implementation is not None or "attn_implementation" in config.model_kwargs
    try:
        return choose_store(
            model,
            config.kv_store,
            cuda_graphs=config.cuda_graphs,
            user_attention=user_attention,
            max_kv_tokens=limit,
        )
    except UnsupportedSetting as error:
        raise UnsupportedModelError(
            f"{error.setting} does not work with {config.model!r}: {error.problem}", hint="leave it at its default"
        ) from error
