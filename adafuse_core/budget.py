"""Cuts rounds to the token budget. With a grammar, the tokens for a valid end of the answer are reserved."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace

from adafuse_core.chat.guide import Guide
from adafuse_core.errors import ConfigError, ContextOverflowError, MemberError
from adafuse_core.members.base import Prefix
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, LibraryText, Round, Span
from adafuse_core.text.ids import shared_length

logger = logging.getLogger(__name__)

_SLACK = 4  # tokens: members may write the ending themselves in more tokens than its canonical encoding
_RESERVES = tuple(0.5**halvings for halvings in range(7))  # fractions of the sample values to reserve, largest first
_EMPTY_VALUES = re.compile(r'""|\[\]|\{\}')  # values of a short ending that the members may want to make longer
_SAMPLE_VALUE = " some" * 8  # sample text for one such value
_CUT_POINTS = re.compile(r"(?=[\s,\]}]|$)")  # never inside a number or word
_KEYS = re.compile(r'"((?:[^"\\]|\\.)*)": (?:["\[{]|)')  # JSON keys, with the opening character of the value


class Budget:
    """Cuts a round so that the answer stays within its token budget.

    With a grammar, the answer plus its shortest valid ending always fits. A round that would break this rule is
    replaced by that ending. While the members write a string, list or thought that required values must follow, room
    for these values is reserved, too: the string, list or thought is closed early, and the members continue after it.

    Args:
        prefixes: One prefix per member. The budget counts tokens of the first one.
        tokens: Maximum tokens of the answer; None for no limit but the members' context windows.
        guide: Grammar state at the beginning of the answer, if there is a grammar.
        call_start: Text that starts tool calls, if an answer may end inside a call, which is then an invalid one.

    Raises:
        ConfigError: The shortest answer that the grammar allows is longer than the budget, or none was found.
        ContextOverflowError: The shortest answer exceeds a member's context window.
    """

    def __init__(
        self, prefixes: Prefixes, tokens: int | None, guide: Guide | None, call_start: str | None = None
    ) -> None:
        self._prefixes = prefixes
        self._tokens = tokens
        self._call_start = call_start
        self._reserve = 0.0
        if guide is not None:
            self._check_room(guide)
            self._reserve = self._affordable_reserve(guide.short_ending or "")

    @property
    def _reference(self) -> Prefix:
        """The first member's view of the answer."""
        return self._prefixes[0]

    def fit(self, played: Round, guide: Guide | None) -> tuple[Round, bool]:
        """The round, cut to the budget, and whether the budget is spent after it."""
        if guide is not None:
            return self._fit_guided(played, guide)
        if self._tokens is None:
            return played, False
        left, cost = self._tokens_left(), self._reference.cost(played.span)
        if cost > left:
            played = replace(played, cut=self._reference.truncate(played.span, left))
        return played, cost >= left

    def ending(self, guide: Guide | None) -> Round | None:
        """The shortest valid ending as a round; None if the answer may end here, or no ending was found."""
        if guide is None or guide.may_end or not guide.short_ending:
            return None
        return self._with_library_text(forced_round(Span(text=guide.short_ending)), "", guide)

    def _check_room(self, guide: Guide) -> None:
        """Refuse grammars whose shortest answer does not fit."""
        if guide.short_ending is None:
            raise ConfigError(
                "the search found no answer that the grammar allows, so a complete answer can't be guaranteed",
                hint="simplify the grammar: required long strings and lists make the search fail",
            )
        shortest = f"the shortest answer that the grammar allows, such as {guide.short_ending!r}"
        for prefix in self._prefixes:
            if not prefix.fits(Span(text=""), guide.short_ending):
                raise ContextOverflowError(
                    f"after a prompt of {prefix.prompt_tokens} tokens, the context window or the KV cache has no room "
                    f"for {shortest}",
                    member=prefix.name,
                    hint="shorten the prompt, allow shorter answers, or leave this member out",
                )
        if self._tokens is not None and self._reference.cost(Span(text=""), guide.short_ending) > self._tokens:
            raise ConfigError(
                f"max_new_tokens={self._tokens} has no room for {shortest}",
                hint="raise max_new_tokens, or use a grammar that allows shorter answers",
            )

    def _fit_guided(self, played: Round, guide: Guide) -> tuple[Round, bool]:
        span = played.span
        after = guide.after(span.text)
        if after is None or (span.ends and not after.may_end):
            what = f"{span.text!r} and the end of the answer violate" if span.ends else f"{span.text!r} violates"
            raise MemberError(
                f"{what} the grammar",
                member=next(iter(played.winner.proposers), None),
                hint="leave this member out, or leave tools and grammars out",
                retryable=False,
            )
        closing = "" if span.ends else after.short_ending
        fits = closing is not None and self._fits(span, closing)
        if fits and (not played.drafts or self._fits_reserve(span, after, closing or "")):
            return played, not span.ends and self._tokens_left() <= self._reference.cost(span)
        shortened = self._shortened(span, guide)
        if shortened is not None and shortened != span:
            return self._with_library_text(replace(played, cut=shortened), span.text, guide), False
        if fits:
            return played, False
        return self._with_library_text(replace(played, cut=self._final_span(span, guide)), span.text, guide), True

    def _final_span(self, span: Span, guide: Guide) -> Span:
        """The last span of an answer that exhausts the budget."""
        if guide.may_end:
            truncated = self._reference.truncate(span, self._tokens_left())
            after = guide.after(truncated.text)
            begun = self._call_start is not None and self._call_start in truncated.text
            if self._prefixes.fit(truncated) and after is not None and (after.may_end or begun):
                return truncated
            logger.warning(
                "the token budget (max_new_tokens=%s) or a context window was too small for what followed, %r, so the "
                "answer ends before it. Hint: raise max_new_tokens",
                self._tokens,
                span.text,
            )
            return Span(text="")
        return Span(text=guide.short_ending or "")

    def _shortened(self, span: Span, guide: Guide) -> Span | None:
        """The span cut as late as the reserve allows, its open string, list or thought closed; None if impossible.

        If no cut leaves room for the whole reserve, the earliest cut that fits.
        """
        found = None
        for text, after in _cuts(self._reference.truncate(span, max(0, self._tokens_left())), guide):
            closed = after.after(after.closing) if after.closing else None
            if closed is None or closed.short_ending is None:
                continue
            cut = Span(text=text + after.closing)
            if self._fits(cut, closed.short_ending):
                found = cut
                if self._fits_reserve(cut, closed, closed.short_ending):
                    break
        return found

    def _fits_reserve(self, span: Span, after: Guide, closing: str) -> bool:
        """Whether the values that must follow a span have room beyond their shortest forms."""
        if not self._reserve or after.only_closes(closing):
            return True
        return self._fits(span, _lengthened(closing, self._reserve, begins=not after.closing))

    def _affordable_reserve(self, ending: str) -> float:
        """The largest reserve that takes at most half of the free tokens."""
        return next((size for size in _RESERVES if self._fits(Span(text=""), _lengthened(ending, 2 * size))), 0.0)

    def _with_library_text(self, played: Round, proposed: str, guide: Guide) -> Round:
        """The round with its `library_text`: text that no member proposed and that the grammar did not force."""
        written = played.span.text
        shared = written[: shared_length(written, proposed)]
        guide_before, text = guide.after(shared), written[len(shared) :]
        if not text or guide_before is None or (guide_before.forced and guide_before.forced.text.startswith(text)):
            return played
        before = self._reference.text + shared
        keys = [(match[1], match.end()) for match in _KEYS.finditer(before + text)]
        chosen = tuple(key for key, end in keys if end >= len(before))
        kind = "completed" if chosen or not guide_before.only_closes(text) else "shortened"
        if not chosen:  # all keys are in the text before, and the last one that is open is that of the closed value
            begun = [key for key, end in keys if text[0] not in "]}" or before[end - 1] in "[{"]
            chosen = tuple(begun[-1:])
        return replace(played, library_text=LibraryText(text=text, kind=kind, fields=chosen))

    def _fits(self, span: Span, closing: str) -> bool:
        slack = _SLACK if closing else 0
        if self._tokens is not None and self._reference.cost(span, closing) + slack > self._tokens_left():
            return False
        return self._prefixes.fit(span, closing)

    def _tokens_left(self) -> int:
        return 1 << 30 if self._tokens is None else self._tokens - self._reference.completion_tokens


def _cuts(span: Span, guide: Guide) -> Iterator[tuple[str, Guide]]:
    """The texts to which a span may be cut, longest first, each with the guide after it."""
    for match in reversed(list(_CUT_POINTS.finditer(span.text))):
        text = span.text[: match.start()]
        if (after := guide.after(text)) is not None:
            yield text, after
    yield "", guide


def _lengthened(ending: str, reserve: float, *, begins: bool = False) -> str:
    """A short ending plus sample text of the length that its values probably need.

    Args:
        ending: Shortest valid ending of the answer.
        reserve: Fraction of the sample text, 0..2.
        begins: Whether the ending begins with a value.
    """
    sample = ending + _SAMPLE_VALUE * (len(_EMPTY_VALUES.findall(ending)) + begins)
    return ending + (2 * sample)[: int(reserve * len(sample))]


def forced_round(span: Span) -> Round:
    """A round with one candidate that no member proposed."""
    return Round(drafts=(), candidates=(Candidate(span=span, proposers=()),))
