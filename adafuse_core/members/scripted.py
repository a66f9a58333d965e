"""A member without a model that writes a given text. For tests, demos and the development of applications.

It implements the contract of `members.base` on text: an ensemble of scripted members runs the same decoding loop as an
ensemble of models. Each word counts as one token.
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
from adafuse_core.errors import CancelledError, ContextOverflowError, MemberError, PromptError, TemplateError
from adafuse_core.members.base import EMPTY_SPAN, Opening, Prompt, WindowFull
from adafuse_core.members.script import RULE, Script, count_words, word_ends
from adafuse_core.rounds import Draft, DraftPlan, NextToken, Score, Span

ON_SCRIPT_NLL, OFF_SCRIPT_NLL = 0.125, 5.0  # per word of a span that continues the script, and of any other span


class ScriptedMember:
    """A member that writes a given text, word by word, with its exact whitespace.

    While the script starts with the answer, the member continues the script. Otherwise it skips as many words of the
    script as the answer has. Under a grammar, it first searches the script for the end of the answer, such as a JSON
    key, and continues after that place.

    Args:
        name: Label in traces and errors.
        reply: The text to write, or a function of the prompt that returns it.
        weight: Weight of the member's vote.
        margin: Margin reported for every word; below τ the member proposes one word.
        alternatives: Texts to propose beside the script's word when the margin is below τ.
        ends_answer: Whether the answer ends with the script. Otherwise the script repeats for ever.
        context_window: Maximum number of words in prompt and answer; None if unbounded.
        chat: Whether it accepts messages.
        dialect: Name of the dialect in which the script calls tools.
        fail_after: Rounds of each answer after which drafting fails; None for never.
        delay: Seconds that each draft takes; cancelling ends the delay.
        place: Members of one place take turns, others run in parallel.

    Attributes:
        prompts: All prompts it was opened with.
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
        """Number of drafts, over all answers."""
        return len(self._drafted)

    @property
    def context_window(self) -> int | None:
        """Maximum number of words in prompt and answer; None if unbounded."""
        return self._context_window

    @property
    def prompt_reader(self) -> ScriptedMember:
        """The member itself."""
        return self

    def open(self, opening: Opening) -> ScriptedPrefix:
        """Check a prompt and choose the script; `max_word_tokens` and `lookup` have no effect."""
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
        """Number of words in a prompt and in the tools as JSON, plus one per message."""
        if isinstance(prompt, str):
            if tools:
                raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
            return count_words(prompt)
        words = count_words(json.dumps(tools)) if tools else 0
        return words + sum(1 + count_words(_shown(message)) for message in prompt)

    def count_text_tokens(self, text: str) -> int:
        """Number of words."""
        return count_words(text)

    def supports_chat(self) -> bool:
        """Whether it accepts messages."""
        return self._chat

    def describe(self) -> dict[str, Any]:
        """Facts about the member, for people."""
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
    """The prefix of a scripted member."""

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
        """Length of the prompt; see `ScriptedMember.count_tokens`."""
        return self._prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Number of words in the committed text."""
        return self._completion_tokens

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = (), after: Span = EMPTY_SPAN) -> Draft:
        """The next words of the script, up to the first word that completes a stop string.

        Raises:
            WindowFull: The context window has no room for another word.
            CancelledError: The generation was cancelled.
            MemberError: `fail_after` rounds were drafted, or the script violates the grammar.
        """
        self._cancel.wait(self._member.delay)
        self._check_cancel()
        self._member._count_draft()
        if self._member.fail_after is not None and self._rounds >= self._member.fail_after:
            raise MemberError("scripted failure", member=self.name)
        self._rounds += 1
        uncertain = self._member.margin < plan.tau
        own = self._words_after(after, plan, 1 if uncertain else plan.max_words)
        spans = [_joined(after, own)]
        if not self._allows(spans[0]):
            raise MemberError(
                f"the script continues with {own.text!r}{' and ends' if own.ends else ''} after {self._text[-60:]!r}, "
                f"which the answer's grammar does not allow",
                member=self.name,
                hint="write JSON as json.dumps does, and calls in the form that Ensemble.stream describes",
                retryable=False,
            )
        if uncertain:
            more = [_joined(after, Span(text=text)) for text in self._member.alternatives if text != own.text]
            spans += [span for span in more if self._allows(span)]
        margins = (self._member.margin,) * max(1, count_words(own.text))
        return Draft(member=self.name, spans=tuple(spans[: plan.branches]), margins=margins)

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
        words = count_words(span.text) + span.ends
        nll = ON_SCRIPT_NLL if self._script.continues(self._text, span) else OFF_SCRIPT_NLL
        length = len(span.text.encode()) + span.ends
        return Score(member=self.name, logprobs=(-nll,) * words, words=words, bytes=length)

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


def _shown(message: Message) -> str:
    calls = json.dumps([{"name": call.name, "arguments": call.arguments} for call in message.tool_calls])
    return message.content + (calls if message.tool_calls else "")
