"""`ToolCalling`: the part of `AdaFuseLLM` for function calling and structured output.

Requests of LlamaIndex's programs, agents and routers become options of `chat`. The core enforces the schemas.
"""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.tools.calling import acall_tool_with_selection, call_tool_with_selection
from llama_index.core.tools.types import BaseTool, ToolOutput
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from pydantic import BaseModel

from adafuse_core.chat.grammar import Grammar
from adafuse_integrations.common.python_schemas import type_schema
from adafuse_integrations.llama_index.react import ReActStep
from adafuse_integrations.llama_index.tool_calls import call_errors, tool_selections
from adafuse_integrations.llama_index.tools import as_choice, as_tools, openai_tool, supports_calls

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse


class ToolCalling(FunctionCallingLLM, ABC):
    """An LLM that calls tools and writes objects of a schema."""

    if TYPE_CHECKING:  # a field of `AdaFuseLLM`
        complete_calls: bool

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `chat` for a conversation with tools. `verbose` has no effect, because no tool runs here."""
        tools = as_tools(tools)
        choice = as_choice(tool_choice, required=tool_required)
        options = {
            "tools": [openai_tool(tool) for tool in tools],
            "tool_choice": choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
        }
        if not tools and choice in ("auto", "none"):  # an agent without tools
            options = {}
        return {"messages": _conversation(user_msg, chat_history), **options, **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tool calls of a response or chunk. The last call of a chunk contains its arguments so far.

        Args:
            response: Response or chunk of any chat endpoint.
            error_on_no_tool_call: Whether a response without calls, or with an invalid call, is an error. Otherwise the
                list may be empty, and the name of an invalid call contains its error message.
            kwargs: Ignored.

        Raises:
            ValueError: See `error_on_no_tool_call`.
        """
        found = tool_selections(response)
        if error_on_no_tool_call:
            if errors := call_errors(response):
                raise ValueError(f"expected tool calls, got an invalid {'; '.join(errors)}")
            if not found:
                raise ValueError(f"expected at least one tool call, got the text {response.message.content!r}")
        return found

    def predict_and_call(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        error_on_no_tool_call: bool = True,
        error_on_tool_error: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """Let the LLM call tools, and run the called tools. Without function calling, the LLM writes a ReAct step.

        Args:
            tools: LlamaIndex tools or plain functions.
            user_msg: The user's message.
            chat_history: Earlier messages.
            verbose: Whether to print calls and results.
            allow_parallel_tool_calls: Whether the answer may have several calls. A ReAct step has at most one.
            error_on_no_tool_call: Whether an answer without a call is an error. A ReAct step may be an answer in words
                unless `tool_required` is set.
            error_on_tool_error: Whether to raise an error that a tool raises. Otherwise the error is its result.
            kwargs: `tool_choice`, `tool_required` and options of `chat`; without function calling, also
                `react_chat_formatter` and `output_parser`.

        Raises:
            ValueError: The answer has no call, an invalid call, or a call of an unknown tool.
        """
        tools = as_tools(tools)
        if self.metadata.is_function_calling_model:
            errors = {"error_on_no_tool_call": error_on_no_tool_call, "error_on_tool_error": error_on_tool_error}
            with _unknown_tools_named(tools):
                return super().predict_and_call(
                    tools, user_msg, chat_history, verbose, allow_parallel_tool_calls, **errors, **kwargs
                )
        react = _ReActCall(tools, error_on_tool_error, {"complete_calls": self.complete_calls, **kwargs})
        response = self.chat(react.step.messages(_conversation(user_msg, chat_history)), **react.options)
        action = react.action(response)
        output = call_tool_with_selection(action, tools, verbose) if isinstance(action, ToolSelection) else None
        return react.response(action, output)

    async def apredict_and_call(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        error_on_no_tool_call: bool = True,
        error_on_tool_error: bool = False,
        **kwargs: Any,
    ) -> AgentChatResponse:
        """Async form of `predict_and_call`."""
        tools = as_tools(tools)
        if self.metadata.is_function_calling_model:
            errors = {"error_on_no_tool_call": error_on_no_tool_call, "error_on_tool_error": error_on_tool_error}
            with _unknown_tools_named(tools):
                return await super().apredict_and_call(
                    tools, user_msg, chat_history, verbose, allow_parallel_tool_calls, **errors, **kwargs
                )
        react = _ReActCall(tools, error_on_tool_error, {"complete_calls": self.complete_calls, **kwargs})
        response = await self.achat(react.step.messages(_conversation(user_msg, chat_history)), **react.options)
        action = react.action(response)
        output = await acall_tool_with_selection(action, tools, verbose) if isinstance(action, ToolSelection) else None
        return react.response(action, output)

    # Structured output. LlamaIndex's programs don't require the call while streaming, don't pass a grammar, and modify
    # the given prompt. The methods below correct this.

    def structured_predict(
        self, output_cls: type[BaseModel], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """Let the LLM write an object of a pydantic class. The JSON always obeys the schema of the class."""
        llm = self._for_objects(output_cls)
        options = llm._object_options(output_cls, llm_kwargs)
        return super(ToolCalling, llm).structured_predict(output_cls, copy.copy(prompt), options, **prompt_args)

    async def astructured_predict(
        self, output_cls: type[BaseModel], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """Async form of `structured_predict`."""
        llm = self._for_objects(output_cls)
        options = llm._object_options(output_cls, llm_kwargs)
        return await super(ToolCalling, llm).astructured_predict(output_cls, copy.copy(prompt), options, **prompt_args)

    def _structured_stream_call(
        self, output_cls: type[BaseModel], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        llm = self._for_objects(output_cls)
        program = llm._object_program(output_cls, prompt)
        return program.stream_call(llm_kwargs=llm._object_options(output_cls, llm_kwargs), **prompt_args)

    async def _structured_astream_call(
        self, output_cls: type[BaseModel], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        llm = self._for_objects(output_cls)
        program = llm._object_program(output_cls, prompt)
        return await program.astream_call(llm_kwargs=llm._object_options(output_cls, llm_kwargs), **prompt_args)

    def _for_objects(self, output_cls: type[BaseModel]) -> Self:
        """This LLM, or a copy that writes objects as text if LlamaIndex can't run a call with the class's fields."""
        if not self._objects_are_calls or supports_calls(output_cls):
            return self
        return self.model_copy(update={"pydantic_program_mode": PydanticProgramMode.LLM})

    def _object_program(self, output_cls: type[BaseModel], prompt: Any) -> BasePydanticProgram[Any]:
        options = {"tool_choice": "any"} if self._objects_are_calls else {}
        return get_program_for_llm(output_cls, copy.copy(prompt), self, self.pydantic_program_mode, **options)

    def _object_options(self, output_cls: type[BaseModel], given: Mapping[str, Any] | None) -> dict[str, Any]:
        """The caller's options, plus the options that make the answer a complete object."""
        if self._objects_are_calls:
            return {"complete_calls": True, **(given or {})}
        name = f"class {output_cls.__name__!r}"
        return {"grammar": Grammar.json_schema(type_schema(output_cls), lenient=True, name=name), **(given or {})}

    @property
    def _objects_are_calls(self) -> bool:
        mode = self.pydantic_program_mode
        supported = self.metadata.is_function_calling_model
        return mode == PydanticProgramMode.FUNCTION or (mode == PydanticProgramMode.DEFAULT and supported)


class _ReActCall:
    """A `predict_and_call` by one ReAct step.

    Args:
        tools: The tools of the step.
        error_on_tool_error: Whether to raise an error that a tool raises.
        options: Further options of `predict_and_call`; unknown options go to `chat`.
    """

    def __init__(self, tools: Sequence[BaseTool], error_on_tool_error: bool, options: Mapping[str, Any]) -> None:
        rest = dict(options)
        choice = as_choice(rest.pop("tool_choice", None), required=rest.pop("tool_required", False))
        helpers = {"formatter": rest.pop("react_chat_formatter", None), "parser": rest.pop("output_parser", None)}
        self.step = ReActStep(tools=tools, choice=choice, **{name: value for name, value in helpers.items() if value})
        self.options = {"grammar": self.step.grammar(), **rest}
        self._error_on_tool_error = error_on_tool_error

    def action(self, response: ChatResponse) -> ToolSelection | str:
        """The action of the step, or the text of its answer.

        Raises:
            ValueError: AdaFuse wrote a part of the action instead of the members.
        """
        action = self.step.parse(response.message.content or "")
        library_text = response.raw.get("library_text") if isinstance(response.raw, dict) else None
        if library_text and isinstance(action, ToolSelection) and not self.options["complete_calls"]:
            raise ValueError(
                f"the token budget or a context window ended inside the action {action.tool_name!r}, and AdaFuse "
                f"wrote {library_text[-1]['text']!r} in the members' place: raise max_new_tokens, or set "
                "complete_calls=True to accept the action"
            )
        return action

    def response(self, action: ToolSelection | str, output: ToolOutput | None) -> AgentChatResponse:
        """The response to the user: the output of the tool, or the text of the answer."""
        from llama_index.core.chat_engine.types import AgentChatResponse

        if output is None:
            return AgentChatResponse(response=str(action))
        if output.is_error and self._error_on_tool_error:
            raise ValueError(output.content)
        return AgentChatResponse(response=output.content, sources=[output])


def _conversation(user_msg: str | ChatMessage | None, chat_history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
    if user_msg is None:
        return list(chat_history or ())
    return [*(chat_history or ()), user_msg if isinstance(user_msg, ChatMessage) else ChatMessage(content=user_msg)]


@contextmanager
def _unknown_tools_named(tools: Sequence[BaseTool]) -> Iterator[None]:
    """Name an unknown tool in a `ValueError`: LlamaIndex raises a bare `KeyError`."""
    names = [tool.metadata.name for tool in tools]
    try:
        yield
    except KeyError as error:
        if not error.args or error.args[0] in names:
            raise
        raise ValueError(f"the members called {error.args[0]!r}, expected one of the tools {names}") from error
