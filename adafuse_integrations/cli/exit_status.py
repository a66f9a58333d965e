"""The exit statuses of all commands."""

from __future__ import annotations

from adafuse_core import AdaFuseError, ConfigError, ModelNotFoundError, PromptError

DONE = 0
FAILED = 1
MISUSE = 2
STOPPED = 130  # by Ctrl-C, as shells report it


def status_of(error: AdaFuseError) -> int:
    """`MISUSE` if the command, or a file or model that it names, has to be changed; else `FAILED`."""
    return MISUSE if isinstance(error, ConfigError | PromptError | ModelNotFoundError) else FAILED
