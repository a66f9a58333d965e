"""The plain implementation of beam search over words, by the oracle's members."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

from adafuse_core.rounds import Candidate, Round, Span
from tests.oracle import OracleEnsemble, first_stop


class OracleBeam(OracleEnsemble):
    """Beam search with the defaults of the library.

    A hypothesis is a tuple: the text of the answer, whether it ends, whether it is complete, and its words, each as the
    text up to its end, its proposers, and the drafts of all members at this place. Every word is a round of its own.
    """

    def __init__(self, members, *, beams=3, branches=3, horizon=8, tau=0.7, unlikely_ends=False, **rule):
        rule = {"scoring": "sum", "pool": "power", "pool_over": "word", **rule}
        if rule["pool"] == "power":
            rule = {"pool_exponent": 0.5, **rule}
        members = [copy.copy(member) for member in members]
        for member in members:
            member.unlikely_ends = unlikely_ends
        super().__init__(members, tau=tau, max_words=1, branches=branches, **rule)
        self.beams, self.horizon = beams, horizon

    def answer(self, prompt, *, stop=(), max_new_tokens, temperature=0.0, **given):
        self.until, self.budget, self.hypotheses, self.beaten = tuple(stop), max_new_tokens, [], []
        self.tails = {}  # texts from a stop string on, that members have proposed
        self.best, self.found = None, None  # the hypothesis that is being committed; those to choose from
        self.bounded = self.scoring == "sum" and temperature == 0
        return super().answer(prompt, stop=stop, max_new_tokens=max_new_tokens, temperature=temperature, **given)

    def proposed(self):
        self.done = self.members[0].text
        if forced := self.forced():
            return forced
        self.best = self.best and self.resumed(self.best)
        if self.best and self.best[3]:
            return self.round([self.best], whole=False)
        while True:
            self.hypotheses = [each for each in map(self.resumed, self.hypotheses) if each]
            self.extend()
            if all(complete for _, _, complete, _ in self.hypotheses) or self.longest() >= self.horizon:
                lost = [each for each in map(self.resumed, self.beaten) if each and each[2]]
                self.found = list(self.different([*self.hypotheses, *lost]).values())
                self.hypotheses, self.beaten = [], []
                return self.round(self.found)
            texts = {text for text, _, _, words in self.hypotheses for text in [self.common(text, words)]}
            if texts != {""}:
                (text,) = texts
                words = [word for word in self.hypotheses[0][3] if len(word[0]) <= len(text)]
                self.found = [(text, False, False, words)]
                return self.round(self.found, whole=False)

    def chosen(self, played, temperature, rng):
        played = super().chosen(played, temperature, rng)
        if self.found:
            self.best, self.found = self.found[played.chosen], None
            played = replace(played, drafts=self.best[3][0][2])
            if not self.hypotheses:
                self.tails = {}
        return played

    def longest(self):
        return max(len(words) for *_, words in self.hypotheses)

    def resumed(self, hypothesis):
        text, ends, complete, words = hypothesis
        if self.done.startswith(text) and not ends:  # also if the grammar forced more text
            return (self.done, False, False, [])
        left = [word for word in words if len(word[0]) > len(self.done)]
        return (text, ends, complete, left or words[-1:]) if text.startswith(self.done) else None

    def extend(self):
        hypotheses = self.hypotheses or [(self.done, False, False, [])]
        kept = [each for each in hypotheses if each[2]]
        found = []
        for text, _, complete, words in hypotheses:
            if complete:
                continue
            start, names, drafts = text[len(self.done) :], {}, []
            for member in self.members:
                draft = member.draft_after(start, *self.plan, math.inf, self.until, self.ahead["floor"])
                added = (replace(span, text=span.text[len(start) :]) for span in draft.spans)
                drafts.append(replace(draft, spans=tuple(added)))
                for span in draft.spans:
                    names.setdefault(span, {})[member.name] = None
            for span, proposers in names.items():
                longer = self.done + span.text
                full = bool(first_stop(longer, self.until)) or self.tokens(span) >= self.budget
                grown = (longer, span.ends, span.ends or full, [*words, (longer, tuple(proposers), tuple(drafts))])
                found.append(grown)
                if hit := first_stop(longer, self.until):
                    self.tails[longer[len(hit[0]) :]] = True
        different = list(self.different([*kept, *found]).values())
        kept, found = different[: len(kept)], {self.span(each): each for each in different[len(kept) :]}
        ended = [self.span(each) for each in (*kept, *found.values()) if each[2]]
        if len(found) > self.beams or (ended and self.bounded):
            found = dict(sorted(found.items(), key=lambda pair: self.total(pair[0]))[: self.beams])
        if ended and self.bounded:
            worse = [span for span in found if self.total(span) > min(map(self.total, ended))]
            self.beaten += [each for each in map(found.pop, worse) if each[2]]
        self.hypotheses = kept + list(found.values())

    def different(self, hypotheses):
        """The hypotheses without those that are the same answer up to a stop string; their proposers are counted."""
        found = {}
        for text, ends, complete, words in hypotheses:
            hit = first_stop(text, self.until)
            key = (hit[0], "stop") if hit else (text, ends)
            if key in found and len(found[key][3]) == len(words):
                *before, (end, names, drafts) = found[key][3]
                names = tuple(each.member for each in drafts if each.member in names + words[-1][1])
                found[key] = (*found[key][:3], [*before, (end, names, drafts)])
            found.setdefault(key, (text, ends, complete, words))
        return found

    def scores(self, span):
        """With a stop string: scores of the event that the answer stops there, whatever text follows."""
        hit = first_stop(self.done + span.text, self.until)
        if not hit:
            return super().scores(span)
        texts = [hit[0] + tail for tail in self.tails]
        spans = dict.fromkeys([span, *(Span(text=t[len(self.done) :]) for t in texts if t.startswith(self.done))])
        return tuple(self.event(member, list(spans)) for member in self.members)

    def event(self, member, spans):
        spans = [span for span in spans if member.score(span).words == member.score(spans[0]).words]
        ids = [[*context, *added] for context, added in map(member.ids_of, spans)]
        best = max((member.score(span) for span in spans), key=lambda score: sum(score.logprobs))
        chance = 0
        for span, own in zip(spans, ids, strict=True):
            if not any(len(other) < len(own) and own[: len(other)] == other for other in ids):
                chance += math.exp(sum(member.score(span).logprobs))
        *before, _ = best.logprobs
        return replace(best, logprobs=(*before, math.log(chance) - sum(before)))

    def span(self, hypothesis):
        text, ends, *_ = hypothesis
        return Span(text=text[len(self.done) :], ends=ends)

    def tokens(self, span):
        first = self.members[0]
        context, ids = first.ids_of(span)
        return len(context) + len(ids) - first.prompt_length

    def total(self, span):
        return self.fuse_row(self.scores(span), "sum")

    def common(self, text, words):
        """The longest beginning, in words, of this hypothesis that all others have, too."""
        for end, *_ in reversed(words):
            shared = all(end in [mark for mark, *_ in each] for *_, each in self.hypotheses)
            if shared and len(end) > len(self.done):
                return end
        return ""

    def round(self, found, whole=True):
        """A round with the first word of each hypothesis, scored with the rest of it if it is `whole`."""
        candidates = []
        for hypothesis in found:
            text, ends, _, ((first, proposers, drafts), *others) = hypothesis
            span = Span(text=first[len(self.done) :], ends=ends and not others)
            ahead = Span(text=text[len(self.done) :], ends=ends) if whole and others and len(found) > 1 else None
            candidates.append(Candidate(span=span, ahead=ahead, proposers=proposers))
        return Round(drafts=drafts, candidates=tuple(candidates))
