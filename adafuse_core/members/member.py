"""A member on a backend: drafting, scoring and committing, written once for every backend.

Texts are turned into ids by `text.tokens`, words are found by `members.writer`; the backend only ever
sees ids. See `members.base` for the contract.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from adafuse_core.backends.base import Abilities, Backend, Session, Step
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.grammar import Grammar
from adafuse_core.errors import (
    AdaFuseError,
    CancelledError,
    ContextOverflowError,
    MemberError,
    PromptError,
)
from adafuse_core.members.base import Prompt, WindowFull
from adafuse_core.members.masks import Masks
from adafuse_core.members.prompts import Encoded, PromptEncoder
from adafuse_core.members.writer import Writer
from adafuse_core.rounds import Draft, DraftPlan, Span
from adafuse_core.text.ids import Ids, shared_length
from adafuse_core.text.tokens import INCOMPLETE
from adafuse_core.text.vocabulary import Vocabulary
from adafuse_core.text.words import WhitespaceWords, WordRule


class ModelMember:
    """A language model with its tokenizer.

    Args:
        name: Label in traces and errors.
        weight: Of its vote.
        encoder: Of its prompts.
        backend: Its model.
        end_ids: Tokens that end an answer.
        context_window: Most tokens of prompt plus answer; None if unbounded.
        rule: Where words end.
    """

    def __init__(
        self,
        *,
        name: str,
        weight: float,
        encoder: PromptEncoder,
        backend: Backend,
        end_ids: frozenset[int],
        context_window: int | None,
        rule: WordRule | None = None,
    ) -> None:
        self.name = name
        self.weight = weight
        self.backend = backend
        self.end_ids = end_ids
        self.rule = rule or WhitespaceWords()
        self._encoder = encoder
        abilities = backend.check()
        self._vocab_size, self.place = abilities.vocab_size, abilities.device
        self._vocabulary = Vocabulary(encoder.tokenizer, encoder.codec, size=self._vocab_size)
        self._context_window = context_window
        bounds = [bound for bound in (context_window, abilities.max_context) if bound is not None]
        self.longest = min(bounds, default=None)

    def named(self, name: str, weight: float) -> ModelMember:
        """The same member under another name, and with another weight."""
        member = copy.copy(self)
        member._encoder = copy.copy(self._encoder)
        member.name = member._encoder.name = name
        member.weight = weight
        return member

    @property
    def context_window(self) -> int | None:
        """Most tokens of prompt plus answer; None if unbounded."""
        return self._context_window

    def supports_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return self._encoder.supports_chat()

    @property
    def dialect(self) -> Dialect | None:
        """How the member writes tool calls; None if its template tells nothing of it."""
        return self._encoder.dialect

    @property
    def shows_tools(self) -> bool:
        """Whether the chat template shows tools, and calls in the member's dialect."""
        return self._encoder.shows_tools

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Length of a prompt in own tokens, template included."""
        return self._encoder.count_tokens(prompt, tools)

    def count_text_tokens(self, text: str) -> int:
        """Length of a bare text in own tokens."""
        return self._encoder.count_text_tokens(text)

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
    ) -> ModelPrefix:
        """Render, encode and check a prompt; the model computes nothing yet.

        Raises:
            PromptError: The prompt is empty.
            TemplateError: The member has no chat template, or it can't render the messages.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        encoded = self._encoder.encode(prompt, tools, must_call=must_call)
        if grammar is not None and encoded.thinking:
            grammar = grammar.after_thought()
        ids, section = encoded.ids, encoded.section
        if max(ids) >= self._vocab_size:
            raise PromptError(
                f"the prompt has token {max(ids)}, the model reads {self._vocab_size}",
                member=self.name,
                hint="leave out control tokens for images and the like",
            )
        if self._context_window is not None and len(ids) >= self._context_window:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, the context window is {self._context_window}",
                member=self.name,
                hint="shorten the prompt, or leave this member out",
            )

        def check() -> None:
            if cancel.is_set():
                raise CancelledError("the generation was cancelled", member=self.name)

        with _Blame(self.name, "opening a prompt"):
            silent = self._encoder.silent if tools and not must_call else None
            masks = None
            if grammar is not None:
                masks = Masks(grammar, self._vocabulary, self.end_ids, ids, section.lead, silent)
            session = self.backend.open(ids, window=self.longest, lookup=lookup, check=check, allowed=masks)
        return ModelPrefix(self, session, encoded, max_word_tokens, masks)

    def describe(self) -> dict[str, Any]:
        """Plain facts about the member, for people."""
        abilities: Abilities = self.backend.check()
        return {
            "name": self.name,
            "weight": self.weight,
            "context_window": self._context_window,
            "vocab_size": abilities.vocab_size,
            "dtype": abilities.dtype,
            "device": abilities.device,
            "cache": abilities.cache,
            "max_kv_tokens": abilities.max_kv_tokens,
            "end_tokens": [self._encoder.tokenizer.convert_ids_to_tokens(index) for index in sorted(self.end_ids)],
            "chat_template": self.supports_chat(),
        }

    def close(self) -> None:
        """Free the model."""
        self.backend.close()


class ModelPrefix:
    """Prompt and committed text as one member's ids.

    The member keeps the ids it wrote itself where its own draft was committed; text by others is
    encoded. So one member alone decodes exactly as its own greedy search does.
    """

    def __init__(
        self,
        member: ModelMember,
        session: Session,
        prompt: Encoded,
        max_word_tokens: int,
        masks: Masks | None,
    ) -> None:
        self.name = member.name
        self.weight = member.weight
        self.place = member.place
        self._member = member
        self._session = session
        self._section = prompt.section
        self._max_word_tokens = max_word_tokens
        self._masks = masks
        self.thinking = prompt.thinking
        self._ids = prompt.ids  # prompt and answer
        self._prompt_length = len(prompt.ids)
        self._text = ""  # of the answer
        self._drafted: dict[Span, Ids] = {}  # own ids of this round's spans
        self._decoded: dict[Ids, str] = {}  # texts of ids after the answer, of this round
        self._written: dict[str, tuple[Ids, Ids]] = {}  # how texts of this round are written after the answer

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in own tokens."""
        return self._prompt_length

    @property
    def completion_tokens(self) -> int:
        """Length of the committed text in own tokens."""
        return max(0, len(self._ids) - self._prompt_length)

    def draft(self, plan: DraftPlan, hints: Sequence[Span] = ()) -> Draft:
        """Write words while confident, branch at the first unsure one; see the rule in docs/architecture.md.

        Raises:
            WindowFull: No token more fits.
        """
        with self._blame("drafting"):
            guesses = self._ahead(hints)
            ids, ended, unsure, margins = self._confident_run(plan, guesses)
            if unsure is None:
                spans = [self._span(ids, ended)]
            else:
                spans = [self._span(*variant) for variant in self._branch(ids, unsure.ids[: plan.branches], guesses)]
            return Draft(member=self.name, spans=tuple(spans), margins=tuple(margins))

    def fits(self, span: Span, closing: str = "") -> bool:
        """Whether there is room for the span, as it would be scored and as it would be committed."""
        longest = self._member.longest
        if longest is None:
            return True
        context, ids = self._write(span.text)
        return max(len(context) + len(ids) + span.ends, len(self._ids_closed(span, closing))) <= longest

    def score(self, spans: Sequence[Span]) -> list[float]:
        """Mean NLL of each span: the ids of answer plus span from the first that differs from the answer's own."""
        with self._blame("scoring"):
            requests: list[tuple[Ids, Ids]] = []
            ends = sorted(self._member.end_ids)
            for span in spans:
                context, ids = self._write(span.text)
                requests += [(context, (*ids, end)) for end in ends] if span.ends else [(context, ids)]
            contexts, continuations = zip(*requests, strict=True)
            answers = iter(self._session.score(contexts, continuations, self._ahead(spans)))
            return [_mean_nll([next(answers) for _ in (ends if span.ends else "1")]) for span in spans]

    def commit(self, span: Span) -> None:
        """Extend the committed text."""
        with self._blame("committing"):
            self._ids = self._ids_after(span)
            self._text += span.text
            self._drafted, self._decoded, self._written = {}, {}, {}
            if self._masks is not None:
                self._masks.commit(self._ids, span.text)
            self._session.commit(self._ids)

    def cost(self, span: Span, closing: str = "") -> int:
        """Tokens by which committing the span, and a closing text after it, would lengthen the ids."""
        return len(self._ids_closed(span, closing)) - len(self._ids)

    def clip(self, span: Span, tokens: int) -> Span:
        """The longest beginning of the span that takes at most so many tokens; whole characters only."""
        ids = self._ids_after(span)
        excess = len(ids) - len(self._ids) - tokens
        if excess <= 0:
            return span
        kept = shared_length(self._ids, ids)
        seam = self._section.decode(ids[:kept], self._ids[kept:], opens=False)  # what a straddling token rewrites
        for length in range(len(ids) - excess, kept, -1):
            text = self._section.decode(ids[:kept], ids[kept:length], opens=not self._text)
            if text.startswith(seam) and span.text.startswith(text[len(seam) :]):
                clipped = Span(text=text[len(seam) :])
                if kept == len(self._ids):
                    self._drafted.setdefault(clipped, ids[kept:length])
                return clipped
        return Span(text="")

    def close(self) -> None:
        """Free the memory. May be called twice."""
        self._session.close()

    def _confident_run(self, plan: DraftPlan, guesses: Sequence[Ids]) -> tuple[Ids, bool, Step | None, list[float]]:
        """The greedy words up to M, to the end of the answer, or to the first unsure word.

        Returns:
            Their ids, whether the answer ends after them, the unsure step if there is one, and the
            margins that were looked at.
        """
        writer = self._writer()
        margins: list[float] = []
        goal = plan.max_words
        unsure: Step | None = None

        def until(_: int, steps: list[Step]) -> bool:
            nonlocal goal, unsure
            writer.push(steps[-1].ids[0])
            while (
                len(margins) < goal and len(margins) <= writer.words and writer.word_starts[len(margins)] < len(steps)
            ):
                step = steps[writer.word_starts[len(margins)]]
                margins.append(_margin(step))
                if margins[-1] < plan.tau:
                    if plan.branches > 1:
                        unsure = step
                        return True
                    goal = len(margins)  # one branch is the greedy word itself: finish it and stop
            return writer.ended or writer.words >= goal

        longest = (goal + 1) * (self._max_word_tokens + 4)
        top = max(2, plan.branches)
        self._session.draft([self._ids], min(longest, self._room()), top, until, guesses)
        if unsure is not None:
            return tuple(writer.ids[: writer.word_starts[len(margins) - 1]]), False, unsure, margins
        return *self._finished(writer, goal), None, margins

    def _branch(self, ids: Ids, tokens: Ids, guesses: Sequence[Ids]) -> list[tuple[Ids, bool]]:
        """Variants that begin with each token and finish its word greedily: ids, and whether the answer ends."""
        variants: dict[int, tuple[Ids, bool]] = {}
        writers: dict[int, Writer] = {}
        for branch, token in enumerate(tokens):
            if token in self._member.end_ids:
                variants[branch] = (ids, True)
            else:
                writers[branch] = self._writer(ids)
                writers[branch].push(token)
        rows = list(writers)

        def until(row: int, steps: list[Step]) -> bool:
            writer = writers[rows[row]]
            writer.push(steps[-1].ids[0])
            return writer.ended or writer.words >= 1

        room = self._room() - len(ids) - 1
        if rows and room > 0:
            contexts = [(*self._ids, *writers[branch].ids) for branch in rows]
            self._session.draft(contexts, min(2 * self._max_word_tokens, room), 1, until, guesses)
        variants |= {branch: self._finished(writer, 1) for branch, writer in writers.items()}
        return [variants[branch] for branch in sorted(variants)]

    def _finished(self, writer: Writer, words: int) -> tuple[Ids, bool]:
        """What a continuation proposes once it stopped, and whether the answer ends after it."""
        if writer.words >= words:
            return tuple(writer.ids[: writer.word_starts[words]]), False
        if writer.at_end:
            return tuple(writer.ids), True
        if writer.words:
            return tuple(writer.ids[: writer.word_starts[-1]]), False
        if not writer.text(len(writer.ids)) and self._masks is None:  # nothing visible in all that room: an end
            return tuple(writer.ids), True
        whole = [n for n in range(1, len(writer.ids) + 1) if not writer.text(n).endswith(INCOMPLETE)]
        if not whole:
            raise WindowFull
        return tuple(writer.ids[: whole[-1]]), False

    def _writer(self, start: Ids = ()) -> Writer:
        return Writer(self._decode, self._member.rule, self._member.end_ids, self._max_word_tokens, start)

    def _decode(self, ids: Ids) -> str:
        text = self._decoded.get(ids)
        if text is None:
            text = self._decoded[ids] = self._section.decode(self._ids, ids, opens=not self._text)
        return text

    def _span(self, ids: Ids, ends: bool) -> Span:
        span = Span(text=self._decode(ids), ends=ends)
        self._drafted.setdefault(span, ids)
        return span

    def _ids_after(self, span: Span) -> Ids:
        drafted = self._drafted.get(span)
        if drafted is not None:
            return self._ids + drafted
        context, ids = self._write(span.text)
        return context + ids

    def _ids_closed(self, span: Span, closing: str) -> Ids:
        ids = self._ids_after(span)
        if not closing:
            return ids
        context, more = self._section.extend(ids, self._text + span.text, closing)
        return context + more

    def _write(self, text: str) -> tuple[Ids, Ids]:
        """Where and how a text is written after the answer; see `Section.extend`."""
        if text not in self._written:
            self._written[text] = self._section.extend(self._ids, self._text, text)
        return self._written[text]

    def _ahead(self, spans: Sequence[Span]) -> list[Ids]:
        """Contexts that end with spans which may be committed: the next round begins after one of them."""
        longest = math.inf if self._member.longest is None else self._member.longest
        contexts = [context + ids for context, ids in (self._write(span.text) for span in spans)]
        return [context for context in contexts if len(context) <= longest]

    def _room(self) -> int:
        """Tokens that still fit in."""
        longest = self._member.longest
        if longest is None:
            return 1 << 30
        if len(self._ids) >= longest:
            raise WindowFull
        return longest - len(self._ids)

    def _blame(self, work: str) -> _Blame:
        return _Blame(self.name, work)


class _Blame(AbstractContextManager[None]):
    """Names the member in whatever goes wrong."""

    def __init__(self, member: str, work: str) -> None:
        self._member = member
        self._work = work

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, AdaFuseError):
            error.member = error.member or self._member
        elif isinstance(error, Exception) and not isinstance(error, WindowFull):
            problem = f"failed while {self._work}: {type(error).__name__}: {error}"
            raise MemberError(problem, member=self._member) from error


def _margin(step: Step) -> float:
    """Top-1 minus top-2 probability (Δ in the paper)."""
    if len(step.logprobs) < 2:
        return 1.0
    return math.exp(step.logprobs[0]) - math.exp(step.logprobs[1])


def _mean_nll(variants: Sequence[Sequence[float]]) -> float:
    """Mean NLL of a continuation. Variants differ in their last token: one end token or another, as one event."""
    logprobs = list(variants[0])
    if len(variants) > 1:
        logprobs[-1] = _logsumexp([variant[-1] for variant in variants])
    return -math.fsum(logprobs) / len(logprobs) if logprobs else 0.0


def _logsumexp(logprobs: Sequence[float]) -> float:
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))
