"""Metrics of translations, by the library sacrebleu (extra `evaluation`).

sacrebleu's metrics add up counts of matching n-grams over all sentences. The counts of each sentence and the score of
a sum of counts are all that resampling needs, so they are read by the methods that its own significance tests use.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adafuse_core.errors import ConfigError

INSTALL = 'pip install "adafuse[evaluation]"'
_SPBLEU_MODEL = "flores200sacrebleuspm"  # file name that sacrebleu gives to the model of its tokenizer "flores200"


def rows(name: str, answers: Sequence[str], golds: Sequence[Sequence[str]]) -> list[Any]:
    """The counts of each answer for `"chrf"`, `"bleu"` or `"spbleu"`, `[answers][counts]`."""
    metric = _metric(name)
    return [
        metric._extract_corpus_statistics([answer], [[gold] for gold in accepted])[0]
        for answer, accepted in zip(answers, golds, strict=True)
    ]


def score(name: str, sums: Any) -> float:
    """The score of summed counts, 0..100. (sacrebleu's sums of logarithms give a little more than 100.)"""
    return min(100.0, float(_metric(name)._compute_score_from_stats([float(count) for count in sums]).score))


def signature(name: str) -> str:
    """sacrebleu's description of a metric and its version, which makes scores comparable."""
    return str(_metric(name).get_signature())


def unavailable(name: str) -> str | None:
    """Why a metric can't be computed on this machine; None if it can. Nothing is downloaded."""
    if importlib.util.find_spec("sacrebleu") is None:
        return f"it needs sacrebleu: {INSTALL}"
    if name != "spbleu":
        return None
    from sacrebleu.utils import SACREBLEU_DIR

    if importlib.util.find_spec("sentencepiece") is None:
        return "its tokenizer needs sentencepiece: pip install sentencepiece"
    model = Path(SACREBLEU_DIR) / "models" / _SPBLEU_MODEL
    if not model.is_file():
        return (
            f"its tokenizer needs the file {model}, which sacrebleu downloads: run sacrebleu once with "
            "--tokenize flores200, or use the metrics chrf and bleu"
        )
    return None


@functools.cache
def _metric(name: str) -> Any:
    if reason := unavailable(name):
        raise ConfigError(f"the metric {name!r} can't be computed", hint=reason)
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if name == "chrf":
        return CHRF()
    return BLEU(tokenize={"bleu": "13a", "spbleu": "flores200"}[name])
