"""What the members are shown for a call: messages for their own templates, or text as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM, default_completion_to_prompt

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import PromptError, TemplateError
from adafuse_core.request import PromptLike
from adafuse_integrations.llama_index.messages import to_messages

Ask = Callable[[Ensemble], PromptLike]  # the prompt, once it is known what the members can read


def ask_text(llm: LLM, prompt: str, *, formatted: bool, chat: bool) -> Ask:
    """What to show for a completion.

    Args:
        llm: Whose system prompt and prompt functions apply.
        prompt: The text.
        formatted: Whether it is a whole prompt already.
        chat: Whether members take messages; then it is one user turn.

    Raises:
        PromptError: It is no text.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"got {prompt!r} as a prompt, expected text", hint="conversations go to chat()")
    if formatted:
        return lambda _: prompt
    if llm.completion_to_prompt not in (None, default_completion_to_prompt):
        written = llm.completion_to_prompt(prompt)
        return lambda _: written
    plain = llm._extend_prompt(prompt)
    if not chat:
        return lambda _: plain
    turn = ask_messages(llm, [ChatMessage(role=MessageRole.USER, content=prompt)], chat=chat)
    if writes_messages(llm):
        return turn
    return lambda ensemble: turn(ensemble) if ensemble.supports_chat() else plain


def ask_messages(llm: LLM, messages: Sequence[ChatMessage], *, chat: bool) -> Ask:
    """What to show for a conversation; arguments as of `ask_text`."""
    turns = to_messages(messages)
    if llm.system_prompt and not any(turn.role == "system" and turn.content == llm.system_prompt for turn in turns):
        messages = llm._extend_messages(list(messages))
        turns = to_messages(messages)
    if writes_messages(llm) or not chat:
        written = (llm.messages_to_prompt or generic_messages_to_prompt)(messages)
        return lambda _: written

    def ask(ensemble: Ensemble) -> PromptLike:
        if not ensemble.supports_chat():
            raise TemplateError(
                "messages were given, but not every member has a chat template",
                hint="set is_chat_model=False to send plain text, or give MemberConfig(chat_template=...)",
            )
        return turns

    return ask


def writes_messages(llm: LLM) -> bool:
    """Whether the user brought a way of their own to write conversations."""
    return llm.messages_to_prompt not in (None, generic_messages_to_prompt)
