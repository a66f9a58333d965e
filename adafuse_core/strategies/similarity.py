"""How alike two answers are: whether they say the same, and how many character sequences they share."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

import regex

_ORDER = 6  # longest character n-gram
_BETA = 2.0  # weight of recall
_EDGES = regex.compile(r"^[\p{P}\p{S}\s]+|[\p{P}\p{S}\s]+$")


def normalised(text: str) -> str:
    """An answer without case, without punctuation at its ends, and with single blanks; compatible characters are equal.

    A text that consists of punctuation is kept.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _EDGES.sub("", words) or words


def chrf(text: str, reference: str) -> float:
    """Character n-gram F-score of a text, 0..1: chrF (Popović 2015) with n-grams of 1 to 6 characters, β = 2.

    Blanks are left out. Precision and recall are averaged over the lengths for which both texts have n-grams. Two texts
    without characters are equal.
    """
    found, expected = "".join(text.split()), "".join(reference.split())
    orders = range(1, min(_ORDER, len(found), len(expected)) + 1)
    if not orders:
        return float(found == expected)
    precision = recall = 0.0
    for order in orders:
        ours, theirs = _ngrams(found, order), _ngrams(expected, order)
        shared = (ours & theirs).total()
        precision += shared / ours.total() / len(orders)
        recall += shared / theirs.total() / len(orders)
    if math.isclose(precision + recall, 0.0, abs_tol=1e-12):
        return 0.0
    return (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
