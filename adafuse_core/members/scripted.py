"""A member without a model: it writes what it is told. For tests, demos and the development of applications.

It speaks the contract of `members.base` at the level of texts, so that an ensemble of scripted members
goes through the same decoding loop as one of models. One word is one token here.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from adafuse_core.backends.base import Abilities
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.guide import Guide
from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import THINK
from adafuse_core.errors import (
    CancelledError,
    ContextOverflowError,
    MemberError,
    PromptError,
    TemplateError,
)
from adafuse_core.members.base import NOTHING, Opening, Prompt, WindowFull
from adafuse_core.members.script import RULE, Script, count_words, word_ends
from adafuse_core.rounds import Draft, DraftPlan, NextToken, Score, Span

AGREES, DISAGREES = 0.125, 5.0  # NLL of each word that continues the script, and of each of anything else


class ScriptedMember:
    """A member that writes a given text, word by word, whitespace exact to the byte.

    While the answer follows the script, the member goes on where the answer stands; where others led
    it away, it goes on with as many words of the script as the answer has. Under a grammar it then goes on where the
    script has the end of the answer, such as a key of JSON, if it has it.

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
        place: Where it computes: members of one place take turns, others work at the same time.

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
        place: str = "script",
    ) -> None:
        self.name = name
        self.place = place
        self.weight = weight
        self.margin = margin
        self.alternatives = tuple(alternatives)
        self.ends_answer = ends_answer
        self.fail_after = fail_after
        self.delay = delay
        self.prompts: list[Prompt] = []
        self.dialect = DIALECTS[dialect]
        self.shows_tools = True
        self.abilities = Abilities(
            vocab_size=0,
            dtype="text",
            device=place,
            place=place,
            top=None,
            full_distribution=True,
            masks=True,
            cache="none",
            max_context=context_window,
        )
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

    @property
    def prompt_reader(self) -> ScriptedMember:
        """It reads prompts itself."""
        return self

    def open(self, opening: Opening) -> ScriptedPrefix:
        """Check a prompt and see what to write. No word is longer than one token, and there is nothing to guess."""
        prompt, grammar = opening.prompt, opening.grammar
        if not self._chat and not isinstance(prompt, str):
            raise TemplateError(
                "this member has no chat template, but messages were given",
                member=self.name,
                hint="give a plain string as prompt, or set chat=True",
            )
        length = self.count_tokens(prompt, opening.tools)
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
        return ScriptedPrefix(
            self, Script(reply, ends=self.ends_answer, resumes=guide is not None), length, opening.cancel, guide
        )

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Words of a prompt, one more for each message, and the words of the tools as JSON."""
        if isinstance(prompt, str):
            if tools:
                raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
            return count_words(prompt)
        return sum(1 + count_words(_shown(message)) for message in prompt) + count_words(
            json.dumps(tools) if tools else ""
        )

    def count_text_tokens(self, text: str) -> int:
        """Words of a bare text."""
        return count_words(text)

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

    thinking = None

    def __init__(
        self,
        member: ScriptedMember,
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
        """Words of the prompt, as `ScriptedMember.count_tokens` counts them."""
        return self._prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Words committed."""
        return self._completion_tokens

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = (), after: Span = NOTHING) -> Draft:
        """The next words of the script; a stop string is looked for at the end of each.

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
        own = self._words_after(after, plan, 1 if unsure else plan.max_words)
        spans = [_joined(after, own)]
        if not self._allows(spans[0]):
            raise MemberError(
                f"the script goes on with {own.text!r}{' and ends' if own.ends else ''} after {self._text[-60:]!r}, "
                f"which the answer's grammar does not allow",
                member=self.name,
                hint="write JSON as json.dumps does, and calls in the form that Ensemble.stream describes",
                retryable=False,
            )
        if unsure:
            more = [_joined(after, Span(text=text)) for text in self._member.alternatives if text != own.text]
            spans += [span for span in more if self._allows(span)]
        margins = (self._member.margin,) * max(1, count_words(own.text))
        return Draft(member=self.name, spans=tuple(spans[: plan.branches]), margins=margins)

    def next_tokens(self, count: int | None = None, after: Span = NOTHING) -> tuple[NextToken, ...]:
        """The next word of the script, then the alternatives, each half as likely as the one before it."""
        self._check_cancel()
        self._room(after)
        own = self._script.words_at(self._text + after.text, 1)
        texts = [own, *(Span(text=text) for text in self._member.alternatives if text != own.text)]
        tokens = [NextToken(span=span, logprob=-math.log(2) * (place + 1)) for place, span in enumerate(texts)]
        return tuple(tokens[:count])

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether the context window has room for the words of the span, and of a closing text after it."""
        return self.cost(span, closing) <= self._left()

    def score(self, spans: Sequence[Span]) -> list[Score]:
        """`AGREES` for each word of what continues the script at this place, `DISAGREES` for anything else."""
        self._check_cancel()
        return [self._score(span) for span in spans]

    def commit(self, span: Span) -> None:
        """Extend the committed text."""
        self._text += span.text
        self._guide = self._guide and self._guide.after(span.text)
        self._completion_tokens += count_words(span.text)

    def cost(self, span: Span, closing: str = "") -> int:
        """Words of the span, and of a closing text after it."""
        return count_words(span.text) + count_words(closing)

    def clip(self, span: Span, tokens: int) -> Span:
        """The first so many words of the span."""
        ends = RULE.ends(span.text, final=True)
        return span if len(ends) <= tokens else Span(text=span.text[: ends[tokens - 1]] if tokens > 0 else "")

    def close(self) -> None:
        """Nothing to free."""

    def _score(self, span: Span) -> Score:
        words = count_words(span.text) + span.ends
        nll = AGREES if self._script.continues(self._text, span) else DISAGREES
        length = len(span.text.encode()) + span.ends
        return Score(member=self.name, logprobs=(-nll,) * words, words=words, bytes=length)

    def _words_after(self, after: Span, plan: DraftPlan, words: int | None) -> Span:
        """Words of the script beyond committed and uncommitted text, within the bounds of a plan."""
        bounds = [bound for bound in (words, plan.max_tokens, self._room(after)) if bound is not None]
        text = self._text + after.text
        span = self._script.words_at(text, min(bounds))
        kept = max(map(len, plan.stop), default=1) - 1
        before = text[len(text) - kept :] if kept else ""
        for end in word_ends(span.text)[:-1]:
            if any(stop in before + span.text[:end] for stop in plan.stop):
                return Span(text=span.text[:end])
        return span

    def _allows(self, span: Span) -> bool:
        if self._guide is None:
            return True
        after = self._guide.after(span.text)
        return after is not None and (after.may_end or not span.ends)

    def _room(self, after: Span) -> int:
        """Words that still fit into the context window. Raises `WindowFull` if none does."""
        if (room := self._left() - count_words(after.text)) <= 0:
            raise WindowFull
        return room

    def _left(self) -> int:
        if self._member.context_window is None:
            return 1 << 30
        return self._member.context_window - self._prompt_tokens - self._completion_tokens

    def _check_cancel(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("the generation was cancelled", member=self.name)


def _joined(after: Span, span: Span) -> Span:
    return Span(text=after.text + span.text, ends=span.ends)


def _shown(message: Message) -> str:
    calls = json.dumps([{"name": call.name, "arguments": call.arguments} for call in message.tool_calls])
    return message.content + (calls if message.tool_calls else "")
