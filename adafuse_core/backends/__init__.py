"""Where models run: token ids in, log-probabilities out. The kinds of backends are a table.

A new kind is one file, with a class as `backends.base.Opener` describes it, and one row.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import TYPE_CHECKING

from adafuse_core.checks import expect_choice, known_options
from adafuse_core.errors import ConfigError

if TYPE_CHECKING:
    from adafuse_core.backends.base import Opener
    from adafuse_core.member_config import MemberConfig

BACKENDS = {"local": "adafuse_core.backends.huggingface:Local"}  # module and class, imported at the first use

# Fields of `MemberConfig` that say how a model runs. A kind of backend names those of them that it honours.
RUN_OPTIONS = (
    "dtype",
    "device",
    "device_map",
    "attn_implementation",
    "quantization_config",
    "model_kwargs",
    "kv_store",
    "cuda_graphs",
    "max_kv_tokens",
)
# Of `model_kwargs`: where files come from. Tokenizer and config are read on this machine, whatever the backend.
FILE_OPTIONS = ("token", "cache_dir", "local_files_only")


def opener(config: MemberConfig) -> Opener:
    """The kind of backend that a member's config names, with its options, all of them checked.

    Raises:
        ConfigError: There is no such kind, it has no such option, an option is missing or out of range, or the config
            sets a field that this kind does not honour.
    """
    try:
        kind = _kind(config.backend)
        _check_honoured(config, kind)
        hints = {name: f"it is no option of a backend, but MemberConfig({name}=...)" for name in RUN_OPTIONS}
        fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        options = known_options(fields, config.backend_options, f"option of backend {config.backend!r}", hints)
        for name, field in fields.items():
            if name not in options and field.default is field.default_factory:  # both are missing
                raise ConfigError(
                    f"backend {config.backend!r} needs the option {name!r}",
                    hint=f"set MemberConfig(backend_options={{{name!r}: ...}})",
                )
        return kind(**options)
    except ConfigError as error:
        error.member = error.member or config.label
        raise


def _kind(name: str) -> type[Opener]:
    expect_choice("backend", name, BACKENDS)
    module, _, kind = BACKENDS[name].partition(":")
    return getattr(import_module(module), kind)  # type: ignore[no-any-return]


def _check_honoured(config: MemberConfig, kind: type[Opener]) -> None:
    unset = type(config)(model=config.model)
    for name in RUN_OPTIONS:
        value = getattr(config, name)
        if name == "model_kwargs":
            value = {key: given for key, given in value.items() if key not in FILE_OPTIONS}
        if name not in kind.honours and value != getattr(unset, name):
            raise ConfigError(
                f"backend {config.backend!r} does not honour {name}={value!r}",
                hint=f"leave {name} out, or use a backend that honours it, such as backend='local'",
            )
