"""One member's view of prompt and committed text, written once for every backend. See `members.base` for the contract.

Texts are turned into ids by `text.tokens`, words are found by `members.writer` and drafted by `members.drafting`; the
backend only ever sees ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from adafuse_core.backends.base import Session
from adafuse_core.members.base import NOTHING, WindowFull
from adafuse_core.members.blame import Blame
from adafuse_core.members.drafting import Drafter
from adafuse_core.members.masks import Masks
from adafuse_core.members.prompts import Encoded
from adafuse_core.members.writer import Writer
from adafuse_core.rounds import Draft, DraftPlan, NextToken, Score, Span
from adafuse_core.text.ids import Ids, shared_length
from adafuse_core.text.tokens import INCOMPLETE
from adafuse_core.text.words import WordRule

_SETTLED = 16  # tokens with a part of a character that are completed when the next token is asked for
_UNBOUNDED = 1 << 30  # tokens


class ModelPrefix:
    """Prompt and committed text as one member's ids.

    The member keeps the ids it wrote itself where its own draft was committed; text by others is
    encoded. So one member alone decodes exactly as its own greedy search does.

    Args:
        name: The member's.
        weight: Of its vote.
        place: Where it computes.
        session: The backend's, opened with the prompt.
        prompt: In the member's tokens.
        rule: Where words end.
        end_ids: Tokens that end an answer.
        vocab_size: Token ids that the model knows.
        longest: Most tokens of prompt and answer; None if unbounded.
        max_word_tokens: Where a word without end is cut.
        masks: What a grammar allows; None for everything.
    """

    def __init__(
        self,
        *,
        name: str,
        weight: float,
        place: str,
        session: Session,
        prompt: Encoded,
        rule: WordRule,
        end_ids: frozenset[int],
        vocab_size: int,
        longest: int | None,
        max_word_tokens: int,
        masks: Masks | None,
    ) -> None:
        self.name = name
        self.weight = weight
        self.place = place
        self.thinking = prompt.thinking
        self._session = session
        self._section = prompt.section
        self._rule = rule
        self._end_ids = end_ids
        self._vocab_size = vocab_size
        self._longest = _UNBOUNDED if longest is None else longest
        self._max_word_tokens = max_word_tokens
        self._masks = masks
        self._ids = prompt.ids  # prompt and answer
        self._prompt_length = len(prompt.ids)
        self._text = ""  # of the answer
        self._drafted: dict[Span, Ids] = {}  # own ids of prompt, answer and each of this round's spans
        self._decoded: dict[str, dict[Ids, str]] = {}  # texts of ids after answer and uncommitted text, of this round
        self._written: dict[str, tuple[Ids, Ids]] = {}  # how texts of this round are written after the answer

    @property
    def text(self) -> str:
        """The committed text."""
        return self._text

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in own tokens."""
        return self._prompt_length

    @property
    def completion_tokens(self) -> int:
        """Length of the committed text in own tokens."""
        return max(0, len(self._ids) - self._prompt_length)

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = (), after: Span = NOTHING) -> Draft:
        """Write words while confident, branch at the first unsure one; see `Prefix.draft`."""
        with self._blame("drafting"):
            drafter = self._drafter(after, self._ahead(hints))
            proposals, margins = drafter.draft(plan)
            spans: list[Span] = []
            for proposal in proposals:
                spans.append(Span(text=after.text + drafter.decode(proposal.ids), ends=proposal.ends))
                self._drafted.setdefault(spans[-1], drafter.context + proposal.ids)
            return Draft(member=self.name, spans=tuple(spans), margins=tuple(margins))

    def next_tokens(self, count: int | None = None, after: Span = NOTHING) -> tuple[NextToken, ...]:
        """What may come next, likeliest first; see `Prefix.next_tokens`."""
        with self._blame("looking ahead"):
            drafter = self._drafter(after, ())
            context, top = drafter.context, count or self._vocab_size
            ((step,),) = self._session.draft([context], 1, top, lambda *_: True)
            logprobs = dict(zip(step.ids, step.logprobs, strict=True))
            halves = {token: None for token in step.ids if self._holds_half_a_character(drafter, token)}
            found: list[tuple[Ids, float]]
            found = [((token,), value) for token, value in logprobs.items() if token not in halves]
            settled = drafter.settle([*halves][:_SETTLED])
            found += [(ids, logprobs[ids[0]] + further) for ids, further in settled]
            merged: dict[Span, list[float]] = {}
            for ids, value in found:
                span = Span(text="", ends=True) if ids[-1] in self._end_ids else Span(text=drafter.decode(ids))
                if span.text or span.ends:
                    merged.setdefault(span, []).append(value)
            tokens = [NextToken(span=span, logprob=_logsumexp(values)) for span, values in merged.items()]
            return tuple(sorted(tokens, key=lambda token: -token.logprob))

    def score(self, spans: Sequence[Span]) -> list[Score]:
        """Log-probabilities of each span: of the ids of answer plus span from the first that differs."""
        with self._blame("scoring"):
            ends = sorted(self._end_ids)
            requests: list[tuple[Ids, Ids]] = []
            for span in spans:
                context, ids = self._write(span.text)
                requests += [(context, (*ids, end)) for end in ends] if span.ends else [(context, ids)]
            contexts, continuations = zip(*requests, strict=True)
            answers = iter(self._session.score(contexts, continuations, self._ahead(spans)))
            variants = [[next(answers) for _ in (ends if span.ends else "1")] for span in spans]
            return [self._score(span, *found) for span, found in zip(spans, variants, strict=True)]

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether there is room for the span, as it would be scored and as it would be committed."""
        context, ids = self._write(span.text)
        return max(len(context) + len(ids) + span.ends, len(self._ids_closed(span, closing))) <= self._longest

    def commit(self, span: Span) -> None:
        """Extend the committed text."""
        with self._blame("committing"):
            self._ids = self._ids_after(span)
            self._text += span.text
            self._drafted, self._decoded, self._written = {}, {}, {}
            if self._masks is not None:
                self._masks.commit(self._ids, span.text)
            self._session.commit(self._ids)

    def cost(self, span: Span, closing: str = "") -> int:
        """Tokens by which committing the span, and a closing text after it, would lengthen the ids."""
        return len(self._ids_closed(span, closing)) - len(self._ids)

    def clip(self, span: Span, tokens: int) -> Span:
        """The longest beginning of the span that takes at most so many tokens; whole characters only."""
        ids = self._ids_after(span)
        excess = len(ids) - len(self._ids) - tokens
        if excess <= 0:
            return span
        kept = shared_length(self._ids, ids)
        seam = self._section.decode(
            ids[:kept], self._ids[kept:], starts_answer=False
        )  # what a straddling token rewrites
        for length in range(len(ids) - excess, kept, -1):
            text = self._section.decode(ids[:kept], ids[kept:length], starts_answer=not self._text)
            if text.startswith(seam) and span.text.startswith(text[len(seam) :]):
                clipped = Span(text=text[len(seam) :])
                if kept == len(self._ids):
                    self._drafted.setdefault(clipped, ids[:length])
                return clipped
        return Span(text="")

    def close(self) -> None:
        """Free the memory. May be called twice."""
        self._session.close()

    def _drafter(self, after: Span, guesses: Sequence[Ids]) -> Drafter:
        """Continues the answer and an uncommitted span."""
        assert not after.ends, "nothing follows the end of an answer"
        context, text = self._ids_after(after) if after.text else self._ids, self._text + after.text
        room = self._longest - len(context)
        if room <= 0:
            raise WindowFull

        decoded = self._decoded.setdefault(after.text, {})

        def decode(ids: Ids) -> str:
            if ids not in decoded:
                decoded[ids] = self._section.decode(context, ids, starts_answer=not text)
            return decoded[ids]

        return Drafter(
            session=self._session,
            context=context,
            decode=decode,
            before=text,
            new_writer=lambda start: Writer(decode, self._rule, self._end_ids, self._max_word_tokens, start),
            end_ids=self._end_ids,
            max_word_tokens=self._max_word_tokens,
            room=room,
            may_be_blank=self._masks is None,
            guesses=guesses,
        )

    def _holds_half_a_character(self, drafter: Drafter, token: int) -> bool:
        return token not in self._end_ids and drafter.decode((token,)).endswith(INCOMPLETE)

    def _score(self, span: Span, *variants: Sequence[float]) -> Score:
        """The score of a span; variants differ in their last token: one end token or another, as one event."""
        logprobs = list(variants[0])
        if len(variants) > 1:
            logprobs[-1] = _logsumexp([variant[-1] for variant in variants])
        return Score(
            member=self.name,
            logprobs=tuple(logprobs),
            words=len(self._rule.ends(span.text, final=True)) + span.ends,
            bytes=len(self._scored_text(span).encode()) + span.ends,
        )

    def _scored_text(self, span: Span) -> str:
        """The text of the tokens that a span's score counts."""
        context, ids = self._write(span.text)
        if context is self._ids:
            return span.text
        text, whole = self._section.decode(context, ids, starts_answer=not self._text), self._text + span.text
        if text.startswith(INCOMPLETE) and not whole.endswith(text):  # they begin inside a character
            return whole[-len(text.lstrip(INCOMPLETE)) - 1 :]
        return text

    def _ids_after(self, span: Span) -> Ids:
        drafted = self._drafted.get(span)
        if drafted is not None:
            return drafted
        context, ids = self._write(span.text)
        return context + ids

    def _ids_closed(self, span: Span, closing: str) -> Ids:
        ids = self._ids_after(span)
        if not closing:
            return ids
        context, more = self._section.extend(ids, self._text + span.text, closing)
        return context + more

    def _write(self, text: str) -> tuple[Ids, Ids]:
        """Where and how a text is written after the answer; see `Section.extend`."""
        if text not in self._written:
            self._written[text] = self._section.extend(self._ids, self._text, text)
        return self._written[text]

    def _ahead(self, spans: Sequence[Span]) -> list[Ids]:
        """Contexts that end with spans which may be committed: the next round begins after one of them."""
        contexts = [context + ids for context, ids in (self._write(span.text) for span in spans)]
        return [context for context in contexts if len(context) <= self._longest]

    def _blame(self, work: str) -> Blame:
        return Blame(self.name, work)


def _logsumexp(logprobs: Sequence[float]) -> float:
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))
