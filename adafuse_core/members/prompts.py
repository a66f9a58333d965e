"""Renders and encodes prompts for one member, without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adafuse_core.chat.dialects import DIALECTS, dialect_of
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
        ids: Token ids of the whole prompt.
        section: End of the prompt, with which the answer is encoded.
        thinking: Tags of the thought that the prompt opens, if any.
    """

    ids: Ids
    section: Section
    thinking: ThoughtTags | None = None


class PromptEncoder:
    """Renders and encodes prompts for one member.

    Args:
        name: Name of the member in errors.
        tokenizer: Fast transformers tokenizer.
        template_variables: Variables of the chat template.
        dialect: Name of the tool dialect; None to detect it from the chat template.
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
        """Format of the member's tool calls; None if unknown."""
        return DIALECTS[self._dialect] if self._dialect else self._template_dialect

    @property
    def shows_tools(self) -> bool:
        """Whether the chat template shows tools, with calls in the member's dialect."""
        return self._template_dialect is not None and self.dialect == self._template_dialect

    @property
    def thought_tags(self) -> ThoughtTags:
        """Tags of the member's thoughts, from its chat template."""
        return tags_in(str(self.tokenizer.chat_template))

    @property
    def call_token(self) -> int | None:
        """Id of the control token that the member writes before its calls, if its dialect has one."""
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
        """Encode a text with the tokenizer's BOS token, or messages with the chat template.

        Args:
            prompt: A text to continue, or messages. An empty text becomes the token that begins a text: the BOS token,
                or else the EOS token.
            tools: Tools for the chat template.
            must_call: Whether the answer must call a tool. The prompt then ends with the dialect's control token.
            continues: Whether the answer continues the last message, an assistant's.

        Raises:
            PromptError: The prompt has no tokens.
            TemplateError: The member has no chat template, or it can't render the messages.
        """
        if isinstance(prompt, str):
            if tools:
                raise PromptError("tools were given with a plain prompt", hint="give a list of messages")
            ids, section = self.codec.encode_prompt(prompt or self._text_start)
            thinking = None
        else:
            rendered = self._render(prompt, tools, continues=continues)
            if must_call and tools and self.call_token is not None:
                rendered += self.tokenizer.convert_ids_to_tokens(self.call_token)
            ids, section = self.codec.encode_rendered(rendered, continues=continues)
            tags = self.thought_tags
            begun = tags.left_open_by(prompt[-1].content) if continues else tags.begun_by(rendered)
            thinking = tags if begun else None
        if not ids:
            raise PromptError("the prompt is empty", member=self.name, hint="give some text")
        return Encoded(ids=ids, section=section, thinking=thinking)

    def count_tokens(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> int:
        """Length of a prompt in tokens, including the chat template; messages that can't be rendered count as text."""
        if not prompt:
            return 0
        try:
            return len(self.encode(prompt, tools).ids)
        except PromptError:
            if isinstance(prompt, str):
                raise
        return self.codec.count("\n".join(f"{message.role}: {message.content}" for message in calls_as_text(prompt)))

    def count_text_tokens(self, text: str) -> int:
        """Length of a text in tokens, without special tokens."""
        return self.codec.count(text)

    @property
    def _text_start(self) -> str:
        """Text of the token that begins a text; empty if the tokenizer adds such a token itself, or has none."""
        added = self.tokenizer("", add_special_tokens=True).input_ids
        return "" if added else str(self.tokenizer.bos_token or self.tokenizer.eos_token or "")

    @cached_property
    def _template_dialect(self) -> Dialect | None:
        """The dialect of the chat template, if it shows tools."""
        try:
            self._render([Message(role="user", content="?")], [_PROBE])
            return dialect_of(self.tokenizer.get_chat_template(tools=[_PROBE]))
        except TemplateError:
            return None

    def _render(
        self, messages: Sequence[Any], tools: Sequence[dict[str, Any]] | None, *, continues: bool = False
    ) -> str:
        if not self.supports_chat():
            raise TemplateError(
                "this member has no chat template, but messages were given",
                member=self.name,
                hint="pass a plain text as prompt, or set MemberConfig(chat_template=...)",
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
