"""A selector for LlamaIndex's routers that always chooses an existing option."""

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
    """Selector for routers that offers each choice to the LLM as a tool and requires a call.

    The call always names one of the tools. LlamaIndex's own selectors ask the LLM to write the number of a choice,
    which may be out of range.

    Args:
        llm: The LLM that chooses, such as `AdaFuseLLM`.
    """

    def __init__(self, llm: FunctionCallingLLM) -> None:
        self._llm = llm

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        tools = _tools(choices)
        response = self._llm.chat_with_tools(tools, user_msg=query.query_str, tool_required=True)
        return _result(self._llm.get_tool_calls_from_response(response), tools)

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        tools = _tools(choices)
        response = await self._llm.achat_with_tools(tools, user_msg=query.query_str, tool_required=True)
        return _result(self._llm.get_tool_calls_from_response(response), tools)

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        """The selector has no prompts."""


class _NoArguments(BaseModel):
    """A choice has no arguments."""


def _tools(choices: Sequence[ToolMetadata]) -> list[FunctionTool]:
    """The choices as tools without arguments. LlamaIndex gives equal names to tools that were made without one."""
    names = [choice.name for choice in choices]
    described = [
        ToolMetadata(
            name=name if name and names.count(name) == 1 else f"choice_{number}",
            description=choice.description,
            fn_schema=_NoArguments,
        )
        for number, (name, choice) in enumerate(zip(names, choices, strict=True), 1)
    ]
    return [FunctionTool(fn=lambda: None, metadata=data) for data in described]


def _result(calls: Sequence[ToolSelection], tools: Sequence[FunctionTool]) -> SelectorResult:
    names = [tool.metadata.name for tool in tools]
    return SelectorResult(
        selections=[SingleSelection(index=names.index(call.tool_name), reason="it was called") for call in calls]
    )
