"""A member without a model that writes a given text. For tests, demos and the development of applications.

It implements the contract of `members.base` on text: an ensemble of scripted members runs the same decoding loop as an
ensemble of models. Each word counts as one token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adafuse_core.backends.base import Abilities
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.messages import Message
from adafuse_core.chat.thoughts import THINK
from adafuse_core.checks import expect, expect_choice, expect_encodable, expect_mapping, expect_number, strings
from adafuse_core.errors import ContextOverflowError, PromptError, TemplateError
from adafuse_core.members.base import Opening, Prompt
from adafuse_core.members.script import Script, count_words
from adafuse_core.members.scripted_prefix import ScriptedPrefix


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
        logprobs: Log-probabilities of the tokens of some words, by the word without blanks, in place of one token with
            the usual value.
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
        logprobs: Mapping[str, Sequence[float]] | None = None,
        ends_answer: bool = True,
        context_window: int | None = None,
        chat: bool = True,
        dialect: str = "hermes",
        fail_after: int | None = None,
        delay: float = 0.0,
        place: str = "script",
    ) -> None:
        expect(isinstance(reply, str) or callable(reply), "reply", reply, "a text, or a function that returns one")
        expect_choice("dialect", dialect, DIALECTS)
        expect_number("delay", delay, at_least=0)
        expect_mapping("logprobs", {} if logprobs is None else logprobs)
        expect(not isinstance(alternatives, str), "alternatives", alternatives, "a list of texts")
        self.name = name
        self.place = place
        self.weight = weight
        self.margin = margin
        self.alternatives = strings("alternatives", alternatives)
        self.logprobs = dict(logprobs or {})
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
        expect(isinstance(reply, str), f"reply of {self.name!r}", reply, "a text")
        expect_encodable(f"reply of {self.name!r}", reply)
        guide = None if grammar is None else grammar.guide()
        script = Script(reply, ends=self.ends_answer, resumes=guide is not None)
        return ScriptedPrefix(self, script, length, opening.cancel, guide)

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

    def forget(self, namespace: str | None = None) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing to free."""

    def count_draft(self) -> None:
        """Count a draft of an answer."""
        self._drafted.append(None)

    def __repr__(self) -> str:
        return f"ScriptedMember({self.name!r})"


def _shown(message: Message) -> str:
    calls = json.dumps([{"name": call.name, "arguments": call.arguments} for call in message.tool_calls])
    return message.content + (calls if message.tool_calls else "")
