"""Settings as plain JSON for caches, traces and files, without secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from adafuse_core.checks import is_secret


def plain(value: Any, name: str = "") -> Any:
    """JSON values; what looks like a secret is told apart by its hash alone.

    Args:
        value: Any setting.
        name: What it is called; by this a secret is known.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, str(key).lower()) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    if is_secret(name, value):
        return f"hidden-{hashlib.sha256(value.encode()).hexdigest()[:8]}"
    return value if value is None or isinstance(value, str | int | float) else repr(value)
