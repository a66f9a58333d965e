"""What a member's files declare: its context window, and whether it has a chat template. No weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adafuse_core.errors import ModelNotFoundError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.model_files import load_errors, read_architecture, source

_WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # as model families call it
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


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
    path = _on_disk(config, config.model, "config.json")
    declared: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    declared |= declared.get("text_config") or {}
    windows = [declared[name] for name in _WINDOWS if isinstance(declared.get(name), int)][:1]
    return min([*windows, *([config.context_window] if config.context_window else [])], default=None)


def has_template_on_disk(config: MemberConfig) -> bool | None:
    """Whether the member has a chat template; None if this machine has no file that tells it."""
    if config.chat_template is not None:
        return True
    name = config.tokenizer or config.model
    if any(_on_disk(config, name, file) for file in _TEMPLATE_FILES):
        return True
    path = _on_disk(config, name, "tokenizer_config.json")
    return None if path is None else bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))


def _on_disk(config: MemberConfig, name: str, file: str) -> Path | None:
    """A file of a model or tokenizer, if it is on this machine."""
    try:
        folder = Path(source(name))
    except ModelNotFoundError:  # loading it will say so
        return None
    if folder.is_dir():
        return path if (path := folder / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cache = config.model_kwargs.get("cache_dir")
    revision = config.revision if name == config.model else None
    try:
        cached = try_to_load_from_cache(name, file, cache_dir=cache, revision=revision)
    except ValueError:  # no name of a repository
        return None
    return Path(cached) if isinstance(cached, str) else None
