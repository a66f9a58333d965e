"""Metrics: what an answer is worth, beside the accepted answers of its question. A table.

A metric turns each answer into a row of statistics, and the sum of all rows into a score from 0 to 100. Metrics of
single answers (`share`, `mean`) are averaged; metrics of a whole set (`corpus`), such as BLEU, add up counts.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from adafuse_core.evaluation import translation
from adafuse_core.evaluation.statistics import Estimate, bootstrap, mean_of_sums, wilson

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A minus sign belongs to a number unless it stands between two values, as in "5-7" or "(3)-2".
# An exponent of up to three digits belongs to it, too: no quantity has more.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?<![\d.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\w|\.\d))?")

Golds = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Args:
        name: Name in tasks, results and options.
        title: Name in tables.
        kind: `"share"` (an answer is right or wrong), `"mean"` (a number per answer), or `"corpus"`.
        meaning: One sentence for reports.
        rows: Statistics of each answer: `rows(answers, golds)` gives `[answers][statistics]`.
        score: The score of summed statistics, 0..100.
        unavailable: Says why the metric can't be computed here; None if it can.
    """

    name: str
    title: str
    kind: str
    meaning: str
    rows: Callable[[Sequence[str], Sequence[Golds]], list[Any]]
    score: Callable[[Any], float]
    unavailable: Callable[[], str | None] = lambda: None

    def of(self, answer: str, golds: Golds) -> float:
        """The score of one answer, 0..100."""
        return float(self.score(self.rows([answer], [golds])[0]))

    def estimate(self, rows: Sequence[Any]) -> Estimate:
        """The score of all answers, with Wilson's interval for shares and a bootstrap interval otherwise."""
        if self.kind == "share":
            return wilson(round(sum(row[0] for row in rows) / 100), len(rows)).scaled(100)
        return bootstrap(rows, self.score)


def normalized(text: str) -> str:
    """A text as SQuAD's scorer compares it: lower case, without ASCII punctuation, articles and extra blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Golds) -> bool:
    """Whether the answer equals an accepted answer after normalization."""
    return normalized(answer) in {normalized(gold) for gold in golds}


def f1(answer: str, golds: Golds) -> float:
    """Best harmonic mean of precision and recall of the normalized words, over the accepted answers; 0..1."""
    return max(_overlap(normalized(answer).split(), normalized(gold).split()) for gold in golds)


def lenient(answer: str, golds: Golds) -> bool:
    """Whether the normalized answer contains a normalized accepted answer, even inside a word.

    Published evaluation scripts of this family of methods count such answers as correct. Answers that list many names,
    or that go on after the answer, profit from it.
    """
    said = normalized(answer)
    return any(said == gold or (gold != "" and gold in said) for gold in map(normalized, golds))


def numeric(answer: str, golds: Golds) -> bool:
    """Whether the last number of the answer equals the last number of an accepted answer."""
    said = last_number(answer)
    return said is not None and said in {last_number(gold) for gold in golds}


def lenient_numeric(answer: str, golds: Golds) -> bool:
    """Whether the digits of the answer's last number are a part of those of an accepted one: 8 counts as 18.

    Published evaluation scripts of this family of methods compare numbers like this.
    """
    said = last_number(answer)
    expected = [number for gold in golds if (number := last_number(gold)) is not None]
    return said is not None and any(_digits(said) in _digits(number) for number in expected)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, with commas between thousands left out; None if there is none."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text).replace("−", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def per_answer(name: str, title: str, kind: str, meaning: str, value: Callable[[str, Golds], float]) -> Metric:
    """A metric that is the mean of a value of each answer, from 0 to 1."""

    def rows(answers: Sequence[str], golds: Sequence[Golds]) -> list[Any]:
        return [(100.0 * value(answer, accepted), 1.0) for answer, accepted in zip(answers, golds, strict=True)]

    return Metric(name=name, title=title, kind=kind, meaning=meaning, rows=rows, score=mean_of_sums)


def _overlap(said: Sequence[str], gold: Sequence[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    shared = sum((Counter(said) & Counter(gold)).values())
    return 2 * shared / (len(said) + len(gold))


def _digits(number: Decimal) -> str:
    """A number without sign, and without zeros after the decimal point."""
    return f"{abs(number).normalize():f}"


def _translated(name: str, title: str, meaning: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        kind="corpus",
        meaning=meaning,
        rows=lambda answers, golds: translation.rows(name, answers, golds),
        score=lambda sums: translation.score(name, sums),
        unavailable=lambda: translation.unavailable(name),
    )


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        per_answer(
            "exact", "exact match", "share", "Equal to an accepted answer after SQuAD's normalization.", exact_match
        ),
        per_answer("f1", "F1", "mean", "Overlap of words with the nearest accepted answer.", f1),
        per_answer(
            "lenient",
            "lenient",
            "share",
            "Contains an accepted answer, as published scripts of this family of methods count it; not comparable with "
            "exact match.",
            lenient,
        ),
        per_answer("numeric", "numeric", "share", "The last number equals that of the accepted answer.", numeric),
        per_answer(
            "lenient_numeric",
            "lenient",
            "share",
            "The digits of the last number are a part of those of the accepted one, as published scripts of this "
            "family of methods count it; not comparable with numeric match.",
            lenient_numeric,
        ),
        _translated("chrf", "chrF", "Character n-grams (chrF2 of sacrebleu), over all answers."),
        _translated("bleu", "BLEU (13a)", "Word n-grams (BLEU of sacrebleu with tokenizer 13a), over all answers."),
        _translated("spbleu", "spBLEU", "Sentence piece n-grams (BLEU of sacrebleu with tokenizer flores200)."),
    )
}
