"""Backends run models: token ids in, log-probabilities out. `BACKENDS` lists them.

A new backend is a class, in a file or folder of its own, which implements `backends.base.Opener`,
and a row in the table.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import TYPE_CHECKING, Any

from adafuse_core.checks import expect_choice, known_options
from adafuse_core.errors import ConfigError

if TYPE_CHECKING:
    from adafuse_core.backends.base import Opener
    from adafuse_core.member_config import MemberConfig

BACKENDS = {  # module and class, imported at the first use
    "local": "adafuse_core.backends.huggingface:Local",
    "ray": "adafuse_core.backends.remote.ray:Ray",
    "sglang": "adafuse_core.backends.servers.sglang:SGLang",
    "vllm": "adafuse_core.backends.servers.vllm:VLLM",
}

# Fields of `MemberConfig` that configure how a model runs. A backend lists the ones it supports in `honours`.
RUN_OPTIONS = (
    *("dtype", "device", "device_map", "attn_implementation", "quantization_config", "adapter", "model_kwargs"),
    *("kv_store", "selftest", "cuda_graphs", "max_kv_tokens", "prefix_cache"),
)
# `model_kwargs` that locate files. They also apply to tokenizer and config, which every backend reads locally.
FILE_OPTIONS = (
    *("revision", "code_revision", "subfolder", "gguf_file", "trust_remote_code"),
    *("token", "cache_dir", "local_files_only", "force_download", "proxies"),
)


def opener(config: MemberConfig) -> Opener:
    """Create the opener of a member's backend from its options.

    Raises:
        ConfigError: The backend is unknown, an option is invalid, or the backend does not support a field that is set.
    """
    try:
        expect_choice("backend", config.backend, BACKENDS)
        module, _, name = BACKENDS[config.backend].partition(":")
        kind: Any = getattr(import_module(module), name)
        _check_honoured(config, kind)
        hints = {name: f"it is a field of the member: MemberConfig({name}=...)" for name in RUN_OPTIONS}
        names = [field.name for field in dataclasses.fields(kind)]
        options = known_options(names, config.backend_options, f"option of backend {config.backend!r}", hints)
        made: Opener = kind(**options)
        return made
    except ConfigError as error:
        error.member = error.member or config.label
        raise
    except TypeError as error:  # a required option is missing
        problem = f"backend {config.backend!r} can't be created with {sorted(config.backend_options)}: {error}"
        raise ConfigError(problem, member=config.label, hint="set backend_options={...}") from error


def load_options(config: MemberConfig) -> dict[str, Any]:
    """The `model_kwargs` without `FILE_OPTIONS`."""
    return {name: value for name, value in config.model_kwargs.items() if name not in FILE_OPTIONS}


def check_backend(config: MemberConfig) -> None:
    """Refuse what `opener` would refuse, without importing the local backend, which supports every field."""
    if config.backend != "local" or config.backend_options:
        opener(config)


def _check_honoured(config: MemberConfig, kind: type[Opener]) -> None:
    unset = type(config)(model=config.model)
    for name in RUN_OPTIONS:
        value = load_options(config) if name == "model_kwargs" else getattr(config, name)
        if name not in kind.honours and value != getattr(unset, name):
            raise ConfigError(
                f"backend {config.backend!r} does not honour {name}={value!r}",
                hint=f"leave {name} out, or use a backend that honours it, such as backend='local'",
            )
