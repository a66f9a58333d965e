"""The report of an evaluation: one HTML file without scripts or outside assets."""

from __future__ import annotations

from adafuse_core.evaluation.report.page import write_report

__all__ = ["write_report"]
