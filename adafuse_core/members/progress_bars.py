"""Progress bars of transformers and huggingface_hub: hidden while the library loads models, unless they are asked for.

Both packages have one switch per process. It is turned off for the time of a load, and back to what it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from adafuse_core.forks import call_after_fork

_lock = threading.Lock()
_asked_for = 0  # calls that want bars
_loads = 0  # running loads
_restore = ExitStack()  # turns the bars on again


@contextmanager
def shown(asked: bool) -> Iterator[None]:
    """Leave the bars on for all loads that start meanwhile, if `asked`."""
    global _asked_for
    with _lock:
        _asked_for += asked
    try:
        yield
    finally:
        with _lock:
            _asked_for -= asked


@contextmanager
def hidden() -> Iterator[None]:
    """Turn the bars off during a load, unless they are asked for."""
    global _loads
    with _lock:
        _loads += 1
        if _loads == 1 and not _asked_for:
            _turn_off()
    try:
        yield
    finally:
        with _lock:
            _loads -= 1
            if not _loads:
                _restore.close()


def _turn_off() -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        return  # the user has decided, with an environment variable
    hub = not are_progress_bars_disabled()
    if logging.is_progress_bar_enabled():
        logging.disable_progress_bar()  # also those of the hub
        _restore.callback(lambda: None if hub else disable_progress_bars())
        _restore.callback(logging.enable_progress_bar)  # called first
    elif hub:
        disable_progress_bars()
        _restore.callback(enable_progress_bars)


def _after_fork() -> None:
    """A child has no loads."""
    global _lock, _loads, _asked_for
    _lock, _loads, _asked_for = threading.Lock(), 0, 0
    _restore.close()


call_after_fork(_after_fork)
