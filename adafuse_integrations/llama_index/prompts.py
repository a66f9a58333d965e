"""Prompts of a call: messages for the members' chat templates, or plain text."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM, default_completion_to_prompt

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError, PromptError, TemplateError
from adafuse_core.request import PromptLike
from adafuse_integrations.common.running_calls import MakePrompt
from adafuse_integrations.llama_index.messages import to_messages


def completion_prompt(llm: LLM, prompt: str, *, formatted: bool, chat: bool) -> MakePrompt:
    """The prompt of a completion.

    Args:
        llm: The LLM. Its system prompt, its prompt functions, and the prompt that wraps queries apply.
        prompt: The text.
        formatted: Whether the text is a complete prompt.
        chat: Whether the members accept messages. If so, the text becomes a user message.

    Raises:
        PromptError: The prompt is not text.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"got {prompt!r} as a prompt, expected text", hint="use chat() for conversations")
    if formatted:
        return lambda _: prompt
    if llm.completion_to_prompt not in (None, default_completion_to_prompt):
        if llm.query_wrapper_prompt is not None:
            raise ConfigError("got query_wrapper_prompt and completion_to_prompt", hint="leave one of them out")
        written = llm.completion_to_prompt(prompt)
        return lambda _: written
    plain = llm._extend_prompt(prompt)
    if not chat:
        return lambda _: plain
    wrapper = llm.query_wrapper_prompt
    asked = prompt if wrapper is None else wrapper.format(query_str=prompt)
    make_chat = chat_prompt(llm, [ChatMessage(role=MessageRole.USER, content=asked)], chat=chat)
    if has_custom_template(llm):
        return make_chat
    return lambda ensemble: make_chat(ensemble) if ensemble.supports_chat() else plain


def chat_prompt(llm: LLM, messages: Sequence[ChatMessage], *, chat: bool) -> MakePrompt:
    """The prompt of a conversation; see `completion_prompt` for the arguments."""
    turns = to_messages(messages)
    if llm.system_prompt and not any(turn.role == "system" and turn.content == llm.system_prompt for turn in turns):
        messages = llm._extend_messages(list(messages))
        turns = to_messages(messages)
    if has_custom_template(llm) or not chat:
        written = (llm.messages_to_prompt or generic_messages_to_prompt)(messages)
        return lambda _: written

    def make_prompt(ensemble: Ensemble) -> PromptLike:
        if not ensemble.supports_chat():
            raise TemplateError(
                "messages were given, but not every member has a chat template",
                hint="set is_chat_model=False to send plain text, or give MemberConfig(chat_template=...)",
            )
        return turns

    return make_prompt


def has_custom_template(llm: LLM) -> bool:
    """Whether the user set `messages_to_prompt`, which replaces the members' chat templates."""
    return llm.messages_to_prompt not in (None, generic_messages_to_prompt)
