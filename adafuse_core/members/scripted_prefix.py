"""The answer of a scripted member: drafts and scores that follow a script."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from typing import Protocol

from adafuse_core.chat.guide import Guide
from adafuse_core.errors import CancelledError, MemberError
from adafuse_core.members.base import EMPTY_SPAN, WindowFull
from adafuse_core.members.script import RULE, Script, count_words, word_ends
from adafuse_core.rounds import Draft, DraftPlan, NextToken, Score, Span
from adafuse_core.text.stop_strings import cut_after_stop, first_stop

ON_SCRIPT_NLL, OFF_SCRIPT_NLL = 0.125, 5.0  # per word of a span that continues the script, and of any other span


class Settings(Protocol):
    """What a scripted member tells its answers."""

    name: str
    weight: float
    place: str
    margin: float
    alternatives: tuple[str, ...]
    logprobs: dict[str, Sequence[float]]
    delay: float
    fail_after: int | None

    @property
    def context_window(self) -> int | None:
        """Maximum number of words in prompt and answer; None if unbounded."""

    def count_draft(self) -> None:
        """Called at each draft."""


class ScriptedPrefix:
    """The prefix of a scripted member."""

    thinking = None

    def __init__(
        self,
        member: Settings,
        script: Script,
        prompt_tokens: int,
        cancel: threading.Event,
        guide: Guide | None,
    ) -> None:
        self.name = member.name
        self.weight = member.weight
        self.place = member.place
        self._member = member
        self._script = script
        self._cancel = cancel
        self._guide = guide
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._text = ""
        self._rounds = 0

    @property
    def text(self) -> str:
        """The committed text."""
        return self._text

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt; see `ScriptedMember.count_tokens`."""
        return self._prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Number of words in the committed text."""
        return self._completion_tokens

    @property
    def cached_tokens(self) -> int:
        """Always 0."""
        return 0

    @property
    def read_tokens(self) -> int:
        """Words of prompt and committed text."""
        return self._prompt_tokens + self._completion_tokens

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = (), after: Span = EMPTY_SPAN) -> Draft:
        """The next words of the script, up to the first word that completes a stop string.

        Where the margin is too low: one word and the alternatives, each half as likely as the previous one.

        Raises:
            WindowFull: The context window has no room for another word.
            CancelledError: The generation was cancelled.
            MemberError: `fail_after` rounds were drafted, or the script violates the grammar.
        """
        self._cancel.wait(self._member.delay)
        self._check_cancel()
        self._member.count_draft()
        if self._member.fail_after is not None and self._rounds >= self._member.fail_after:
            raise MemberError("scripted failure", member=self.name)
        self._rounds += 1
        uncertain = self._member.margin < plan.tau
        own = self._words_after(after, plan, 1 if uncertain else plan.max_words)
        spans = [_joined(after, own)]
        if not self._allows(spans[0]):
            raise MemberError(
                f"the script continues with {own} after {self._text[-60:]!r}; the answer's grammar does not allow this",
                member=self.name,
                hint="write JSON as json.dumps does, and calls in the form that Ensemble.stream describes",
                retryable=False,
            )
        if uncertain:
            more = [_joined(after, Span(text=text)) for text in self._member.alternatives if text != own.text]
            spans += [span for span in more if self._allows(span) and self._is_tried(span, after, plan)]
        margins = (self._member.margin,) * max(1, count_words(own.text))
        likely = [span for rank, span in enumerate(spans[: plan.branches]) if 0.5**rank >= plan.branch_floor]
        if not plan.look_ahead:
            return Draft(member=self.name, spans=tuple(likely), margins=margins)
        longer = [self._longer(span, after, plan, plan.commit_words) for span in likely]
        ahead = [self._longer(span, after, plan, plan.look_ahead) for span in likely]
        return Draft(member=self.name, spans=tuple(longer), margins=margins, ahead=tuple(ahead))

    def _is_tried(self, alternative: Span, after: Span, plan: DraftPlan) -> bool:
        """Whether an alternative may be proposed although it is less likely than the word of the script."""
        added = alternative.text[len(after.text) :]
        return plan.unlikely_ends or first_stop(self._text + after.text, added, plan.stop) is None

    def draft_each(self, plan: DraftPlan, afters: Sequence[Span], hints: Sequence[Span] = ()) -> list[Draft | None]:
        """A draft after each span; see `draft`."""

        def drafted(after: Span) -> Draft | None:
            try:
                return self.draft(plan, hints, after)
            except WindowFull:
                return None

        return [drafted(after) for after in afters]

    def next_tokens(self, count: int | None = None, after: Span = EMPTY_SPAN) -> tuple[NextToken, ...]:
        """The next word of the script and the alternatives, each half as likely as the previous one."""
        self._check_cancel()
        self._remaining_after(after)
        own = self._script.next_words(self._text + after.text, 1)
        texts = [own, *(Span(text=text) for text in self._member.alternatives if text != own.text)]
        tokens = [NextToken(span=span, logprob=-math.log(2) * (rank + 1)) for rank, span in enumerate(texts)]
        return tuple(tokens[:count])

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether the context window has room; see `Prefix.fits`."""
        return self.cost(span, closing) <= self._remaining()

    def score(self, spans: Sequence[Span]) -> list[Score]:
        """`ON_SCRIPT_NLL` per word of a span that continues the script, `OFF_SCRIPT_NLL` per word of any other span."""
        self._check_cancel()
        return [self._score(span) for span in spans]

    def score_prompt(self, size: int) -> Score:
        """`ON_SCRIPT_NLL` for each word of the prompt, whatever `size` is. A word counts as one byte here."""
        words = self._prompt_tokens
        return Score(member=self.name, logprobs=(-ON_SCRIPT_NLL,) * words, words=words, bytes=words, word_ends=())

    def commit(self, span: Span) -> None:
        """Append the span to the committed text."""
        self._text += span.text
        self._guide = self._guide and self._guide.after(span.text)
        self._completion_tokens += count_words(span.text)

    def cost(self, span: Span, closing: str = "") -> int:
        """Number of words in the span and a closing text."""
        return count_words(span.text) + count_words(closing)

    def truncate(self, span: Span, tokens: int) -> Span:
        """The first `tokens` words of the span."""
        ends = RULE.ends(span.text, final=True)
        return span if len(ends) <= tokens else Span(text=span.text[: ends[tokens - 1]] if tokens > 0 else "")

    def close(self) -> None:
        """Nothing to free."""

    def _score(self, span: Span) -> Score:
        nll = ON_SCRIPT_NLL if self._script.continues(self._text, span) else OFF_SCRIPT_NLL
        starts = [0, *word_ends(span.text)]
        words = [span.text[start:end] for start, end in itertools.pairwise(starts)] + [""] * span.ends
        tokens = [tuple(self._member.logprobs.get(word.strip(), (-nll,))) for word in words]
        return Score(
            member=self.name,
            logprobs=tuple(itertools.chain(*tokens)),
            words=len(words),
            bytes=len(span.text.encode()) + span.ends,
            word_ends=tuple(itertools.accumulate(map(len, tokens))),
        )

    def _words_after(self, after: Span, plan: DraftPlan, words: int | None) -> Span:
        """The script's words after committed and uncommitted text, within the limits of a plan."""
        bounds = [bound for bound in (words, plan.max_tokens, self._remaining_after(after)) if bound is not None]
        text = self._text + after.text
        span = self._script.next_words(text, min(bounds))
        kept = max(map(len, plan.stop), default=1) - 1
        before = text[len(text) - kept :] if kept else ""
        for end in word_ends(span.text)[:-1]:
            if any(stop in before + span.text[:end] for stop in plan.stop):
                return Span(text=span.text[:end])
        return span

    def _longer(self, span: Span, after: Span, plan: DraftPlan, words: int) -> Span:
        """The span continued to a number of words, if the plan looks ahead."""
        missing = min(words, plan.look_ahead) - count_words(span.text[len(after.text) :])
        stopped = any(stop in self._text + span.text for stop in plan.stop)
        if missing <= 0 or span.ends or stopped or self._remaining() <= count_words(span.text):
            return span
        text = _joined(span, self._words_after(span, plan, missing)).text[len(after.text) :]
        return _joined(after, Span(text=cut_after_stop(self._text + after.text, text, plan.stop)))

    def _allows(self, span: Span) -> bool:
        if self._guide is None:
            return True
        after = self._guide.after(span.text)
        return after is not None and (after.may_end or not span.ends)

    def _remaining_after(self, after: Span) -> int:
        """Number of words that still fit into the context window; raises `WindowFull` if it is 0."""
        if (room := self._remaining() - count_words(after.text)) <= 0:
            raise WindowFull
        return room

    def _remaining(self) -> int:
        if self._member.context_window is None:
            return 1 << 30
        return self._member.context_window - self._prompt_tokens - self._completion_tokens

    def _check_cancel(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("the generation was cancelled", member=self.name)


def _joined(after: Span, span: Span) -> Span:
    return Span(text=after.text + span.text, ends=span.ends)
