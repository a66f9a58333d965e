"""The table of strategies, the default one first; each strategy is one file."""

from __future__ import annotations

from adafuse_core.strategies.adafuse import AdaFuse
from adafuse_core.strategies.base import Strategy
from adafuse_core.strategies.beam import Beam
from adafuse_core.strategies.consensus import Consensus
from adafuse_core.strategies.panel import Panel
from adafuse_core.strategies.rerank import Rerank
from adafuse_core.strategies.selective import Selective
from adafuse_core.strategies.single import Single
from adafuse_core.strategies.span import FixedSpan
from adafuse_core.strategies.token_union import TokenUnion

_ROWS: tuple[type[Strategy], ...] = (
    *(Beam, AdaFuse, FixedSpan, Consensus, Selective),
    *(TokenUnion, Rerank, Panel, Single),
)
STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in _ROWS}
