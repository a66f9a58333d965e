"""Log-probabilities of an answer, word by word: models with different tokenizers have no tokens in common.

The log-probability of a word is that of its tokens under each member, averaged over the members by the pool and the
weights of the ensemble. The alternatives of a word are the words that other candidates of its round have in its place,
after the same words.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adafuse_core.ensemble import Ensemble
from adafuse_core.fusion import Fusion
from adafuse_core.rounds import Round, Score
from adafuse_core.text.words import WhitespaceWords

_LOWEST = -9999.0  # in place of infinity, as in OpenAI's format
_RULE = WhitespaceWords()


class WordLogprobs:
    """Log-probabilities of the words of one answer.

    Args:
        ensemble: The ensemble that answers.
        top: Most alternatives of each word, the word itself among them.
    """

    def __init__(self, ensemble: Ensemble, top: int) -> None:
        self._fusion: Fusion = ensemble.config.strategy.fusion
        self._weights: Mapping[str, float] = {each.label: each.weight for each in ensemble.config.members}
        self._top = top
        self._characters = 0

    def chat(self, played: Round) -> list[dict[str, Any]]:
        """The words of a round in the format of chat completions."""
        entries = []
        for word, logprob, others in self._words(played):
            entry = {"token": word, "logprob": logprob, "bytes": list(word.encode())}
            top = [{"token": other, "logprob": each, "bytes": list(other.encode())} for other, each in others]
            entries.append({**entry, "top_logprobs": top})
        return entries

    def completion(self, rounds: Sequence[Round]) -> dict[str, Any]:
        """The words of further rounds in the format of completions."""
        lists: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for word, logprob, others in itertools.chain.from_iterable(map(self._words, rounds)):
            lists["tokens"].append(word)
            lists["token_logprobs"].append(logprob)
            lists["top_logprobs"].append(dict(others))
            lists["text_offset"].append(self._characters)
            self._characters += len(word)
        return lists if self._top else {**lists, "top_logprobs": None}

    def _words(self, played: Round) -> Iterator[tuple[str, float, list[tuple[str, float]]]]:
        """Each word of the committed text, with its log-probability and its alternatives, likeliest first."""
        words = _split(played.span.text)
        own = self._logprobs(played.span_scores)
        others = [
            (_split(candidate.scored.text), self._logprobs(scores))
            for candidate, scores in zip(played.candidates, played.scores, strict=False)
        ]
        for place, (word, logprob) in enumerate(zip(words, own, strict=False)):  # the end has no word
            found = {word: logprob}
            for texts, values in others:
                if place < len(texts) and texts[:place] == words[:place]:
                    found.setdefault(texts[place], values[place])
            ranked = sorted(found.items(), key=lambda each: each[1], reverse=True)
            yield word, logprob, ranked[: self._top]

    def _logprobs(self, scores: Sequence[Score]) -> list[float]:
        """The log-probability of each word of a span, averaged over the members."""
        weights = [self._weights[score.member] for score in scores]
        rows = zip(*(score.word_nlls for score in scores), strict=True)  # [words][members]
        return [max(_LOWEST, -self._fusion.average(row, weights)) for row in rows]


def _split(text: str) -> list[str]:
    """The words of a text; blanks after the last one belong to it."""
    ends = _RULE.ends(text, final=True)[:-1]
    return [text[start:end] for start, end in itertools.pairwise((0, *ends, len(text)))] if text else []
