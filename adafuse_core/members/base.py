"""The seam between strategy and member: text and numbers. Ids, tensors and templates do not cross it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import ThoughtTags
from adafuse_core.rounds import Draft, DraftPlan, Span

Prompt = str | Sequence[Message]


class WindowFull(Exception):
    """A member's context window has no room for what comes next. The answer ends for its length."""


class Prefix(Protocol):
    """One member's view of prompt and committed text; it owns the memory of it."""

    name: str
    weight: float
    thinking: ThoughtTags | None  # of the thought that the prompt begins; None if it begins none
    place: str  # the device it computes on: members of one place take turns, others work at the same time

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = ()) -> Draft:
        """Propose spans. Raises `WindowFull`.

        Args:
            plan: How far and how wide.
            hints: What others proposed, worth reading in the same pass. They do not change the draft.
        """

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether the context window has room for the span, and a closing text after it."""

    def score(self, spans: Sequence[Span]) -> list[float]:
        """Mean NLL of each span in nats per own token; all of them fit."""

    def commit(self, span: Span) -> None:
        """Extend the committed text."""

    def cost(self, span: Span, closing: str = "") -> int:
        """Tokens by which committing the span, and a closing text after it, would lengthen this member's ids."""

    def clip(self, span: Span, tokens: int) -> Span:
        """The longest beginning of the span that takes at most so many of this member's tokens."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in own tokens."""

    @property
    def completion_tokens(self) -> int:
        """Length of the committed text in own tokens."""

    def close(self) -> None:
        """Free the memory. May be called twice."""


class PromptSide(Protocol):
    """What can be told of a member without its weights."""

    name: str

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Length of a prompt in own tokens, template included."""

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


class Member(PromptSide, Protocol):
    """One language model with its tokenizer."""

    weight: float

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
    ) -> Prefix:
        """Render, encode and check a prompt. Nothing is computed by the model yet.

        Args:
            prompt: A text to continue, or messages.
            tools: JSON schemas, for the template.
            max_word_tokens: Most tokens of one word.
            lookup: Whether to guess ahead by what followed the last tokens before.
            cancel: Ends the work within one step once it is set.
            grammar: What the answer may be; no span that breaks it is proposed.
            must_call: Whether the grammar allows nothing but calls of the tools.
        """

    @property
    def context_window(self) -> int | None:
        """Most tokens of prompt plus answer; None if unbounded."""

    def describe(self) -> dict[str, Any]:
        """Plain facts about the member, for people."""

    def close(self) -> None:
        """Free the model."""
