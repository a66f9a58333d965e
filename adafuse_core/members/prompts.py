"""A member's way with prompts: its template, its tokenizer, its tool dialect. No weights are needed for any of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adafuse_core.chat.dialects import DIALECTS, spoken_by
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.messages import Message
from adafuse_core.chat.templates import render_chat
from adafuse_core.chat.thoughts import ThoughtTags, tags_in
from adafuse_core.chat.tool_text import calls_as_text
from adafuse_core.errors import PromptError, TemplateError
from adafuse_core.members.base import Prompt
from adafuse_core.text.ids import Ids
from adafuse_core.text.tokens import Codec, Section

_PROBE = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object", "properties": {}}}}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A prompt in a member's tokens.

    Args:
        ids: Of the whole prompt.
        section: Where the answer stands.
        thinking: The tags of the thought inside which the answer begins; None if it begins in no thought.
    """

    ids: Ids
    section: Section
    thinking: ThoughtTags | None = None


class PromptEncoder:
    """Renders and encodes prompts for one member.

    Args:
        name: The member's, for errors.
        tokenizer: Fast transformers tokenizer.
        template_variables: Handed to the chat template.
        dialect: Name of the form in which the member calls tools; None for the one that the chat template shows.
    """

    def __init__(
        self, *, name: str, tokenizer: Any, template_variables: dict[str, Any] | None = None, dialect: str | None = None
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.codec = Codec(tokenizer)
        self._template_variables = template_variables or {}
        self._dialect = dialect

    def supports_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    @property
    def dialect(self) -> Dialect | None:
        """How the member writes tool calls; None if its template tells nothing of it."""
        return DIALECTS[self._dialect] if self._dialect else self._template_dialect

    @property
    def shows_tools(self) -> bool:
        """Whether the chat template shows tools, and calls in the member's dialect."""
        return self._template_dialect is not None and self.dialect == self._template_dialect

    @property
    def thought_tags(self) -> ThoughtTags:
        """How the member marks thoughts: as its template shows, or else in the usual way."""
        return tags_in(str(self.tokenizer.chat_template))

    @property
    def silent(self) -> int | None:
        """The control token that the member writes before its calls, if its dialect has one."""
        token = self.dialect.token if self.dialect else None
        index = None if token is None else self.tokenizer.get_vocab().get(token)
        return index if index in self.codec.special_ids else None

    def encode(
        self,
        prompt: Prompt,
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        must_call: bool = False,
        continues: bool = False,
    ) -> Encoded:
        """A text with the tokenizer's own opening tokens, or messages in the chat template.

        Args:
            prompt: A text to continue, or messages.
            tools: For the template.
            must_call: Whether the answer is to call tools, so that the token for that is written already.
            continues: Whether it is to continue the last message, which is the assistant's.

        Raises:
            PromptError: The prompt is empty.
            TemplateError: The member has no chat template, or it can't render the messages.
        """
        if isinstance(prompt, str):
            if tools:
                raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
            ids, section = self.codec.encode_prompt(prompt)
            thinking = None
        else:
            rendered = self._render(prompt, tools, continues=continues)
            if must_call and tools and self.silent is not None:
                rendered += self.tokenizer.convert_ids_to_tokens(self.silent)
            ids, section = self.codec.encode_rendered(rendered, continues=continues)
            tags = self.thought_tags
            begun = tags.left_open_by(prompt[-1].content) if continues else tags.begun_by(rendered)
            thinking = tags if begun else None
        if not ids:
            raise PromptError("the prompt is empty", member=self.name, hint="give some text")
        return Encoded(ids=ids, section=section, thinking=thinking)

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Length of a prompt in own tokens, template included; messages that can't be rendered are counted as text."""
        if not prompt:
            return 0
        try:
            return len(self.encode(prompt, tools).ids)
        except PromptError:
            if isinstance(prompt, str):
                raise
        return self.codec.count("\n".join(f"{message.role}: {message.content}" for message in calls_as_text(prompt)))

    def count_text_tokens(self, text: str) -> int:
        """Length of a bare text in own tokens."""
        return self.codec.count(text)

    @cached_property
    def _template_dialect(self) -> Dialect | None:
        """The dialect of the chat template, if it shows tools at all."""
        try:
            self._render([Message(role="user", content="?")], [_PROBE])
            return spoken_by(self.tokenizer.get_chat_template(tools=[_PROBE]))
        except TemplateError:
            return None

    def _render(
        self, messages: Sequence[Any], tools: Sequence[dict[str, Any]] | None, *, continues: bool = False
    ) -> str:
        if not self.supports_chat():
            raise TemplateError(
                "this member has no chat template, but messages were given",
                member=self.name,
                hint="give a plain string as prompt, or set MemberConfig(chat_template=...)",
            )
        return render_chat(
            self.tokenizer,
            messages,
            tools=tools,
            mark=self.codec.mark_control_tokens,
            variables=self._template_variables,
            tags=self.thought_tags,
            continues=continues,
            member=self.name,
        )
