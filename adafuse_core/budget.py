"""How much of a round may be committed: the token budget, and with a grammar the way to a valid end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from adafuse_core.chat.guide import Guide
from adafuse_core.errors import ConfigError, ContextOverflowError, MemberError
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, LibraryText, Round, Span

_SLACK = 4  # tokens: a member may come to draft the closing text itself, with more tokens than it needs
_SHARES = tuple(
    0.5**halvings for halvings in range(7)
)  # of the room that is kept for values: the largest that fits twice
_EMPTY = re.compile(r'""|\[\]|\{\}')  # values of a short ending that may be longer by any amount
_WORDS = " some" * 8  # room for each of them
_CUTS = re.compile(r"(?=[\s,\]}]|$)")  # places where a span may be cut: no number or word is cut in two
_KEYS = re.compile(r'"((?:[^"\\]|\\.)*)": (?:["\[{]|)')  # of JSON, each with what opens its value


class Budget:
    """Cuts the last round.

    With a grammar an answer always stays so short that the way to its end still fits; when it would not, that
    way is committed in place of the round. Where values have to follow a string, a list or a thought that the members
    are writing, room is kept for these values: that string is ended early, and the members write on after it.

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
        self._share = 0.0
        if guide is not None:
            self._check_room(guide)
            self._share = self._affordable_share(guide.short_ending or "")

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
        return self._marked(unanimous(Span(text=guide.short_ending)), "", guide)

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
        fits = closing is not None and self._holds(span, closing)
        if fits and (not played.drafts or self._keeps_room(span, after, closing or "")):
            return played, not span.ends and self._left() <= self._reference.cost(span)
        shortened = self._shortened(span, guide)
        if shortened is not None and shortened != span:
            return self._marked(replace(played, cut=shortened), span.text, guide), False
        if fits:
            return played, False
        return self._marked(replace(played, cut=self._last(span, guide)), span.text, guide), True

    def _last(self, span: Span, guide: Guide) -> Span:
        """What ends the answer for its length."""
        if guide.may_end:
            truncated = self._reference.truncate(span, self._left())
            after = guide.after(truncated.text)
            fits = self._prefixes.fit(truncated)
            return truncated if fits and after is not None and after.may_end else Span(text="")
        return Span(text=guide.short_ending or "")

    def _shortened(self, span: Span, guide: Guide) -> Span | None:
        """The longest beginning of a span that leaves room, with what ends the string or list there; None without one.

        If none leaves as much room as it should, the shortest one.
        """
        found = None
        for text, after in _beginnings(self._reference.truncate(span, max(0, self._left())), guide):
            closed = after.after(after.closing) if after.closing else None
            if closed is None or closed.short_ending is None:
                continue
            cut = Span(text=text + after.closing)
            if self._holds(cut, closed.short_ending):
                found = cut
                if self._keeps_room(cut, closed, closed.short_ending):
                    break
        return found

    def _keeps_room(self, span: Span, after: Guide, closing: str) -> bool:
        """Whether the values that have to follow a span have room for more than the shortest ones."""
        if not self._share or after.only_closes(closing):
            return True
        return self._holds(span, _lengthened(closing, self._share, begins=not after.closing))

    def _affordable_share(self, ending: str) -> float:
        """How much more room than for the shortest values is kept: at most half of what is free."""
        fitting = (share for share in _SHARES if self._holds(Span(text=""), _lengthened(ending, 2 * share)))
        return next(fitting, 0.0)

    def _marked(self, played: Round, proposed: str, guide: Guide) -> Round:
        """The round, with a note on what of its text no member proposed and the grammar did not force."""
        written = played.span.text
        shared = _shared_beginning(written, proposed)
        place, text = guide.after(shared), written[len(shared) :]
        if not text or place is None or (place.forced and place.forced.text.startswith(text)):
            return played
        before = self._reference.text + shared
        keys = [(match[1], match.end()) for match in _KEYS.finditer(before + text)]
        chosen = tuple(key for key, end in keys if end >= len(before))
        kind = "completed" if chosen or not place.only_closes(text) else "shortened"
        begun = [key for key, end in keys if text[0] not in "]}" or before[end - 1] in "[{"]
        return replace(played, library_text=LibraryText(text=text, kind=kind, fields=chosen or tuple(begun[-1:])))

    def _holds(self, span: Span, closing: str) -> bool:
        slack = _SLACK if closing else 0
        if self._tokens is not None and self._reference.cost(span, closing) + slack > self._left():
            return False
        return self._prefixes.fit(span, closing)

    def _left(self) -> int:
        """Tokens that may still be written."""
        return 1 << 30 if self._tokens is None else self._tokens - self._reference.completion_tokens


def _beginnings(span: Span, guide: Guide) -> Iterator[tuple[str, Guide]]:
    """The beginnings of a span at whose end it may be cut, longest first, each with the guide after it."""
    for match in reversed(list(_CUTS.finditer(span.text))):
        after = guide.after(span.text[: match.start()])
        if after is not None:
            yield span.text[: match.start()], after
    yield "", guide


def _shared_beginning(text: str, other: str) -> str:
    pairs = enumerate(zip(text, other, strict=False))
    return text[: next((at for at, (one, two) in pairs if one != two), min(len(text), len(other)))]


def _lengthened(ending: str, share: float, *, begins: bool = False) -> str:
    """A short ending with more text, as much as its values are likely to take.

    Args:
        ending: Of an answer.
        share: How much of that, 0..2.
        begins: Whether the ending begins with a value.
    """
    room = ending + _WORDS * (len(_EMPTY.findall(ending)) + begins)
    return ending + (2 * room)[: int(share * len(room))]


def unanimous(span: Span) -> Round:
    """A round without a choice: nobody was asked."""
    return Round(drafts=(), candidates=(Candidate(span=span, proposers=()),))
