"""One member's view of prompt and committed text, for every backend. See `members.base` for the contract.

`text.tokens` encodes texts, `members.word_tracker` finds words and `members.drafting` drafts them; the backend only
sees token ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adafuse_core.backends.base import Session
from adafuse_core.errors import VocabularyError
from adafuse_core.members.base import EMPTY_SPAN, WindowFull
from adafuse_core.members.drafting import Drafter, Proposal, draft_each
from adafuse_core.members.error_context import ErrorContext
from adafuse_core.members.masks import Masks
from adafuse_core.members.prompts import Encoded
from adafuse_core.members.word_tracker import WordTracker
from adafuse_core.rounds import Draft, DraftPlan, NextToken, Score, Span
from adafuse_core.text.ids import Ids, shared_length
from adafuse_core.text.stop_strings import cut_after_stop
from adafuse_core.text.tokens import INCOMPLETE
from adafuse_core.text.words import WordRule

_MAX_PARTIAL = 16  # tokens without text, or with a part of a character, that `next_tokens` extends


@dataclass(kw_only=True, eq=False, repr=False)
class ModelPrefix:
    """Prompt and committed text as one member's ids.

    The ids of the member's own drafts and next tokens are kept when they are committed; the text of other members is
    encoded. So a single member decodes exactly as its own greedy search.
    """

    name: str
    weight: float
    place: str
    session: Session  # opened with the prompt
    prompt: Encoded
    rule: WordRule
    end_ids: frozenset[int]  # tokens that end an answer
    vocab_size: int  # number of token ids of the model
    max_context: int | None  # maximum number of tokens in prompt and answer; None if unbounded
    max_word_tokens: int
    masks: Masks | None  # token masks of a grammar

    def __post_init__(self) -> None:
        self.thinking = self.prompt.thinking
        self._section = self.prompt.section
        self._limit = 1 << 30 if self.max_context is None else self.max_context  # tokens
        self._ids = self.prompt.ids  # prompt and answer
        self._text = ""  # of the answer
        # Caches of this round:
        self._drafted_ids: dict[Span, Ids] = {}  # ids of prompt, answer and span as this member drafted them
        self._next_ids: dict[Span, Ids] = {}  # ids of the texts that `next_tokens` found
        self._decoded: dict[str, dict[Ids, str]] = {}  # by uncommitted text: texts of ids after it
        self._encoded: dict[str, tuple[Ids, Ids]] = {}  # by text: result of `_encode`

    @property
    def text(self) -> str:
        """The committed text."""
        return self._text

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in the member's tokens."""
        return len(self.prompt.ids)

    @property
    def completion_tokens(self) -> int:
        """Length of the committed text in the member's tokens."""
        return max(0, len(self._ids) - len(self.prompt.ids))

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not read."""
        return self.session.tokens().cached

    @property
    def read_tokens(self) -> int:
        """Tokens that the model has read."""
        return self.session.tokens().read

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = (), after: Span = EMPTY_SPAN) -> Draft:
        """Propose spans; see `Prefix.draft`."""
        (draft,) = self.draft_each(plan, [after], hints)
        if draft is None:
            raise WindowFull
        if not draft.spans:
            raise self._vocabulary_error()
        return draft

    def draft_each(self, plan: DraftPlan, afters: Sequence[Span], hints: Sequence[Span] = ()) -> list[Draft | None]:
        """Propose spans after several spans; see `Prefix.draft_each`."""
        with ErrorContext(self.name, "drafting"):
            drafters = {after: drafter for after in afters if (drafter := self._drafter(after)) is not None}
            found = draft_each(self.session, list(drafters.values()), plan, self._contexts_after(hints))
            drafts = {
                after: self._draft(after, drafter, plan, *proposed)
                for (after, drafter), proposed in zip(drafters.items(), found, strict=True)
                if proposed is not None
            }
            return [drafts.get(after) for after in afters]

    def _draft(
        self, after: Span, drafter: Drafter, plan: DraftPlan, proposals: Sequence[Proposal], margins: Sequence[float]
    ) -> Draft:
        """The draft of the proposals that a grammar allows, whose ids are kept in case one is committed."""
        spans: list[Span] = []
        longer: list[Proposal] = []
        for proposal in proposals:
            span = Span(text=after.text + drafter.decode(proposal.ids), ends=proposal.ends)
            if self.masks is None or self.masks.allows(span):
                spans.append(span)
                self._drafted_ids.setdefault(span, drafter.context + proposal.ids)
                longer += [proposal.ahead] if proposal.ahead else []
        texts = [cut_after_stop(drafter.before, drafter.decode(each.ids), plan.stop) for each in longer]
        ahead = [Span(text=after.text + text, ends=each.ends) for text, each in zip(texts, longer, strict=True)]
        return Draft(member=self.name, spans=tuple(spans), margins=tuple(margins), ahead=tuple(ahead))

    def next_tokens(self, count: int | None = None, after: Span = EMPTY_SPAN) -> tuple[NextToken, ...]:
        """The distribution of the next token; see `Prefix.next_tokens`."""
        with ErrorContext(self.name, "computing the next tokens"):
            drafter = self._drafter(after)
            if drafter is None:
                raise WindowFull
            (steps,) = self.session.draft([drafter.context], 1, count or self.vocab_size, lambda *_: True)
            if not steps:
                raise self._vocabulary_error()
            (step,) = steps
            logprobs = dict(zip(step.ids, step.logprobs, strict=True))
            unfinished = {
                token: None for token in step.ids if token not in self.end_ids and not drafter.is_text((token,))
            }
            found: list[tuple[Ids, float]]
            found = [((token,), value) for token, value in logprobs.items() if token not in unfinished]
            extended = drafter.extend_to_text([*unfinished][:_MAX_PARTIAL])
            found += [(ids, logprobs[ids[0]] + rest) for ids, rest in extended]
            merged: dict[Span, list[tuple[Ids, float]]] = {}
            for ids, value in found:
                span = Span(text="", ends=True) if ids[-1] in self.end_ids else Span(text=drafter.decode(ids))
                if self.masks is None or span.ends or self.masks.allows_tokens(ids, after.text, span.text):
                    merged.setdefault(span, []).append((ids, value))
            if self.masks is not None and not merged:
                raise self._vocabulary_error()
            if not after.text:
                self._next_ids = {span: _likeliest(each) for span, each in merged.items() if not span.ends}
            tokens = [
                NextToken(span=span, logprob=_logsumexp([value for _, value in each])) for span, each in merged.items()
            ]
            return tuple(sorted(tokens, key=lambda token: -token.logprob))

    def score(self, spans: Sequence[Span]) -> list[Score]:
        """Score the ids of answer and span from the first id that differs from the answer's; see `Prefix.score`."""
        with ErrorContext(self.name, "scoring"):
            ends = sorted(self.end_ids)
            requests: list[tuple[Ids, Ids]] = []
            for span in spans:
                context, ids = self._encode(span.text)
                requests += [(context, (*ids, end)) for end in ends] if span.ends else [(context, ids)]
            contexts, continuations = zip(*requests, strict=True)
            results = iter(self.session.score(contexts, continuations, self._contexts_after(spans)))
            variants = [[next(results) for _ in (ends if span.ends else "1")] for span in spans]
            return [self._score(span, *found) for span, found in zip(spans, variants, strict=True)]

    def score_prompt(self, size: int) -> Score:
        """Log-probabilities of the last prompt tokens; see `Prefix.score_prompt`."""
        with ErrorContext(self.name, "scoring the prompt"):
            ids = self.prompt.ids
            for count in range(1, len(ids)):
                text = self._section.decode(ids[:-count], ids[-count:], starts_answer=False)
                if len(text.encode()) >= size:
                    break
            else:
                count, text = len(ids) - 1, self._section.decode(ids[:1], ids[1:], starts_answer=False)
            ((*logprobs,),) = self.session.score([ids[:-count]], [ids[-count:]]) if count else ((),)
            words = len(self.rule.ends(text, final=True))
            size = len(text.encode())
            return Score(member=self.name, logprobs=tuple(logprobs), words=words, bytes=size, word_ends=())

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether there is room for the span, both for scoring and for committing it; see `Prefix.fits`."""
        context, ids = self._encode(span.text)
        return max(len(context) + len(ids) + span.ends, len(self._ids_after(span, closing))) <= self._limit

    def commit(self, span: Span) -> None:
        """Append the span to the committed text."""
        with ErrorContext(self.name, "committing"):
            self._ids = self._ids_after(span)
            self._text += span.text
            self._drafted_ids, self._next_ids, self._decoded, self._encoded = {}, {}, {}, {}
            if self.masks is not None:
                self.masks.commit(self._ids, span.text)
            self.session.commit(self._ids)

    def cost(self, span: Span, closing: str = "") -> int:
        """Number of tokens that committing would add; see `Prefix.cost`."""
        return len(self._ids_after(span, closing)) - len(self._ids)

    def truncate(self, span: Span, tokens: int) -> Span:
        """The longest beginning of the span, in whole characters, that costs at most `tokens` tokens."""
        ids = self._ids_after(span)
        excess = len(ids) - len(self._ids) - tokens
        if excess <= 0:
            return span
        kept = shared_length(self._ids, ids)
        # Committed text that a token straddling the end of the answer encodes again:
        overlap = self._section.decode(ids[:kept], self._ids[kept:], starts_answer=False)
        for length in range(len(ids) - excess, kept, -1):
            text = self._section.decode(ids[:kept], ids[kept:length], starts_answer=not self._text)
            if text.startswith(overlap) and span.text.startswith(text[len(overlap) :]):
                truncated = Span(text=text[len(overlap) :])
                if kept == len(self._ids):
                    self._drafted_ids.setdefault(truncated, ids[:length])
                return truncated
        return Span(text="")

    def close(self) -> None:
        """End the session. May be called twice."""
        self.session.close()

    def _vocabulary_error(self) -> VocabularyError:
        return VocabularyError(
            "its vocabulary has no token that the grammar allows here, or such tokens have another text together than "
            "one by one",
            member=self.name,
            hint="leave this member out, or ask for characters that its tokenizer can write",
        )

    def _drafter(self, after: Span) -> Drafter | None:
        """A drafter that continues the answer and an uncommitted span; None if the context window is full."""
        assert not after.ends, "an answer that has ended can't be continued"
        context, text = self._ids_after(after) if after.text else self._ids, self._text + after.text
        room = self._limit - len(context)
        if room <= 0:
            return None
        if self.masks is not None and after.text:
            self.masks.add(context, after.text)
        decoded = self._decoded.setdefault(after.text, {})

        def decode(ids: Ids) -> str:
            if ids not in decoded:
                decoded[ids] = self._section.decode(context, ids, starts_answer=not text)
            return decoded[ids]

        return Drafter(
            session=self.session,
            context=context,
            decode=decode,
            before=text,
            new_tracker=lambda start: WordTracker(decode, self.rule, self.end_ids, self.max_word_tokens, start),
            end_ids=self.end_ids,
            max_word_tokens=self.max_word_tokens,
            room=room,
            may_be_blank=self.masks is None,
        )

    def _score(self, span: Span, *variants: Sequence[float]) -> Score:
        """The score of a span. Variants differ in their last token, an end token; all end tokens are one event."""
        logprobs = list(variants[0])
        if len(variants) > 1:
            logprobs[-1] = _logsumexp([variant[-1] for variant in variants])
        ends = self.rule.ends(span.text, final=True)
        return Score(
            member=self.name,
            logprobs=tuple(logprobs),
            words=len(ends) + span.ends,
            bytes=len(self._scored_text(span).encode()) + span.ends,
            word_ends=(*self._tokens_up_to(span, ends), *[len(logprobs)] * span.ends),
        )

    def _tokens_up_to(self, span: Span, ends: Sequence[int]) -> list[int]:
        """For each end of a word, the number of the span's scored tokens up to it; for the last one, all of them."""
        context, ids = self._encode(span.text)
        if len(ends) < 2:
            return [len(ids)] * len(ends)
        starts = context is self._ids and not self._text
        texts = (self._section.decode(context, ids[:length], starts_answer=starts) for length in range(len(ids) + 1))
        lengths = [len(text.rstrip(INCOMPLETE)) for text in texts]
        before = lengths[-1] - len(span.text)  # characters of a token that straddles the start of the span
        counts = (next(n for n, length in enumerate(lengths) if length >= before + end) for end in ends[:-1])
        return [*counts, len(ids)]

    def _scored_text(self, span: Span) -> str:
        """The text of the tokens that are scored for a span."""
        context, ids = self._encode(span.text)
        if context is self._ids:
            return span.text
        text, whole = self._section.decode(context, ids, starts_answer=not self._text), self._text + span.text
        if text.startswith(INCOMPLETE) and not whole.endswith(text):  # the tokens start inside a character
            return whole[-len(text.lstrip(INCOMPLETE)) - 1 :]
        return text

    def _ids_after(self, span: Span, closing: str = "") -> Ids:
        """All ids after committing the span and a closing text."""
        ids = self._drafted_ids.get(span)
        if ids is None:
            own = self._next_ids.get(span)
            context, added = self._encode(span.text) if own is None else (self._ids, own)
            ids = context + added
        if closing:
            context, added = self._section.extend(ids, self._text + span.text, closing)
            ids = context + added
        return ids

    def _encode(self, text: str) -> tuple[Ids, Ids]:
        """Context and ids of a text after the answer; see `Section.extend`."""
        if text not in self._encoded:
            self._encoded[text] = self._section.extend(self._ids, self._text, text)
        return self._encoded[text]

    def _contexts_after(self, spans: Sequence[Span]) -> list[Ids]:
        """The contexts after each span, as guesses: the next round starts after one of them."""
        contexts = [context + ids for context, ids in (self._encode(span.text) for span in spans)]
        return [context for context in contexts if len(context) <= self._limit]


def _logsumexp(logprobs: Sequence[float]) -> float:
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))


def _likeliest(variants: Sequence[tuple[Ids, float]]) -> Ids:
    """The ids with the highest log-probability."""
    return max(variants, key=lambda variant: variant[1])[0]
