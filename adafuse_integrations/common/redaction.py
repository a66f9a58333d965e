"""Settings as plain JSON without secrets, for cache keys, traces and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adafuse_core.checks import hidden, is_secret


def redacted(value: Any, name: str = "") -> Any:
    """Convert a setting to JSON values. A short hash replaces each secret, so that different secrets stay distinct.

    Args:
        value: Any setting.
        name: Name of the setting. Names such as `api_key` or `hf_token` mark secrets.
    """
    if isinstance(value, Mapping):
        return {str(key): redacted(item, str(key).lower()) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if is_secret(name, value):
        return hidden(value)
    return value if value is None or isinstance(value, str | int | float) else repr(value)
