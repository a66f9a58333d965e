"""A member without a model: it writes what it is told. For tests, demos and the development of applications.

It speaks the contract of `members.base` at the level of texts, so that an ensemble of scripted members
goes through the same decoding loop as one of models. One word is one token here.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.guide import Guide
from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import THINK
from adafuse_core.errors import (
    CancelledError,
    ConfigError,
    ContextOverflowError,
    MemberError,
    PromptError,
    TemplateError,
)
from adafuse_core.members.base import Prompt, WindowFull
from adafuse_core.rounds import Draft, DraftPlan, Span
from adafuse_core.text.words import NewlineTail

AGREES, DISAGREES = 0.1, 5.0  # mean NLL of what continues the script, and of anything else

_RULE = NewlineTail()


class ScriptedMember:
    """A member that writes a given text, word by word, whitespace exact to the byte.

    While the answer follows the script, the member goes on where the answer stands; where others led
    it away, it goes on with as many words of the script as the answer has.

    Args:
        name: Label in traces and errors.
        reply: The text to write, or a function of the prompt that returns it.
        weight: Of its vote.
        margin: Reported at the start of every word; below τ the member proposes one word.
        alternatives: Further texts proposed beside its own word where it is unsure.
        ends_answer: Whether the answer ends with the script. Otherwise the script starts over, for ever.
        context_window: Most words of prompt plus answer; None if unbounded.
        chat: Whether it takes messages.
        dialect: Name of the form in which its script calls tools.
        fail_after: Rounds of each answer after which drafting fails; None for never.
        delay: Seconds that each draft takes; cancelling cuts them short.

    Attributes:
        prompts: Every prompt it was opened with.
    """

    def __init__(
        self,
        name: str = "scripted",
        reply: str | Callable[[Prompt], str] = "",
        *,
        weight: float = 1.0,
        margin: float = 1.0,
        alternatives: Sequence[str] = (),
        ends_answer: bool = True,
        context_window: int | None = None,
        chat: bool = True,
        dialect: str = "hermes",
        fail_after: int | None = None,
        delay: float = 0.0,
    ) -> None:
        self.name = name
        self.weight = weight
        self.margin = margin
        self.alternatives = tuple(alternatives)
        self.ends_answer = ends_answer
        self.fail_after = fail_after
        self.delay = delay
        self.prompts: list[Prompt] = []
        self.dialect = DIALECTS[dialect]
        self.shows_tools = True
        self.thought_tags = THINK
        self._reply = reply
        self._context_window = context_window
        self._chat = chat
        self._drafted: list[None] = []  # appending needs no lock

    @property
    def drafts(self) -> int:
        """How often it drafted, over all answers."""
        return len(self._drafted)

    @property
    def context_window(self) -> int | None:
        """Most words of prompt plus answer; None if unbounded."""
        return self._context_window

    def open(
        self,
        prompt: Prompt,
        tools: Sequence[dict[str, Any]] | None,
        *,
        max_word_tokens: int,
        lookup: bool,
        cancel: threading.Event,
        grammar: Grammar | None = None,
        must_call: bool = False,
    ) -> ScriptedPrefix:
        """Check a prompt and see what to write. No word is longer than one token, and there is nothing to guess.

        Raises:
            PromptError: The prompt is empty.
            TemplateError: Messages were given, but `chat` is false.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        length = self.count_tokens(prompt, tools)
        if not prompt:
            raise PromptError("the prompt is empty", member=self.name, hint="give some text")
        if self._context_window is not None and length >= self._context_window:
            raise ContextOverflowError(
                f"the prompt has {length} tokens, the context window is {self._context_window}",
                member=self.name,
                hint="shorten the prompt, or leave this member out",
            )
        self.prompts.append(prompt)
        reply = self._reply(prompt) if callable(self._reply) else self._reply
        guide = None if grammar is None else grammar.guide()
        return ScriptedPrefix(self, _Script(reply, ends=self.ends_answer), length, cancel, guide)

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Words of a prompt, one more for each message, and the words of the tools as JSON."""
        if isinstance(prompt, str):
            if tools:
                raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
            return _words(prompt)
        if not self._chat:
            raise TemplateError(
                "this member has no chat template, but messages were given",
                member=self.name,
                hint="give a plain string as prompt, or set chat=True",
            )
        return sum(1 + _words(_shown(message)) for message in prompt) + _words(json.dumps(tools) if tools else "")

    def count_text_tokens(self, text: str) -> int:
        """Words of a bare text."""
        return _words(text)

    def supports_chat(self) -> bool:
        """Whether it takes messages."""
        return self._chat

    def describe(self) -> dict[str, Any]:
        """Plain facts about the member, for people."""
        return {
            "name": self.name,
            "weight": self.weight,
            "context_window": self._context_window,
            "chat_template": self._chat,
            "scripted": True,
        }

    def close(self) -> None:
        """Nothing to free."""

    def _count_draft(self) -> None:
        self._drafted.append(None)

    def __repr__(self) -> str:
        return f"ScriptedMember({self.name!r})"


class ScriptedPrefix:
    """One answer in the making."""

    place = "script"
    thinking = None

    def __init__(
        self,
        member: ScriptedMember,
        script: _Script,
        prompt_tokens: int,
        cancel: threading.Event,
        guide: Guide | None,
    ) -> None:
        self.name = member.name
        self.weight = member.weight
        self._member = member
        self._script = script
        self._cancel = cancel
        self._guide = guide
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._text = ""
        self._rounds = 0

    @property
    def prompt_tokens(self) -> int:
        """Words of the prompt, as `ScriptedMember.count_tokens` counts them."""
        return self._prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Words committed."""
        return self._completion_tokens

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = ()) -> Draft:
        """The next words of the script.

        Raises:
            WindowFull: No word more fits.
            CancelledError: The generation was cancelled.
            MemberError: `fail_after` rounds were drafted, or the script breaks the grammar.
        """
        self._cancel.wait(self._member.delay)
        self._check_cancel()
        self._member._count_draft()
        if self._member.fail_after is not None and self._rounds >= self._member.fail_after:
            raise MemberError("scripted failure", member=self.name)
        self._rounds += 1
        unsure = self._member.margin < plan.tau
        own = self._script.words_at(self._text, min(1 if unsure else plan.max_words, self._room()))
        spans = [own]
        if not self._allows(own):
            raise MemberError(
                f"the script goes on with {own.text!r}{' and ends' if own.ends else ''} after {self._text[-60:]!r}, "
                f"which the answer's grammar does not allow",
                member=self.name,
                hint="write JSON as json.dumps does, and calls in the form that Ensemble.stream describes",
            )
        if unsure:
            more = [Span(text=text) for text in self._member.alternatives if text != own.text]
            spans += [span for span in more if self._allows(span)]
        margins = (self._member.margin,) * max(1, _words(own.text))
        return Draft(member=self.name, spans=tuple(spans[: plan.branches]), margins=margins)

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether the context window has room for the words of the span, and of a closing text after it."""
        return self.cost(span, closing) <= self._left()

    def score(self, spans: Sequence[Span]) -> list[float]:
        """`AGREES` for what continues the script at this place, `DISAGREES` for anything else."""
        self._check_cancel()
        return [AGREES if self._script.continues(self._text, span) else DISAGREES for span in spans]

    def commit(self, span: Span) -> None:
        """Extend the committed text."""
        self._text += span.text
        self._guide = self._guide and self._guide.after(span.text)
        self._completion_tokens += _words(span.text)

    def cost(self, span: Span, closing: str = "") -> int:
        """Words of the span, and of a closing text after it."""
        return _words(span.text) + _words(closing)

    def clip(self, span: Span, tokens: int) -> Span:
        """The first so many words of the span."""
        ends = _RULE.ends(span.text, final=True)
        return span if len(ends) <= tokens else Span(text=span.text[: ends[tokens - 1]] if tokens > 0 else "")

    def close(self) -> None:
        """Nothing to free."""

    def _allows(self, span: Span) -> bool:
        if self._guide is None:
            return True
        after = self._guide.after(span.text)
        return after is not None and (after.may_end or not span.ends)

    def _room(self) -> int:
        """Words that still fit into the context window. Raises `WindowFull` if none does."""
        if (room := self._left()) <= 0:
            raise WindowFull
        return room

    def _left(self) -> int:
        if self._member.context_window is None:
            return 1 << 30
        return self._member.context_window - self._prompt_tokens - self._completion_tokens

    def _check_cancel(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("the generation was cancelled", member=self.name)


class _Script:
    """What is to be written, cut into words; without an end it goes round and round."""

    def __init__(self, text: str, *, ends: bool) -> None:
        if not ends and not text.strip():
            raise ConfigError("got a blank reply with ends_answer=False", hint="give a reply that has a word")
        self._text = text
        self._endless = not ends
        self._word_ends = _word_ends(text)

    def words_at(self, answer: str, count: int) -> Span:
        """So many words that go on from an answer."""
        text, word_ends = self._unrolled(answer, count)
        start = self._place(answer, text, word_ends)
        ahead = word_ends[bisect_right(word_ends, start) :][:count]
        end = ahead[-1] if ahead else len(text)
        return Span(text=text[start:end], ends=not self._endless and end == len(text))

    def continues(self, answer: str, span: Span) -> bool:
        """Whether the script goes on from an answer with this span."""
        text, word_ends = self._unrolled(answer, _words(span.text))
        ahead = text[self._place(answer, text, word_ends) :]
        return ahead.startswith(span.text) and (not span.ends or (not self._endless and ahead == span.text))

    def _place(self, answer: str, text: str, word_ends: list[int]) -> int:
        """Where the script goes on: after the answer, or after as many words as it has."""
        if text.startswith(answer):
            return len(answer)
        written = _words(answer)
        return [0, *word_ends][min(written, len(word_ends))]

    def _unrolled(self, answer: str, count: int) -> tuple[str, list[int]]:
        """The script and its word ends, long enough for so many words after the answer."""
        if not self._endless:
            return self._text, self._word_ends
        words = len(self._word_ends)
        turns = 2 + len(answer) // len(self._text) + (_words(answer) + count) // words
        ends = [turn * len(self._text) + end for turn in range(turns) for end in self._word_ends]
        return self._text * turns, ends


def _word_ends(text: str) -> list[int]:
    """Ends of the words; blanks after the last word are its own."""
    ends = _RULE.ends(text, final=True)
    return [*ends[:-1], len(text)] if text else []


def _words(text: str) -> int:
    return len(_RULE.ends(text, final=True))


def _shown(message: Message) -> str:
    calls = json.dumps([{"name": call.name, "arguments": call.arguments} for call in message.tool_calls])
    return message.content + (calls if message.tool_calls else "")
