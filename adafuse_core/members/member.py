"""A member on a backend: a language model with its tokenizer. See `members.base` for the contract."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

from adafuse_core.backends.base import Backend
from adafuse_core.errors import CancelledError, ConfigError, ContextOverflowError, PromptError
from adafuse_core.members.base import Opening
from adafuse_core.members.error_context import ErrorContext
from adafuse_core.members.masks import Masks
from adafuse_core.members.prefix import ModelPrefix
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.text.vocabulary import Vocabulary
from adafuse_core.text.words import WhitespaceWords, WordRule


@dataclass(kw_only=True, eq=False, repr=False)
class ModelMember:
    """A language model with its tokenizer."""

    name: str  # label in traces and errors
    weight: float
    prompt_reader: PromptEncoder
    backend: Backend
    end_ids: frozenset[int]  # tokens that end an answer
    context_window: int | None  # maximum number of tokens in prompt and answer; None if unbounded
    rule: WordRule = field(default_factory=WhitespaceWords)

    def __post_init__(self) -> None:
        self.abilities = self.backend.abilities()
        self.place = self.abilities.place
        reader = self.prompt_reader
        self._vocabulary = Vocabulary(reader.tokenizer, reader.codec, size=self.abilities.vocab_size)
        bounds = [bound for bound in (self.context_window, self.abilities.max_context) if bound is not None]
        self._max_context = min(bounds, default=None)

    def named(self, name: str, weight: float) -> ModelMember:
        """The same member with another name and weight."""
        member = copy.copy(self)
        member.prompt_reader = copy.copy(self.prompt_reader)
        member.name = member.prompt_reader.name = name
        member.weight = weight
        return member

    def open(self, opening: Opening) -> ModelPrefix:
        """Render, encode and check a prompt; see `Member.open`."""
        grammar = opening.grammar
        if grammar is not None and not self.abilities.masks:
            raise ConfigError(
                "tools or a grammar were given, but this member's backend can't mask tokens",
                member=self.name,
                hint="leave this member out or run it with MemberConfig(backend='local'), or ask for plain text",
            )
        encoded = self.prompt_reader.encode(
            opening.prompt, opening.tools, must_call=opening.must_call, continues=opening.continues
        )
        if grammar is not None and encoded.thinking:
            grammar = encoded.thinking.after_thought(grammar)
        ids, section = encoded.ids, encoded.section
        if max(ids) >= self.abilities.vocab_size:
            raise PromptError(
                f"the prompt has token id {max(ids)}, but the model has {self.abilities.vocab_size} tokens",
                member=self.name,
                hint="leave out control tokens that the model doesn't know, such as those for images",
            )
        if self.context_window is not None and len(ids) >= self.context_window:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, the context window is {self.context_window}",
                member=self.name,
                hint="shorten the prompt, or leave this member out",
            )

        def raise_if_cancelled() -> None:
            if opening.cancel.is_set():
                raise CancelledError("the generation was cancelled", member=self.name)

        with ErrorContext(self.name, "opening a prompt"):
            call_token = self.prompt_reader.call_token if opening.tools and not opening.must_call else None
            masks = None
            if grammar is not None:
                masks = Masks(grammar, self._vocabulary, self.end_ids, ids, section.lead, call_token)
            session = self.backend.open(
                ids,
                window=self._max_context,
                lookup=opening.lookup,
                raise_if_cancelled=raise_if_cancelled,
                allowed=masks,
                namespace=opening.namespace,
            )
        return ModelPrefix(
            name=self.name,
            weight=self.weight,
            place=self.place,
            session=session,
            prompt=encoded,
            rule=self.rule,
            end_ids=self.end_ids,
            vocab_size=self.abilities.vocab_size,
            max_context=self._max_context,
            max_word_tokens=opening.max_word_tokens,
            masks=masks,
        )

    def describe(self) -> dict[str, Any]:
        """Facts about the member, for people."""
        return {
            "name": self.name,
            "weight": self.weight,
            "context_window": self.context_window,
            **asdict(self.abilities),
            "end_tokens": [self.prompt_reader.tokenizer.convert_ids_to_tokens(index) for index in sorted(self.end_ids)],
            "chat_template": self.prompt_reader.supports_chat(),
        }

    def forget(self, namespace: str | None = None) -> None:
        """Free what is kept of ended requests; see `Member.forget`."""
        self.backend.forget(namespace)

    def close(self) -> None:
        """Free the model."""
        self.backend.close()
