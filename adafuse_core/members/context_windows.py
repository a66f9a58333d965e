"""How many tokens a member's prompt and answer may have, known without loading any weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adafuse_core.errors import ModelNotFoundError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.model_files import load_errors, read_architecture, source

_WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # as model families call it


def context_window(config: MemberConfig, architecture: Any) -> int | None:
    """Most tokens of prompt plus answer, by a transformers config and the member's own bound; None if unbounded."""
    text = architecture.get_text_config()
    declared = next((window for name in _WINDOWS if (window := getattr(text, name, None))), None)
    return min((window for window in (declared, config.context_window) if window), default=None)


def declared_window(config: MemberConfig) -> int | None:
    """The same, read from the model's config file.

    Raises:
        ModelLoadError: There is no such file, or it can't be read.
    """
    with load_errors(config):
        return context_window(config, read_architecture(config))


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
