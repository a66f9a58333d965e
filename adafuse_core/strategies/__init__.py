"""The table of strategies; each strategy is one file."""

from __future__ import annotations

from adafuse_core.strategies.adafuse import AdaFuse
from adafuse_core.strategies.base import Strategy
from adafuse_core.strategies.single import Single

STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in (AdaFuse, Single)}
