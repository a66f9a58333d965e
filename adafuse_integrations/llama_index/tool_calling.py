"""Function calling and structured output in LlamaIndex's terms, on top of the endpoints of an LLM.

What LlamaIndex's programs, agents and routers ask for is said here in options of `chat`; the core sees to it that
forced calls and JSON obey their schema.
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
from adafuse_integrations.llama_index import calls
from adafuse_integrations.llama_index.react import ReActStep
from adafuse_integrations.llama_index.tools import as_tools

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse


class ToolCalling(FunctionCallingLLM, ABC):
    """The part of `AdaFuseLLM` that calls tools and fills in objects."""

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
        """Arguments of `chat` for a conversation with tools. `verbose` is for those who run them."""
        tools = as_tools(tools)
        choice = calls.choice(tool_choice, required=tool_required)
        offered = {
            "tools": [calls.shown(tool) for tool in tools],
            "tool_choice": choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
        }
        nothing = not tools and choice in ("auto", "none")  # an agent may have no tools
        return {"messages": _conversation(user_msg, chat_history), **({} if nothing else offered), **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a response or of a chunk, where the last call holds what can be read of it so far.

        Args:
            response: Of any chat endpoint.
            error_on_no_tool_call: Whether a response without calls, or with one that broke off, is an error.
                Otherwise there are no calls, and one that broke off has a name that says so.
            kwargs: None are known.

        Raises:
            ValueError: As above.
        """
        found = calls.selections(response)
        if error_on_no_tool_call:
            if wrong := calls.faults(response):
                raise ValueError(f"expected tool calls, got a wrong {'; '.join(wrong)}")
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
        """Have the LLM choose tools, and run them. Without function calling, by a step of ReAct in plain text.

        Args:
            tools: What may be used.
            user_msg: The question.
            chat_history: What was said before.
            verbose: Whether calls and results are printed.
            allow_parallel_tool_calls: Whether there may be several calls; a step of ReAct is one.
            error_on_no_tool_call: Whether an answer without a call is an error. A step of ReAct may answer in words
                unless `tool_required`.
            error_on_tool_error: Whether an error in a tool is raised; otherwise it is the result.
            kwargs: `tool_choice`, `tool_required` and options of `chat`; without function calling, also
                `react_chat_formatter` and `output_parser`.

        Raises:
            ValueError: No tool was called, or one that does not exist.
        """
        tools = as_tools(tools)
        if self.metadata.is_function_calling_model:
            errors = {"error_on_no_tool_call": error_on_no_tool_call, "error_on_tool_error": error_on_tool_error}
            with _unknown_tools_named(tools):
                return super().predict_and_call(
                    tools, user_msg, chat_history, verbose, allow_parallel_tool_calls, **errors, **kwargs
                )
        act = _Act(tools, error_on_tool_error, {"complete_calls": self.complete_calls, **kwargs})
        response = self.chat(act.step.messages(_conversation(user_msg, chat_history)), **act.options)
        selected = act.selected(response)
        ran = call_tool_with_selection(selected, tools, verbose) if isinstance(selected, ToolSelection) else None
        return act.result(selected, ran)

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
        """As `predict_and_call`."""
        tools = as_tools(tools)
        if self.metadata.is_function_calling_model:
            errors = {"error_on_no_tool_call": error_on_no_tool_call, "error_on_tool_error": error_on_tool_error}
            with _unknown_tools_named(tools):
                return await super().apredict_and_call(
                    tools, user_msg, chat_history, verbose, allow_parallel_tool_calls, **errors, **kwargs
                )
        act = _Act(tools, error_on_tool_error, {"complete_calls": self.complete_calls, **kwargs})
        response = await self.achat(act.step.messages(_conversation(user_msg, chat_history)), **act.options)
        selected = act.selected(response)
        ran = await acall_tool_with_selection(selected, tools, verbose) if isinstance(selected, ToolSelection) else None
        return act.result(selected, ran)

    # Objects. Their programs forget to require the call in streams, know no grammar, and change the prompt they get.

    def structured_predict(
        self, output_cls: type[BaseModel], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """An object of a class, filled in by the LLM; its JSON always obeys the class's schema."""
        llm = self._for_objects(output_cls)
        options = llm._object_options(output_cls, llm_kwargs)
        return super(ToolCalling, llm).structured_predict(output_cls, copy.copy(prompt), options, **prompt_args)

    async def astructured_predict(
        self, output_cls: type[BaseModel], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """As `structured_predict`."""
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
        """This LLM; where LlamaIndex can't run a call with the class's fields, one that writes objects as text."""
        if not self._objects_are_calls or calls.can_be_run(output_cls):
            return self
        return self.model_copy(update={"pydantic_program_mode": PydanticProgramMode.LLM})

    def _object_program(self, output_cls: type[BaseModel], prompt: Any) -> BasePydanticProgram[Any]:
        options = {"tool_choice": "any"} if self._objects_are_calls else {}
        return get_program_for_llm(output_cls, copy.copy(prompt), self, self.pydantic_program_mode, **options)

    def _object_options(self, output_cls: type[BaseModel], given: Mapping[str, Any] | None) -> dict[str, Any]:
        """A copy of a caller's options, and what makes an object of the answer whatever the budget."""
        if self._objects_are_calls:
            return {"complete_calls": True, **(given or {})}
        name = f"class {output_cls.__name__!r}"
        return {"grammar": Grammar.json_schema(type_schema(output_cls), lenient=True, name=name), **(given or {})}

    @property
    def _objects_are_calls(self) -> bool:
        mode = self.pydantic_program_mode
        able = self.metadata.is_function_calling_model
        return mode == PydanticProgramMode.FUNCTION or (mode == PydanticProgramMode.DEFAULT and able)


class _Act:
    """One step of ReAct: what to ask, and what to make of it.

    Args:
        tools: What may be used.
        raises: Whether an error in a tool is raised.
        options: Further ones of `predict_and_call`; what it does not know goes to `chat`.
    """

    def __init__(self, tools: Sequence[BaseTool], raises: bool, options: Mapping[str, Any]) -> None:
        rest = dict(options)
        choice = calls.choice(rest.pop("tool_choice", None), required=rest.pop("tool_required", False))
        ways = {"formatter": rest.pop("react_chat_formatter", None), "parser": rest.pop("output_parser", None)}
        self.step = ReActStep(tools=tools, choice=choice, **{name: way for name, way in ways.items() if way})
        self.options = {"grammar": self.step.grammar(), **rest}
        self._raises = raises

    def selected(self, response: ChatResponse) -> ToolSelection | str:
        """The action of a step, or its answer; a `ValueError` for an action that no member wrote as it stands."""
        selected = self.step.read(response.message.content or "")
        written = response.raw.get("library_text") if isinstance(response.raw, dict) else None
        if written and isinstance(selected, ToolSelection) and not self.options["complete_calls"]:
            raise ValueError(
                f"the token budget or a context window ended inside the action {selected.tool_name!r}, and AdaFuse "
                f"wrote {written[-1]['text']!r} in the members' place: raise max_new_tokens, or accept that by "
                "complete_calls=True"
            )
        return selected

    def result(self, selected: ToolSelection | str, ran: ToolOutput | None) -> AgentChatResponse:
        """What came of it."""
        from llama_index.core.chat_engine.types import AgentChatResponse

        if ran is None:
            return AgentChatResponse(response=str(selected))
        if ran.is_error and self._raises:
            raise ValueError(ran.content)
        return AgentChatResponse(response=ran.content, sources=[ran])


def _conversation(user_msg: str | ChatMessage | None, chat_history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
    asked = (
        [] if user_msg is None else [user_msg if isinstance(user_msg, ChatMessage) else ChatMessage(content=user_msg)]
    )
    return [*(chat_history or ()), *asked]


@contextmanager
def _unknown_tools_named(tools: Sequence[BaseTool]) -> Iterator[None]:
    """LlamaIndex looks tools up by name and lets the `KeyError` out."""
    names = [tool.metadata.name for tool in tools]
    try:
        yield
    except KeyError as error:
        if not error.args or error.args[0] in names:
            raise
        raise ValueError(f"the members called {error.args[0]!r}, expected one of the tools {names}") from error
