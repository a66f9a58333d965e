"""The interface between strategies and members: text and numbers, no token ids, tensors or templates."""

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
EMPTY_SPAN = Span(text="")


class WindowFull(Exception):
    """The next tokens don't fit into a member's context window. The answer ends with reason "length"."""


class Prefix(Protocol):
    """One member's view of prompt and committed text; owns their memory.

    All spans start at the end of the committed text. A prefix is used by one thread at a time.
    """

    name: str
    weight: float
    thinking: ThoughtTags | None  # tags of a thought that the prompt opens, or None
    place: str  # the hardware it runs on: members of one place take turns, others run in parallel

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = (), after: Span = EMPTY_SPAN) -> Draft:
        """Propose spans.

        Args:
            plan: Limits in words, branches and tokens.
            hints: Spans proposed by other members, to be computed in the same pass. They don't change the draft.
            after: An uncommitted span to continue; every proposed span starts with it. It must fit into the context
                window, and not end the answer.

        Raises:
            WindowFull: The context window has no room for another token.
            VocabularyError: The grammar allows no token of the vocabulary.
        """

    def draft_each(self, plan: DraftPlan, afters: Sequence[Span], hints: Sequence[Span] = ()) -> list[Draft | None]:
        """Propose spans after several uncommitted spans, in the same passes.

        Args:
            plan: Limits of each draft.
            afters: Different spans to continue, as `after` in `draft`.
            hints: As in `draft`.

        Returns:
            For each span its draft; None where the context window has no room for another token. A draft has no spans
            where the grammar allows no token of the vocabulary.
        """

    def next_tokens(self, count: int | None = None, after: Span = EMPTY_SPAN) -> tuple[NextToken, ...]:
        """The distribution of the next token, likeliest first, with the probabilities of equal texts added up.

        Args:
            count: Number of likeliest tokens to look at; None for the whole vocabulary.
            after: An uncommitted span to continue, as in `draft`.

        Returns:
            Texts in whole characters; all end tokens are one entry. The likeliest tokens without text, such as the
            space before an answer, and with a part of a character are extended greedily until they have whole
            characters; the others are left out, so that the probabilities can add up to less than one. If one of these
            texts is committed next, the member keeps its own tokens for it.

        Raises:
            WindowFull: The context window has no room for another token.
        """

    def score(self, spans: Sequence[Span]) -> list[Score]:
        """Log-probabilities of each span's tokens, computed in one pass. All spans must fit."""

    def score_prompt(self, size: int) -> Score:
        """Log-probabilities of the last prompt tokens, which hold at least so many bytes, if the prompt has as many.

        Called before anything is drafted or scored, it costs little: the prompt is read anyway.
        """

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether the context window has room for the span and a closing text after it."""

    def commit(self, span: Span) -> None:
        """Append the span to the committed text."""

    def cost(self, span: Span, closing: str = "") -> int:
        """Number of tokens that committing the span, and a closing text after it, would add."""

    def truncate(self, span: Span, tokens: int) -> Span:
        """The longest beginning of the span that costs at most `tokens` tokens."""

    @property
    def text(self) -> str:
        """The committed text. It can differ from what a strategy proposed in earlier rounds."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in the member's tokens."""

    @property
    def completion_tokens(self) -> int:
        """Length of the committed text in the member's tokens."""

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not read, since an earlier request had read them."""

    @property
    def read_tokens(self) -> int:
        """Tokens that the model has read so far: the rest of the prompt, answer, candidates and guesses."""

    def close(self) -> None:
        """Free the memory. May be called twice."""


class PromptReader(Protocol):
    """Renders and counts prompts for one member, without its weights."""

    name: str

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Length of a prompt in the member's tokens, chat template included; without it, if rendering fails."""

    def count_text_tokens(self, text: str) -> int:
        """Length of a plain text in the member's tokens, without BOS token or template."""

    def supports_chat(self) -> bool:
        """Whether the member has a chat template."""

    @property
    def dialect(self) -> Dialect | None:
        """How the member writes tool calls; None if unknown."""

    @property
    def shows_tools(self) -> bool:
        """Whether the template renders tools. Otherwise the messages have to describe them."""

    @property
    def thought_tags(self) -> ThoughtTags:
        """Tags around the member's thoughts."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Arguments of `Member.open`."""

    prompt: Prompt  # a text to continue, or messages
    tools: Sequence[dict[str, Any]] | None = None  # JSON schemas, for the template
    max_word_tokens: int
    lookup: bool = False  # whether to guess the next tokens by prompt lookup
    cancel: threading.Event  # when set, the member stops within one step
    grammar: Grammar | None = None  # all proposed spans obey it
    must_call: bool = False  # whether the grammar allows only tool calls
    continues: bool = False  # whether the answer continues the last message, which is the assistant's
    namespace: str = ""  # what was computed for a beginning serves only requests of the same namespace


class Member(Protocol):
    """One language model with its tokenizer."""

    name: str
    weight: float
    place: str  # see `Prefix.place`
    abilities: Abilities

    @property
    def prompt_reader(self) -> PromptReader:
        """Renders and counts the member's prompts."""

    def open(self, opening: Opening) -> Prefix:
        """Render, encode and check a prompt. The model computes nothing yet.

        Raises:
            PromptError: The prompt is empty.
            TemplateError: The member has no chat template, or the template can't render the messages.
            ContextOverflowError: The prompt leaves no room for an answer.
            ConfigError: A grammar was given, but the backend can't mask tokens.
        """

    @property
    def context_window(self) -> int | None:
        """Maximum number of tokens in prompt and answer; None if unbounded."""

    def describe(self) -> dict[str, Any]:
        """Facts about the member, for people."""

    def forget(self, namespace: str | None = None) -> None:
        """Free what is kept of ended requests, of one namespace or of all."""

    def close(self) -> None:
        """Free the model."""
