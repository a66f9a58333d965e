"""How members learn about the tools of a request: from their templates if all share a dialect, else from messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adafuse_core.chat.dialects import SHARED
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.messages import Message
from adafuse_core.chat.tool_text import with_tool_instructions
from adafuse_core.chat.tools import Tools
from adafuse_core.members.base import PromptReader


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
