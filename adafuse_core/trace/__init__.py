"""The trace of an answer as JSON, as HTML, and in notebooks."""

from __future__ import annotations

from adafuse_core.trace.trace import Trace

__all__ = ["Trace"]
