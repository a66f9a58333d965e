"""Where a member's files are, and what its config declares, without loading any weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adafuse_core import small_models
from adafuse_core.errors import AdaFuseError, ModelLoadError, ModelNotFoundError
from adafuse_core.member_config import MemberConfig

_SMALL = "small:"
_HUB = ("token", "cache_dir", "local_files_only")  # of `model_kwargs`: where a model's files come from
_WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # as model families call it


def source(model: str) -> str:
    """What transformers is to load: a path of this machine, or the name of a model repository.

    Raises:
        ModelNotFoundError: It is a path and nothing is there, or no small model has that name.
    """
    if model.startswith(_SMALL):
        try:
            return str(small_models.path(model.removeprefix(_SMALL)))
        except ValueError as error:
            raise ModelNotFoundError(f"can't load {model!r}: {error}", hint="check the name") from error
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if not looks_like_path:
        return model
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # ~someone who is not there
        raise ModelNotFoundError(f"there is no folder {model!r}: {error}", hint="check the path") from error
    if not path.exists():
        raise ModelNotFoundError(f"there is no folder {model!r}", hint="check the path")
    return str(path)


def not_found(model: str, error: Exception, member: str) -> ModelNotFoundError:
    """The error for a model whose files can't be had."""
    return ModelNotFoundError(
        f"can't load {model!r}: {str(error).strip().splitlines()[0]}",
        member=member,
        hint="give a Hugging Face model name that this machine can reach (gated ones need `hf auth login`), "
        "or the path of a folder with config.json",
    )


@contextmanager
def load_errors(config: MemberConfig) -> Iterator[None]:
    """Turn whatever goes wrong while a member's files are read into a `ModelLoadError` that names it."""
    try:
        yield
    except AdaFuseError as error:
        error.member = error.member or config.label
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each raise kinds of their own
        folder = Path(source(config.model))
        if not (folder / "config.json").is_file() and (isinstance(error, OSError) or folder.is_dir()):
            raise not_found(config.model, error, config.label) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(
            f"can't load {config.model!r}: {reason}",
            member=config.label,
            hint="check the options of this member and the files of its model; the cause is chained to this error",
        ) from error


def hub_options(config: MemberConfig, *, tokenizer: bool = False) -> dict[str, Any]:
    """What every call that reads the member's files is told about where they are, and whether to trust them.

    A tokenizer of another repository has revisions of its own.
    """
    options = {name: config.model_kwargs[name] for name in _HUB if name in config.model_kwargs}
    if config.revision is not None and not (tokenizer and config.tokenizer):
        options["revision"] = config.revision
    if config.trust_remote_code:
        options["trust_remote_code"] = True
    return options


def context_window(config: MemberConfig, architecture: Any) -> int | None:
    """Most tokens of prompt plus answer, by a transformers config and the member's own bound; None if unbounded."""
    text = architecture.get_text_config()
    declared = next((window for name in _WINDOWS if (window := getattr(text, name, None))), None)
    windows = [window for window in (declared, config.context_window) if window]
    return min(windows) if windows else None


def declared_window(config: MemberConfig) -> int | None:
    """The same, read from the model's config file.

    Raises:
        ModelNotFoundError: There is no such file.
    """
    from transformers import AutoConfig

    try:
        architecture = AutoConfig.from_pretrained(source(config.model), **hub_options(config))
    except AdaFuseError as error:
        error.member = error.member or config.label
        raise
    except (ValueError, KeyError) as error:
        raise ModelLoadError(f"can't read the config of {config.model!r}: {error}", member=config.label) from error
    except OSError as error:
        raise not_found(config.model, error, config.label) from error
    return context_window(config, architecture)


def window_on_disk(config: MemberConfig) -> int | None:
    """The same without transformers and without a download; None if this machine has no file that tells it."""
    path = _config_on_disk(config)
    declared: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    declared |= declared.get("text_config") or {}
    windows = [declared[name] for name in _WINDOWS if isinstance(declared.get(name), int)][:1]
    return min([*windows, *([config.context_window] if config.context_window else [])], default=None)


def _config_on_disk(config: MemberConfig) -> Path | None:
    try:
        folder = Path(source(config.model))
    except ModelNotFoundError:  # loading it will say so
        return None
    if folder.is_dir():
        return path if (path := folder / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cache = config.model_kwargs.get("cache_dir")
    try:
        cached = try_to_load_from_cache(config.model, "config.json", cache_dir=cache, revision=config.revision)
    except ValueError:  # no name of a repository
        return None
    return Path(cached) if isinstance(cached, str) else None
