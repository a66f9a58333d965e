"""Opens the local backend: loads a Hugging Face model, tests it, and chooses its KV store."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers.utils import is_peft_available

from adafuse_core.backends import RUN_OPTIONS, load_options
from adafuse_core.backends.base import ModelFiles, Shared
from adafuse_core.backends.local import LocalBackend
from adafuse_core.engine.device_turns import Turns
from adafuse_core.engine.forward import Model
from adafuse_core.engine.free_memory import tokens_in_free_memory
from adafuse_core.engine.sanity import is_causal, is_finite
from adafuse_core.engine.store_choice import StoreChoice, UnsupportedSetting, choose_store
from adafuse_core.errors import NonFiniteLogitsError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig

logger = logging.getLogger(__name__)

# While transformers loads a model, it patches torch for the whole process. Two loads at the same time would tie or lose
# weights at random, and could leave torch patched. The registry refuses loads in a process that was forked meanwhile.
_load_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Local:
    """Runs models of transformers in this process, configured by fields of `MemberConfig`. It has no other options."""

    honours: ClassVar[frozenset[str]] = frozenset(RUN_OPTIONS)

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> LocalBackend:
        """Load and test the model; see `Opener.open_backend`."""
        started = time.monotonic()
        with _load_lock:
            model = _load_model(config, files)
        logger.info("member %r: weights loaded in %.1f s; self-test", config.label, time.monotonic() - started)
        _check_model(model)
        limit = config.max_kv_tokens or tokens_in_free_memory(model)
        backend = LocalBackend(model, _choose_store(config, model, limit), name=config.label)
        backend.take_turns(shared(backend.abilities().place, Turns))
        return backend


def _load_model(config: MemberConfig, files: ModelFiles) -> Model:
    options: dict[str, Any] = {**load_options(config), "dtype": config.dtype}
    for option in ("attn_implementation", "quantization_config", "device_map"):
        if (value := getattr(config, option)) is not None:
            options[option] = value
    soft_cap = getattr(files.architecture.get_text_config(), "attn_logit_softcapping", None)
    if "attn_implementation" not in options and soft_cap is not None:
        options["attn_implementation"] = "eager"  # before transformers 5.21, the default ignores the soft cap
    if config.device_map is None:
        options["device_map"] = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if files.location.gguf_file is not None:
        logger.info(
            "%r: transformers unpacks %s, which takes time and several times its memory; a folder saved once with "
            "save_pretrained() loads faster, see README",
            config.label,
            files.location.gguf_file,
        )
    model = files.location.load_model(options)
    if files.adapter is not None:
        _load_adapter(model, config, files)
    return Model(model)


def _load_adapter(model: Any, config: MemberConfig, files: ModelFiles) -> None:
    """Add the layers of an adapter to a model, in the model's dtype."""
    assert files.adapter is not None
    if not is_peft_available():
        raise UnsupportedModelError(
            f"{config.model!r} is a PEFT adapter, and the package peft is missing",
            hint='pip install "adafuse[peft]"',
        )
    if files.adapter != files.location:  # otherwise, transformers has already loaded the adapter
        model.load_adapter(files.adapter.source, adapter_kwargs=files.adapter.hub_options, dtype=model.dtype)


def _check_model(model: Model) -> None:
    if not is_finite(model):
        raise NonFiniteLogitsError(
            "the model returned NaN or infinite logits in a test after loading",
            hint="load it in another dtype (bfloat16 or float32), or check its weights",
        )
    if not is_causal(model):
        raise UnsupportedModelError(
            "its predictions depend on later tokens, so it is not a causal language model (encoder-only?)",
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
