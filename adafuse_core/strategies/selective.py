"""Selective: one member drafts, the others verify, and only where they disagree all members decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from adafuse_core.checks import expect_choice, expect_integer
from adafuse_core.chooser import Chooser
from adafuse_core.members.base import Prefix
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, Draft, DraftPlan, Round, Span
from adafuse_core.strategies.base import CandidateStrategy, Limits, decided


@dataclass(frozen=True, kw_only=True)
class Selective(CandidateStrategy):
    """One member drafts some words greedily, and the others verify them in one pass each.

    A member verifies the draft by its own greedy draft, of which it reads the tokens in advance: the words that all
    members would write are committed without scores. At the first word that they disagree about, each member proposes
    its own greedy word, all score all proposals, and one is chosen, as in AdaFuse. Then the drafter goes on.

    This is the cycle of SAFE (arXiv 2510.15346): generate, verify, ensemble. Departures: the units are words instead of
    tokens. SAFE doesn't ensemble where a verifier would continue a token that its tokenizer writes differently; here,
    all words that are committed unscored end where a token of every member ends, and the members choose among whole
    words. SAFE also accepts a token if its mean probability is above 0.5; here, every member's likeliest token has to
    agree. SAFE sharpens an ensemble distribution that is too smooth; here, members choose among a few whole words, so
    there is no such distribution.

    With a temperature, a word is sampled where the members disagree; words that they agree about are committed anyway.

    Args:
        drafter: Name of the member that drafts. Default: the first member.
        draft_words: Number of words that it drafts. Words after a disagreement are drafted in vain.

    The other options are those of `CandidateStrategy`.
    """

    name: ClassVar[str] = "selective"
    paper: ClassVar[str] = "arXiv 2510.15346 (SAFE)"

    drafter: str | None = None
    draft_words: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_integer("draft_words", self.draft_words, at_least=1)

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if there is no member with the name of the drafter or the anchor."""
        super().check_members(names)
        if self.drafter is not None:
            expect_choice("drafter", self.drafter, names)

    def has_choice(self, members: int) -> bool:
        """True if there are members who can disagree."""
        return members > 1

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """The words that all members would write; then, where they disagree, the choice of one word."""
        drafter = next(at for at, prefix in enumerate(prefixes) if self.drafter in (None, prefix.name))
        while True:
            drafts = prefixes.draft_led_by(drafter, _greedy(self.draft_words))
            agreed = self._agreed(drafts, prefixes)
            if agreed is not None:
                names = tuple(draft.member for draft in drafts)
                yield Round(drafts=drafts, candidates=(Candidate(span=agreed, proposers=names),))
            if any(draft.spans != (agreed,) for draft in drafts):
                yield decided(prefixes.draft(_greedy(1)), prefixes, chooser)

    def _agreed(self, drafts: Sequence[Draft], prefixes: Prefixes) -> Span | None:
        """The longest beginning in whole words that all members would write; None if they disagree at once."""
        texts = [set(draft.spans) for draft in drafts]
        if len(set.union(*texts)) > 1:
            texts = prefixes.each(self._beginnings)
        common = sorted(set.intersection(*texts), key=lambda span: (len(span.text), span.ends))
        return next((span for span in reversed(common) if prefixes.fit(span)), None)

    def _beginnings(self, prefix: Prefix) -> set[Span]:
        """The first words, the first two words, and so on, of a member's greedy draft, which it has read already."""
        return {span for words in range(1, self.draft_words + 1) for span in prefix.draft(_greedy(words)).spans}


def _greedy(words: int) -> DraftPlan:
    return DraftPlan(tau=0.0, max_words=words, branches=1)
