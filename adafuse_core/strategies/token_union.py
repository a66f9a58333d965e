"""Token union: the members' next-token distributions are fused as texts, one token per round."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from adafuse_core.checks import expect_choice, expect_integer, expect_number
from adafuse_core.chooser import Chooser, pooled
from adafuse_core.fusion import Fusion
from adafuse_core.members.base import Prefix, WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, Draft, DraftPlan, NextToken, Round, Score, Span
from adafuse_core.strategies.base import Limits, Needs, Strategy
from adafuse_core.strategies.token_votes import fused_distribution, nll, normalised

_GREEDY_WORD = DraftPlan(tau=0.0, max_words=1, branches=1)


@dataclass(frozen=True, kw_only=True)
class TokenUnion(Strategy):
    """The members' distributions of the next token are fused as texts, and the likeliest text is committed.

    Each round: the texts of the members' next tokens are united; each member's probabilities of these texts are
    normalised to sum to one; their mean, weighted by the members' weights, is the fused distribution. With a
    temperature, a text is sampled from it (raised to the power 1 / temperature), otherwise the likeliest is committed.
    The end of the answer is one of the texts. A member keeps its own token for a committed text, if the text was one of
    its next tokens.

    With `union="top"` this is UniTE (arXiv 2410.03777). Departure: a text that isn't among a member's likeliest tokens
    gets the probability of all its tokens in this member's vocabulary; in UniTE, that of the first one. So a long text
    does not profit from a likely beginning. These tokens may start before the text: if the member would write the end
    of the answer and the text as one token, the probability is that of this token.

    With `union="full"` this is GaC (arXiv 2406.12585): whole distributions, and probability 0 for a text that isn't in
    a member's vocabulary. Departure: tokens whose texts are equal, and all end tokens, are added up.

    Token weights and model weights (`consistency`) are those of CoRE (arXiv 2510.13855); see `token_votes`.

    In a round, `values` and `fused` are negative logarithms (at most 100) of these normalised probabilities, of the
    members and of the fused distribution. `scores` have the log-probabilities of the texts' tokens, as in other
    strategies.

    Args:
        union: `"top"`: the likeliest tokens of each member (UniTE). `"full"`: the whole vocabularies (GaC), which takes
            much longer for a large vocabulary; a `gate` makes it rare.
        top_tokens: Number of likeliest tokens that each member contributes. With `union="full"`, only the number of
            texts that rounds show.
        gate: Highest probability (θ in GaC), 0..1, of the primary member's likeliest token at which distributions are
            fused; otherwise this token is committed, and other members compute nothing. At 1 they are always fused, at
            0 never.
        consistency: Strength (β in CoRE), at least 0, with which probabilities that differ from the members' mean are
            reduced. Above 0, the weight of a member is also multiplied by its agreement with the mean and its
            certainty, and that of the primary one by at least as much as any other. At 0, the weights are those of the
            config.
        primary: Name of the primary member. Default: the first member.
    """

    name: ClassVar[str] = "token_union"
    paper: ClassVar[str] = "arXiv 2410.03777 (UniTE), 2406.12585 (GaC), 2510.13855 (CoRE)"

    union: str = "top"
    top_tokens: int = 10
    gate: float = 1.0
    consistency: float = 0.0
    primary: str | None = None

    def __post_init__(self) -> None:
        expect_choice("union", self.union, ("top", "full"))
        expect_integer("top_tokens", self.top_tokens, at_least=1)
        expect_number("gate", self.gate, at_least=0.0, at_most=1.0)
        expect_number("consistency", self.consistency, at_least=0.0)

    @property
    def needs(self) -> Needs:
        """The likeliest tokens, or whole distributions."""
        full = self.union == "full"
        return Needs(top=2 if full else max(2, self.top_tokens), full_distribution=full)

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if there is no member with the primary member's name."""
        if self.primary is not None:
            expect_choice("primary", self.primary, names)

    def has_choice(self, members: int) -> bool:
        """False if distributions are never fused, or one member contributes one token."""
        return self.gate > 0 and (self.union == "full" or members * self.top_tokens > 1)

    @property
    def fusion(self) -> Fusion:
        """The mean of the members' probabilities of whole texts, for scores outside of `rounds`."""
        return Fusion(scoring="sum", pool="linear")

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """One token per round: the primary member's if it is certain, otherwise the choice of all members."""
        primary = next(at for at, prefix in enumerate(prefixes) if self.primary in (None, prefix.name))
        while True:
            played = self._certain(prefixes[primary]) or self._fused(prefixes, chooser, primary)
            if played is None:  # no likely token has text
                played = _lone(prefixes[primary].draft(_GREEDY_WORD))
            yield played

    def _certain(self, primary: Prefix) -> Round | None:
        """A round with the primary member's likeliest token, if its probability is above the gate."""
        if self.gate == 1:
            return None
        tokens = primary.next_tokens(2)
        if not tokens or math.exp(tokens[0].logprob) <= self.gate:
            return None
        return _lone(_draft(primary.name, tokens, 1))

    def _fused(self, prefixes: Prefixes, chooser: Chooser, primary: int) -> Round | None:
        """A round with the fused distribution; None if no likely token has text."""
        count = None if self.union == "full" else self.top_tokens
        found = prefixes.each(lambda prefix: prefix.next_tokens(count))
        if not any(found):
            return None
        texts = list(dict.fromkeys(token.span for tokens in found for token in tokens))
        scores = {} if self.union == "full" else _scored(texts, prefixes)
        rows = [_probabilities(list(scores) or texts, tokens, at, scores) for at, tokens in enumerate(found)]
        fused = fused_distribution(rows, chooser.weights, self.consistency, primary)
        union = _Union(texts=list(scores) or texts, rows=rows, values=list(map(nll, fused)))
        chosen = union.choose(prefixes, chooser)
        names = [prefix.name for prefix in prefixes]
        drafts = [_draft(name, tokens, self.top_tokens) for name, tokens in zip(names, found, strict=True)]
        shown = union.likeliest(self.top_tokens, chosen)
        scores = scores or _scored([union.texts[at] for at in shown], prefixes)
        return union.round(drafts, scores, chosen, shown)


@dataclass(frozen=True, kw_only=True)
class _Union:
    """The texts of one round with their probabilities."""

    texts: Sequence[Span]
    rows: Sequence[Sequence[float]]  # [members][texts], probabilities
    values: Sequence[float]  # [texts], negative logarithm of the fused probability

    def choose(self, prefixes: Prefixes, chooser: Chooser) -> int:
        """Index of the chosen text, among those that fit into all context windows. Raises `WindowFull`."""
        chosen = chooser.choose(self.values)
        if prefixes.fit(self.texts[chosen]):
            return chosen
        fitting = [at for at, span in enumerate(self.texts) if prefixes.fit(span)]
        if not fitting:
            raise WindowFull
        return fitting[chooser.choose([self.values[at] for at in fitting])]

    def likeliest(self, count: int, chosen: int) -> list[int]:
        """Indices of the likeliest texts, likeliest first, and of the chosen one."""
        ranked = heapq.nsmallest(count, range(len(self.values)), key=self.values.__getitem__)
        return ranked if chosen in ranked else [*ranked, chosen]

    def round(
        self, drafts: Sequence[Draft], scores: Mapping[Span, tuple[Score, ...]], chosen: int, shown: Sequence[int]
    ) -> Round:
        """A round with the shown texts that have scores, among them the chosen one."""
        shown = [at for at in shown if self.texts[at] in scores]
        return Round(
            drafts=tuple(drafts),
            candidates=tuple(Candidate(span=self.texts[at], proposers=self._proposers(at, drafts)) for at in shown),
            scores=tuple(scores[self.texts[at]] for at in shown),
            values=tuple(tuple(nll(row[at]) for row in self.rows) for at in shown),
            fused=tuple(self.values[at] for at in shown),
            chosen=shown.index(chosen),
        )

    def _proposers(self, at: int, drafts: Sequence[Draft]) -> tuple[str, ...]:
        """The members that have a text among their likeliest tokens, or else in their vocabulary."""
        likely = tuple(draft.member for draft in drafts if self.texts[at] in draft.spans)
        return likely or tuple(draft.member for draft, row in zip(drafts, self.rows, strict=True) if row[at] > 0)


def _scored(texts: Sequence[Span], prefixes: Prefixes) -> dict[Span, tuple[Score, ...]]:
    """The members' scores of the texts that fit into all context windows. Raises `WindowFull` if none does."""
    fitting = [span for span in texts if prefixes.fit(span)]
    if not fitting:
        raise WindowFull
    return dict(zip(fitting, prefixes.score(fitting), strict=True))


def _probabilities(
    texts: Sequence[Span], tokens: Sequence[NextToken], member: int, scores: Mapping[Span, tuple[Score, ...]]
) -> list[float]:
    """One member's probabilities of the texts: of its next tokens, else of its scores, else 0; normalised."""
    known = {span: -row[member].nll for span, row in scores.items()} | {each.span: each.logprob for each in tokens}
    return normalised([known.get(span, -math.inf) for span in texts])


def _draft(member: str, tokens: Sequence[NextToken], count: int) -> Draft:
    """A member's likeliest tokens."""
    likely = [math.exp(token.logprob) for token in tokens[:2]] + [0.0, 0.0]
    return Draft(member=member, spans=tuple(token.span for token in tokens[:count]), margins=(likely[0] - likely[1],))


def _lone(draft: Draft) -> Round:
    """A round with one member's only proposal."""
    return Round(drafts=(draft,), candidates=pooled((draft,)))
