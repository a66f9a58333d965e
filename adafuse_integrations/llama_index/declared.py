"""What the files of an ensemble's members declare: what fits, and whether tools can be shown. Reads no weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW

from adafuse_core.ensemble import Ensemble
from adafuse_core.member_config import MemberConfig

logger = logging.getLogger(__name__)

_TEMPLATE_TOKENS = 64  # what a chat template writes around a question and its context
_LEAST_ROOM = 600  # tokens for context and question below which LlamaIndex's refine mode gives up


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What is known of some members before they are loaded.

    Args:
        members: Those.
        window: The smallest of their context windows, in tokens; None if none is declared.
        tools: Whether all can be shown tools.
    """

    members: tuple[MemberConfig, ...]
    window: int | None
    tools: bool

    @classmethod
    def by(cls, ensemble: Ensemble, *, max_new_tokens: int | None) -> Self:
        """Read the files of an ensemble's members; warn if there is little room beside the answer."""
        window, tools = ensemble.context_window, ensemble.supports_tools()
        if window is not None and window - (max_new_tokens or 0) < _LEAST_ROOM:
            logger.warning(
                "a context window of %d tokens less %s for the answer is little for query engines; "
                "lower max_new_tokens, or use members with longer windows",
                window,
                max_new_tokens,
            )
        return cls(members=ensemble.config.members, window=window, tools=tools)

    def calls_functions(self, *, sends_messages: bool) -> bool:
        """Whether LlamaIndex may offer tools.

        Args:
            sends_messages: Whether prompts are messages for the members' own templates, not text.
        """
        if not sends_messages:
            logger.info(
                "no function calling, because prompts are plain text: "
                "leave is_chat_model at True and messages_to_prompt unset"
            )
        return sends_messages and self.tools

    def room(self, *, chat: bool) -> int:
        """Tokens that LlamaIndex may fill: the window less what templates take, if there are any."""
        if self.window is None:
            return DEFAULT_CONTEXT_WINDOW
        return max(1, self.window - _TEMPLATE_TOKENS) if chat else self.window
