"""A selector for LlamaIndex's routers that can't choose what is not there."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.types import ToolMetadata
from pydantic import BaseModel


class ToolCallSelector(BaseSelector):
    """Chooses by a tool call that has to be made: each choice is shown as a tool.

    LlamaIndex's own selectors ask for a number and a reason, and a number can be out of range. A forced call names one
    of the tools, whatever the members are like.

    Args:
        llm: Who chooses.
    """

    def __init__(self, llm: FunctionCallingLLM) -> None:
        self._llm = llm

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        tools = [_tool(number, choice) for number, choice in enumerate(choices)]
        response = self._llm.chat_with_tools(tools, user_msg=query.query_str, tool_required=True)
        return _chosen(self._llm.get_tool_calls_from_response(response), tools)

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        tools = [_tool(number, choice) for number, choice in enumerate(choices)]
        response = await self._llm.achat_with_tools(tools, user_msg=query.query_str, tool_required=True)
        return _chosen(self._llm.get_tool_calls_from_response(response), tools)

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        """There are none."""


class _Nothing(BaseModel):
    """The arguments of a choice."""


def _tool(number: int, choice: ToolMetadata) -> FunctionTool:
    """A choice as a tool without arguments."""
    name = choice.name or f"choice_{number + 1}"
    data = ToolMetadata(name=name, description=choice.description, fn_schema=_Nothing)
    return FunctionTool(fn=lambda: None, metadata=data)


def _chosen(called: Sequence[ToolSelection], tools: Sequence[FunctionTool]) -> SelectorResult:
    names = [tool.metadata.name for tool in tools]
    return SelectorResult(
        selections=[SingleSelection(index=names.index(call.tool_name), reason="it was called") for call in called]
    )
