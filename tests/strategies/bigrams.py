"""A member whose next word depends on the last word alone, by a table of probabilities: for examples made by hand."""

from __future__ import annotations

import math
import re

from adafuse_core import ScriptedMember
from adafuse_core.members.base import EMPTY_SPAN
from adafuse_core.members.script import Script
from adafuse_core.members.scripted_prefix import ScriptedPrefix
from adafuse_core.rounds import Draft, Score, Span
from adafuse_core.text.stop_strings import first_stop

START, END = "", "."  # the word before the answer, and the end of the answer
RARE = 1e-6  # probability of a word that the table doesn't name


class BigramMember(ScriptedMember):
    """A member that writes words by their probabilities after the last word.

    Args:
        name: Label.
        table: Probabilities of the next words by last word, without blanks: `{"": {"a": 0.6, "b": 0.4}}`. The answer
            ends after a word that it doesn't name.
        options: Of `ScriptedMember`.
    """

    def __init__(self, name, table, **options):
        super().__init__(name, "x", **options)
        self.table = table

    def open(self, opening):
        length = self.count_tokens(opening.prompt)
        return BigramPrefix(self, Script("x", ends=True), length, opening.cancel, None)


class BigramPrefix(ScriptedPrefix):
    """The prefix of such a member. Each word, with its blank, is one token."""

    def chances(self, text):
        """Probabilities of the next words, likeliest first."""
        words = text.split()
        row = self._member.table.get(words[-1] if words else START, {END: 1.0})
        return sorted(row.items(), key=lambda item: -item[1])

    def draft(self, plan, hints=(), after=EMPTY_SPAN):
        self._check_cancel()
        self._remaining_after(after)
        self._member.count_draft()
        drafted, margins = [], []
        while len(margins) < plan.max_words:
            likeliest = self.chances(self._text + after.text + "".join(drafted))
            margins.append(likeliest[0][1] - (likeliest[1][1] if len(likeliest) > 1 else 0.0))
            if margins[-1] < plan.tau:
                break
            drafted.append(" " + likeliest[0][0])
            if likeliest[0][0] == END:
                break
        starts = [drafted]
        if margins[-1] < plan.tau:
            tried = [word for word, _ in likeliest[: plan.branches]]
            if not plan.unlikely_ends:
                before = self._text + after.text + "".join(drafted)
                tried[1:] = [
                    word for word in tried[1:] if word != END and first_stop(before, " " + word, plan.stop) is None
                ]
            starts = [[*drafted, " " + word] for word in tried]
        spans = [self.spelled(after, self.continued(after, words, plan.look_ahead)) for words in starts]
        ahead = tuple(spans) if plan.look_ahead else ()
        return Draft(member=self.name, spans=tuple(spans), margins=tuple(margins), ahead=ahead)

    def continued(self, after, words, length):
        """The words, and the likeliest ones after them."""
        while len(words) < length and words[-1] != " " + END:
            words = [*words, " " + self.chances(self._text + after.text + "".join(words))[0][0]]
        return words

    def spelled(self, after, words):
        ends = bool(words) and words[-1] == " " + END
        return Span(text=after.text + "".join(words[:-1] if ends else words), ends=ends)

    def _score(self, span):
        words = re.findall(r" \S+", span.text) + [" " + END] * span.ends
        chances = [
            dict(self.chances(self._text + "".join(words[:at]))).get(word[1:], RARE) for at, word in enumerate(words)
        ]
        logprobs = tuple(math.log(chance) for chance in chances)
        length, ends = len(span.text) + span.ends, tuple(range(1, len(words) + 1))
        return Score(member=self.name, logprobs=logprobs, words=len(words), bytes=length, word_ends=ends)
