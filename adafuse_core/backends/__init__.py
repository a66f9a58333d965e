"""Where models run: token ids in, log-probabilities out. The kinds of backends are a table.

A new kind is one file, with a class as `backends.base.Opener` describes it, and one row.
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

BACKENDS = {"local": "adafuse_core.backends.huggingface:Local"}  # module and class, imported at the first use

# Fields of `MemberConfig` that say how a model runs. A kind of backend names those of them that it honours.
RUN_OPTIONS = (
    *("dtype", "device", "device_map", "attn_implementation", "quantization_config", "model_kwargs"),
    *("kv_store", "cuda_graphs", "max_kv_tokens"),
)
# Of `model_kwargs`: where files come from, for every read of them. Tokenizer and config are read on this machine,
# whatever the backend.
FILE_OPTIONS = (
    *("revision", "code_revision", "subfolder", "gguf_file", "trust_remote_code"),
    *("token", "cache_dir", "local_files_only", "force_download", "proxies"),
)


def opener(config: MemberConfig) -> Opener:
    """The kind of backend that a member's config names, with its options, all of them checked.

    Raises:
        ConfigError: There is no such kind, its options are wrong, or it does not honour a field that is set.
    """
    try:
        expect_choice("backend", config.backend, BACKENDS)
        module, _, name = BACKENDS[config.backend].partition(":")
        kind: Any = getattr(import_module(module), name)
        _check_honoured(config, kind)
        hints = {name: f"it is no option of a backend, but MemberConfig({name}=...)" for name in RUN_OPTIONS}
        names = [field.name for field in dataclasses.fields(kind)]
        options = known_options(names, config.backend_options, f"option of backend {config.backend!r}", hints)
        made: Opener = kind(**options)
        return made
    except ConfigError as error:
        error.member = error.member or config.label
        raise
    except TypeError as error:  # Python names the options that are missing
        problem = f"backend {config.backend!r} can't be made of {sorted(config.backend_options)}: {error}"
        raise ConfigError(problem, member=config.label, hint="set backend_options={...}") from error


def load_options(config: MemberConfig) -> dict[str, Any]:
    """The `model_kwargs` that say how a model is loaded, not where its files are."""
    return {name: value for name, value in config.model_kwargs.items() if name not in FILE_OPTIONS}


def check_backend(config: MemberConfig) -> None:
    """Refuse what `opener` would refuse. The local kind honours every field, so it is not imported for that."""
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
