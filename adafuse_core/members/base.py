"""The seam between strategy and member: text and numbers. Ids, tensors and templates do not cross it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adafuse_core.backends.base import Abilities
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import ThoughtTags
from adafuse_core.rounds import Draft, DraftPlan, NextToken, Score, Span

Prompt = str | Sequence[Message]
NOTHING = Span(text="")


class WindowFull(Exception):
    """A member's context window has no room for what comes next. The answer ends for its length."""


class Prefix(Protocol):
    """One member's view of prompt and committed text; it owns the memory of it.

    All spans, proposed or given, begin where the committed text ends. Used by one thread at a time.
    """

    name: str
    weight: float
    thinking: ThoughtTags | None  # of the thought that the prompt begins; None if it begins none
    place: str  # where it computes: members of one place take turns, others work at the same time

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = (), after: Span = NOTHING) -> Draft:
        """Propose spans.

        Args:
            plan: How far and how wide.
            hints: What others proposed, worth reading in the same pass. They do not change the draft.
            after: Draft beyond this uncommitted span, which begins every proposed span. It must fit, and not end
                the answer.

        Raises:
            WindowFull: No token more fits.
        """

    def next_tokens(self, count: int | None = None, after: Span = NOTHING) -> tuple[NextToken, ...]:
        """What may come next, likeliest first, equal texts and all ends of the answer added up.

        Args:
            count: How many of the member's likeliest tokens to look at; None for its whole vocabulary.
            after: Look beyond this uncommitted span, as for `draft`.

        Returns:
            Texts in whole characters. Tokens without text are left out, and of the tokens that hold a part of a
            character all but the likeliest few, so that the probabilities may add up to less than one.

        Raises:
            WindowFull: No token more fits.
        """

    def score(self, spans: Sequence[Span]) -> list[Score]:
        """Log-probabilities of each span's tokens; all spans fit, and are read in one pass."""

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether the context window has room for the span, and a closing text after it."""

    def commit(self, span: Span) -> None:
        """Extend the committed text."""

    def cost(self, span: Span, closing: str = "") -> int:
        """Tokens by which committing the span, and a closing text after it, would lengthen this member's ids."""

    def clip(self, span: Span, tokens: int) -> Span:
        """The longest beginning of the span that takes at most so many of this member's tokens."""

    @property
    def text(self) -> str:
        """The committed text. What a strategy remembers of earlier rounds has to be held against it."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in own tokens."""

    @property
    def completion_tokens(self) -> int:
        """Length of the committed text in own tokens."""

    def close(self) -> None:
        """Free the memory. May be called twice."""


class PromptReader(Protocol):
    """A member's way with prompts. No weights are needed for it."""

    name: str

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Length of a prompt in own tokens, template included; messages that can't be rendered are counted as text."""

    def count_text_tokens(self, text: str) -> int:
        """Length of a bare text in own tokens, nothing added."""

    def supports_chat(self) -> bool:
        """Whether the member has a chat template."""

    @property
    def dialect(self) -> Dialect | None:
        """How the member writes tool calls; None if that is not known."""

    @property
    def shows_tools(self) -> bool:
        """Whether tools can be given to `open`. Otherwise messages have to describe them."""

    @property
    def thought_tags(self) -> ThoughtTags:
        """How the member marks thoughts."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a member is opened with.

    Args:
        prompt: A text to continue, or messages.
        tools: JSON schemas, for the template.
        max_word_tokens: Most tokens of one word.
        lookup: Whether to guess ahead by what followed the last tokens before.
        cancel: Ends the work within one step once it is set.
        grammar: What the answer may be; no span that breaks it is proposed.
        must_call: Whether the grammar allows nothing but calls of the tools.
        continues: Whether the answer continues the last message, the assistant's, in place of a new turn.
    """

    prompt: Prompt
    tools: Sequence[dict[str, Any]] | None = None
    max_word_tokens: int
    lookup: bool = False
    cancel: threading.Event
    grammar: Grammar | None = None
    must_call: bool = False
    continues: bool = False


class Member(Protocol):
    """One language model with its tokenizer."""

    name: str
    weight: float
    place: str  # as of its prefixes
    abilities: Abilities

    @property
    def prompt_reader(self) -> PromptReader:
        """How it reads prompts."""

    def open(self, opening: Opening) -> Prefix:
        """Render, encode and check a prompt. Nothing is computed by the model yet.

        Raises:
            PromptError: The prompt is empty.
            TemplateError: The member has no chat template, or it can't render the messages.
            ContextOverflowError: The prompt leaves no room for an answer.
            ConfigError: There is a grammar, and the backend can't hold the model to it.
        """

    @property
    def context_window(self) -> int | None:
        """Most tokens of prompt plus answer; None if unbounded."""

    def describe(self) -> dict[str, Any]:
        """Plain facts about the member, for people."""

    def close(self) -> None:
        """Free the model."""
