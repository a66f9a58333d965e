"""How much of a round may be committed: the token budget, and with a grammar the way to a valid end."""

from __future__ import annotations

from dataclasses import replace

from adafuse_core.chat.guide import Guide
from adafuse_core.errors import ConfigError, ContextOverflowError, MemberError
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, Round, Span

_SLACK = 4  # tokens: a member may come to draft the closing text itself, with more tokens than it needs


class Budget:
    """Cuts the last round.

    With a grammar an answer always stays so short that the way to its end still fits; when it would not, that
    way is committed in place of the round.

    Args:
        prefixes: All members' views of the answer; the first one's tokens are counted.
        tokens: Longest answer; None for no bound but the members' context windows.

    Raises:
        ConfigError: The shortest answer that the grammar allows is longer than the budget, or none was found.
        ContextOverflowError: A member's context window has no room for it.
    """

    def __init__(self, prefixes: Prefixes, tokens: int | None, guide: Guide | None) -> None:
        self._prefixes = prefixes
        self._reference = prefixes[0]
        self._tokens = tokens
        if guide is not None:
            self._check_room(guide)

    def fit(self, played: Round, guide: Guide | None) -> tuple[Round, bool]:
        """The round with what may be committed of it, and whether the budget ends there."""
        if guide is not None:
            return self._fit_guided(played, guide)
        if self._tokens is None:
            return played, False
        left, cost = self._left(), self._reference.cost(played.span)
        if cost > left:
            played = replace(played, cut=self._reference.truncate(played.span, left))
        return played, cost >= left

    def ending(self, guide: Guide | None) -> Round | None:
        """The way to a valid end, as a round; None where the answer may end as it stands, or there is no way."""
        if guide is None or guide.may_end or not guide.short_ending:
            return None
        return unanimous(Span(text=guide.short_ending))

    def _check_room(self, guide: Guide) -> None:
        """Refuse what could never come to a valid end."""
        if guide.short_ending is None:
            raise ConfigError(
                "no answer was found that the grammar allows, so an end in time can't be promised",
                hint="ask for less: long strings and lists that must be filled make the search long",
            )
        shortest = f"the shortest answer that the grammar allows, such as {guide.short_ending!r}"
        for prefix in self._prefixes:
            if not prefix.fits(Span(text=""), guide.short_ending):
                raise ContextOverflowError(
                    f"after a prompt of {prefix.prompt_tokens} tokens the context window, or the memory for it, has no "
                    f"room for {shortest}",
                    member=prefix.name,
                    hint="shorten the prompt, ask for less, or leave this member out",
                )
        if self._tokens is not None and self._reference.cost(Span(text=""), guide.short_ending) > self._tokens:
            raise ConfigError(
                f"max_new_tokens={self._tokens} has no room for {shortest}",
                hint="raise max_new_tokens, or ask for less",
            )

    def _fit_guided(self, played: Round, guide: Guide) -> tuple[Round, bool]:
        span = played.span
        after = guide.after(span.text)
        if after is None:
            raise MemberError(
                f"{span.text!r} breaks the grammar: its tokenizer shows tokens in other ways than one by one",
                member=next(iter(played.winner.proposers), None),
                hint="leave this member out, or leave tools and grammars out",
                retryable=False,
            )
        closing = "" if span.ends else after.short_ending
        if closing is not None and self._holds(span, closing, slack=_SLACK if closing else 0):
            return played, not span.ends and self._left() <= self._reference.cost(span)
        return replace(played, cut=self._last(span, guide)), True

    def _last(self, span: Span, guide: Guide) -> Span:
        """What ends the answer for its length."""
        if guide.may_end:
            truncated = self._reference.truncate(span, self._left())
            after = guide.after(truncated.text)
            fits = self._prefixes.fit(truncated)
            return truncated if fits and after is not None and after.may_end else Span(text="")
        return Span(text=guide.short_ending or "")

    def _holds(self, span: Span, closing: str, *, slack: int) -> bool:
        if self._tokens is not None and self._reference.cost(span, closing) + slack > self._left():
            return False
        return self._prefixes.fit(span, closing)

    def _left(self) -> int:
        """Tokens that may still be written."""
        return 1 << 30 if self._tokens is None else self._tokens - self._reference.completion_tokens


def unanimous(span: Span) -> Round:
    """A round without a choice: nobody was asked."""
    return Round(drafts=(), candidates=(Candidate(span=span, proposers=()),))
