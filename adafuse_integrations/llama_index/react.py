"""Reasoning and acting in plain text: the steps of LlamaIndex's ReAct agent, for members without function calling."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import ActionReasoningStep
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool

from adafuse_core.chat.grammar import Grammar
from adafuse_core.errors import ConfigError
from adafuse_integrations.llama_index.calls import shown
from adafuse_integrations.llama_index.tools import as_tools

_THOUGHT = 200  # characters; a thought must end while there is still budget for the rest of the step


def react_grammar(tools: Iterable[BaseTool | Callable[..., Any]], *, choice: str = "auto") -> Grammar:
    """What a step of a ReAct agent may be, so that `ReActOutputParser` can always read it.

    A step is a thought of one line, and then an action with JSON that obeys the tool's schema, or an answer. Give the
    grammar to the LLM of a `ReActAgent`: `AdaFuseLLM(..., grammar=react_grammar(tools))`.

    Args:
        tools: Those of the agent, tools of LlamaIndex or plain functions.
        choice: "auto"; "any" for no answer, only actions; "none" for no action; or the name of the one tool to use.

    Raises:
        ConfigError: There is no such tool, or its schema is none. What of a schema can't be enforced is left out, with
            a warning in the log.
    """
    known = as_tools(tools)
    usable = known if choice in ("auto", "any") else [tool for tool in known if tool.metadata.get_name() == choice]
    if not usable and choice not in ("auto", "none"):
        names = ", ".join(tool.metadata.get_name() for tool in known) or "none"
        raise ConfigError(f"got choice={choice!r}, but there is no such tool", hint=f"the tools are: {names}")
    actions = {f"input_{number}": tool for number, tool in enumerate(usable)}
    rules = [_action(tool.metadata.get_name(), part) for part, tool in actions.items()]
    rules += ['"Answer: " TEXT'] if choice in ("auto", "none") else []
    lark = f'start: "Thought: " LINE "\\n" ({" | ".join(rules)})\nLINE: /[^\\n]{{1,{_THOUGHT}}}/\nTEXT: /(?s:.+)/\n'
    return Grammar(lark, parts=tuple((part, _arguments(tool)) for part, tool in actions.items()))


@dataclass(frozen=True, kw_only=True)
class ReActStep:
    """One question to an LLM for a step, and the reading of its answer.

    Args:
        tools: What may be used.
        choice: As of `react_grammar`.
        formatter: Writes the tools into the conversation.
        parser: Reads the answer.
    """

    tools: Sequence[BaseTool]
    choice: str = "auto"
    formatter: ReActChatFormatter = field(default_factory=ReActChatFormatter)
    parser: ReActOutputParser = field(default_factory=ReActOutputParser)

    def messages(self, conversation: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The conversation with what there is to use and how."""
        return self.formatter.format(self.tools, chat_history=list(conversation))

    def grammar(self) -> Grammar:
        """What may be answered."""
        return react_grammar(self.tools, choice=self.choice)

    def read(self, text: str) -> ToolSelection | str:
        """The action of a step, or its answer."""
        step = self.parser.parse(text)
        if isinstance(step, ActionReasoningStep):
            return ToolSelection(tool_id=str(uuid.uuid4()), tool_name=step.action, tool_kwargs=step.action_input)
        return str(step.response)  # type: ignore[attr-defined]


def _arguments(tool: BaseTool) -> Grammar:
    function = shown(tool)["function"]
    return Grammar.json_schema(function["parameters"], lenient=True, name=f"tool {function['name']!r}")


def _action(name: str, part: str) -> str:
    return f"{json.dumps(f'Action: {name}')} {json.dumps(chr(10) + 'Action Input: ')} @{part}"
