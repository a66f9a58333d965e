"""How members are shown the tools of a request: by their own templates if all share a dialect, else by instructions."""

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
    """Find the dialect in which all members can call the same tools.

    Returns:
        The dialect, the messages to open the members with, and the tools to open them with; None where the
        messages hold instructions instead.
    """
    spoken = {reader.dialect for reader in readers}
    common = spoken.pop() if len(spoken) == 1 else None
    if common is not None and all(reader.shows_tools for reader in readers):
        return common, messages, list(tools.schemas)
    dialect = common or SHARED
    return dialect, with_tool_instructions(messages, tools, dialect), None
