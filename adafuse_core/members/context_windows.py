"""Context window and chat template of a member, read from its files without loading weights."""

from __future__ import annotations

import json
from typing import Any

from adafuse_core.backends.gguf_header import header_value
from adafuse_core.backends.locations import Location
from adafuse_core.errors import AdaFuseError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.model_files import load_errors, member_files, read_architecture, tokenizer_location

_WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")  # names in model configs
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def context_window(config: MemberConfig, architecture: Any) -> int | None:
    """The context window in a transformers config, limited by the member's config; None if unbounded."""
    text = architecture.get_text_config()
    declared = next((window for name in _WINDOWS if (window := getattr(text, name, None))), None)
    return min((window for window in (declared, config.context_window) if window), default=None)


def declared_window(config: MemberConfig) -> int | None:
    """The context window in the model's config file, which may be downloaded.

    Raises:
        ModelLoadError: The file does not exist or can't be read.
    """
    with load_errors(config):
        return context_window(config, read_architecture(config, member_files(config)))


def window_on_disk(config: MemberConfig) -> int | None:
    """The context window in a local file, without transformers or a download; None if unknown."""
    windows = [_declared_on_disk(config), config.context_window]
    return min((window for window in windows if window), default=None)


def _declared_on_disk(config: MemberConfig) -> int | None:
    try:
        location = member_files(config, Location.file_on_disk).model
    except AdaFuseError:  # loading the member will raise it
        return None
    path = location.file_on_disk(location.gguf_file or "config.json")
    if path is None:
        return None
    if location.gguf_file:
        window: int | None = header_value(path, ".context_length")
        return window
    declared: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    declared |= declared.get("text_config") or {}
    return next((declared[name] for name in _WINDOWS if isinstance(declared.get(name), int)), None)


def has_template_on_disk(config: MemberConfig) -> bool | None:
    """Whether the member has a chat template, from local files; None if unknown."""
    template = template_on_disk(config)
    return None if template is None else bool(template)


def template_on_disk(config: MemberConfig) -> str | None:
    """The member's chat template from local files, empty if it has none; None if unknown."""
    if config.chat_template is not None:
        return config.chat_template
    try:
        location = tokenizer_location(config, Location.file_on_disk)
    except AdaFuseError:  # loading the member will raise it
        return None
    if location.gguf_file:
        path = location.file_on_disk(location.gguf_file)
        return None if path is None else (header_value(path, ".chat_template") or b"").decode(errors="replace")
    for name in _TEMPLATE_FILES:
        if path := location.file_on_disk(name):
            return path.read_text(encoding="utf-8")
    path = location.file_on_disk("tokenizer_config.json")
    return None if path is None else _written_in(json.loads(path.read_text(encoding="utf-8")))


def _written_in(tokenizer_config: dict[str, Any]) -> str:
    """The chat template in a tokenizer's config; of several named ones, all."""
    template = tokenizer_config.get("chat_template") or ""
    return template if isinstance(template, str) else json.dumps(template)
