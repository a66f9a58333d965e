"""Shows the tools of a request to the members: by chat templates if all share a dialect, else by a system message."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from adafuse_core.chat.dialects import SHARED
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.messages import Message
from adafuse_core.chat.tool_text import with_tool_instructions
from adafuse_core.chat.tools import Tools
from adafuse_core.members.base import PromptReader

logger = logging.getLogger(__name__)


def show_tools(
    messages: Sequence[Message], tools: Tools, readers: Sequence[PromptReader]
) -> tuple[Dialect, Sequence[Message], list[dict[str, Any]] | None]:
    """Choose the dialect in which all members call the tools.

    Returns:
        The dialect, and the messages and tools for `Member.open`. The tools are None if the messages describe them.
    """
    dialects = {reader.dialect for reader in readers}
    common = dialects.pop() if len(dialects) == 1 else None
    if common is not None and all(reader.shows_tools for reader in readers):
        return common, messages, list(tools.schemas)
    dialect = common or SHARED
    return dialect, with_tool_instructions(messages, tools, dialect), None


def can_call_tools(readers: Sequence[PromptReader]) -> bool:
    """Whether all members have a chat template, as tools require. The log says how tools are shown, or why not."""
    possible, how = tool_display(readers)
    if how is not None:
        logger.info(how)
    return possible


def tool_display(readers: Sequence[PromptReader]) -> tuple[bool, str | None]:
    """Whether all members can call tools, and how tools are shown or why not; None if by the chat templates."""
    without = [reader.name for reader in readers if not reader.supports_chat()]
    if without:
        return False, f"no tool calling: no chat template in {', '.join(without)}; set chat_template of the member"
    without = [reader.name for reader in readers if not reader.shows_tools]
    dialects = {reader.dialect.name for reader in readers if reader.dialect is not None}
    if without:
        reason = f"the chat template of {', '.join(without)} shows no tools"
    elif len(dialects) > 1:
        reason = f"the chat templates use different formats for calls ({', '.join(sorted(dialects))})"
    else:
        return True, None
    return True, f"a system message describes the tools to all members: {reason}"
