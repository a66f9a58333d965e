"""Opens the local backend: loads a Hugging Face model, tests it, and chooses its KV store."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from adafuse_core.backends import RUN_OPTIONS, load_options
from adafuse_core.backends.adapters import add_adapter
from adafuse_core.backends.base import ModelFiles, Shared
from adafuse_core.backends.local import LocalBackend
from adafuse_core.backends.quantization import quantization_errors
from adafuse_core.backends.shared_weights import SharedWeights
from adafuse_core.backends.verdicts import facts_of, keep_verdict, read_verdict
from adafuse_core.engine.device_turns import Turns
from adafuse_core.engine.forward import Model
from adafuse_core.engine.free_memory import tokens_in_free_memory
from adafuse_core.engine.sanity import Flaw, find_flaw
from adafuse_core.engine.store_choice import Options, UnsupportedSetting, examine, open_store
from adafuse_core.engine.verdict import Verdict
from adafuse_core.errors import ConfigError, NonFiniteLogitsError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig

logger = logging.getLogger(__name__)

# While transformers loads a model, it patches torch for the whole process. Two loads at the same time would tie or lose
# weights at random, and could leave torch patched. The registry refuses loads in a process that was forked meanwhile.
_load_lock = threading.Lock()
# Transformers would add an adapter that is beside the weights, without some tensors of DoRA. It finds none here.
_NO_ADAPTER = {"subfolder": "no-adapter"}
_CACHED_TOKENS = 2**15  # kept for later requests if the free memory is unknown


@dataclass(frozen=True, kw_only=True)
class Local:
    """Runs models of transformers in this process, configured by fields of `MemberConfig`. It has no other options."""

    honours: ClassVar[frozenset[str]] = frozenset(RUN_OPTIONS)

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> LocalBackend:
        """Load and test the model; see `Opener.open_backend`."""
        started = time.monotonic()
        with _load_lock:
            module, weights = _load_module(config, files, shared("local", SharedWeights))
            model = Model(module)
            logger.info("member %r: weights loaded in %.1f s; self-test", config.label, time.monotonic() - started)
            verdict, tested = _verdict(config, model)  # no pass runs while another thread's load has torch patched
        limit = config.max_kv_tokens or tokens_in_free_memory(model.device, verdict.bytes_per_token)
        choice = open_store(model, verdict, max_kv_tokens=limit, tested=tested)
        cached = _max_cached_tokens(config, limit)
        backend = LocalBackend(model, choice, name=config.label, weights=weights, max_cached_tokens=cached)
        backend.take_turns(shared(backend.abilities().place, Turns))
        return backend


def _load_module(config: MemberConfig, files: ModelFiles, loaded: SharedWeights) -> tuple[Any, str]:
    """The model of transformers with the member's adapter, and a description of its weights."""
    base = files.location
    with quantization_errors(config, files.architecture):
        module = loaded.load(base, _load_options(config, files))
    weights = base.source if base.gguf_file is None else f"{base.source}/{base.gguf_file}"
    if files.adapter is not None:
        add_adapter(module, files.adapter, base.source)
        weights += f" with adapter {files.adapter.source}"
    return module, weights if loaded.is_shared(module) else f"{weights} (not shared)"


def _load_options(config: MemberConfig, files: ModelFiles) -> dict[str, Any]:
    """Arguments of `from_pretrained`, except those that locate files."""
    options: dict[str, Any] = {**load_options(config), "dtype": config.dtype}
    for option in ("attn_implementation", "quantization_config", "device_map"):
        if (value := getattr(config, option)) is not None:
            options[option] = value
    soft_cap = getattr(files.architecture.get_text_config(), "attn_logit_softcapping", None)
    if "attn_implementation" not in options and soft_cap is not None:
        options["attn_implementation"] = "eager"  # before transformers 5.21, the default ignores the soft cap
    if config.device_map is None:
        options["device_map"] = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "adapter_kwargs" in options:
        raise ConfigError("got model_kwargs={'adapter_kwargs': ...}", hint="name the adapter with adapter=...")
    return {**options, "adapter_kwargs": _NO_ADAPTER}


def _max_cached_tokens(config: MemberConfig, limit: int | None) -> int:
    """Most tokens that are kept for later requests; `limit` is `max_kv_tokens` or its default."""
    if not config.prefix_cache:
        return 0
    if config.max_kv_tokens is not None:
        return config.max_kv_tokens
    return _CACHED_TOKENS if limit is None else limit // 4  # the rest is for running requests, also of other members


def _verdict(config: MemberConfig, model: Model) -> tuple[Verdict, str | None]:
    """The verdict of the model's self-test, and the day of the test if it was read from disk."""
    own_attention = config.attn_implementation is not None or "attn_implementation" in config.model_kwargs
    options = Options(kv_store=config.kv_store, cuda_graphs=config.cuda_graphs, user_attention=own_attention)
    facts = facts_of(model, options) if config.selftest == "cached" else None
    if facts is not None and (known := read_verdict(facts)) is not None:
        _check_model(model)
        return known
    started = time.monotonic()
    verdict = _examined(config, model, options)
    logger.info("member %r: self-test took %.1f s", config.label, time.monotonic() - started)
    if facts is not None:
        keep_verdict(facts, verdict)
    return verdict, None


def _examined(config: MemberConfig, model: Model, options: Options) -> Verdict:
    try:
        verdict = examine(model, options)
    except UnsupportedSetting as error:
        _check_model(model)  # a useless model supports no setting
        raise UnsupportedModelError(
            f"{error.setting} does not work with {config.model!r}: {error.problem}", hint="leave it at its default"
        ) from error
    if not verdict.proves_sanity or model.rounding_error:  # then, large differences were tolerated
        _check_model(model)
    return verdict


def _check_model(model: Model) -> None:
    problem = find_flaw(model)
    if problem is Flaw.NOT_FINITE:
        raise NonFiniteLogitsError(
            "the model returned NaN or infinite logits in a test after loading",
            hint="load it in another dtype (bfloat16 or float32), or check its weights",
        )
    if problem is Flaw.NOT_CAUSAL:
        raise UnsupportedModelError(
            "its predictions depend on later tokens, so it is not a causal language model (encoder-only?)",
            hint="members must be causal (decoder-only) language models",
        )
