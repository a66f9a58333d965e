"""Context window and tool support of an ensemble, according to the members' files. Loads no weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW

from adafuse_core.ensemble import Ensemble
from adafuse_core.member_config import MemberConfig

logger = logging.getLogger(__name__)

_TEMPLATE_TOKENS = 64  # reserved for the text that a chat template adds
_MIN_PROMPT_TOKENS = 600  # with less room for a question and its context, LlamaIndex's refine mode fails


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Capabilities of a set of members, known before their weights are loaded.

    Args:
        members: The members.
        window: Smallest context window of the members, in tokens; None if no member declares one.
        tools: Whether all members support tools.
    """

    members: tuple[MemberConfig, ...]
    window: int | None
    tools: bool

    @classmethod
    def of(cls, ensemble: Ensemble, *, max_new_tokens: int | None) -> Self:
        """Read the files of an ensemble's members, and log a warning if the context window is small."""
        window, tools = ensemble.context_window, ensemble.supports_tools()
        if window is not None and window - (max_new_tokens or 0) < _MIN_PROMPT_TOKENS:
            logger.warning(
                "a context window of %d tokens, less %s for the answer, leaves little room for query engines; "
                "lower max_new_tokens, or use members with longer windows",
                window,
                max_new_tokens,
            )
        return cls(members=ensemble.config.members, window=window, tools=tools)

    def supports_function_calling(self, *, sends_messages: bool) -> bool:
        """Whether LlamaIndex may offer tools.

        Args:
            sends_messages: Whether prompts are messages for the members' chat templates, not plain text.
        """
        if not sends_messages:
            logger.info(
                "no function calling, because prompts are plain text: "
                "leave is_chat_model at True and messages_to_prompt unset"
            )
        return sends_messages and self.tools

    def usable_window(self, *, chat: bool) -> int:
        """Tokens that LlamaIndex may use: the context window, less a reserve for chat templates if `chat`."""
        if self.window is None:
            return DEFAULT_CONTEXT_WINDOW
        return max(1, self.window - _TEMPLATE_TOKENS) if chat else self.window
