"""ReAct steps (reasoning and acting in plain text) of LlamaIndex's agents, for members without function calling."""

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
from adafuse_integrations.llama_index.tools import as_tools, openai_tool

_MAX_THOUGHT = 200  # characters; a longer thought could use up the token budget before the action


def react_grammar(tools: Iterable[BaseTool | Callable[..., Any]], *, choice: str = "auto") -> Grammar:
    """Grammar of a ReAct step. LlamaIndex's `ReActOutputParser` can read every step that obeys it.

    A step is a thought of one line, followed by an action or an answer. The input of an action is JSON that obeys the
    tool's schema. A part of a schema that can't be enforced is ignored, and the log names it in a warning.

    Example:
        ```python
        llm = AdaFuseLLM(grammar=react_grammar(tools))
        agent = ReActAgent(tools=tools, llm=llm)
        ```

    Args:
        tools: The tools of the agent: LlamaIndex tools or plain functions.
        choice: `"auto"` allows actions and answers, `"any"` only actions, `"none"` only answers, and the name of a
            tool only actions with this tool.

    Returns:
        A grammar for the field or call option `grammar` of `AdaFuseLLM`.

    Raises:
        ConfigError: There is no tool of the name in `choice`, or a tool's schema is not a valid JSON schema.
    """
    known = as_tools(tools)
    allowed = known if choice in ("auto", "any") else [tool for tool in known if tool.metadata.get_name() == choice]
    if not allowed and choice not in ("auto", "none"):
        names = ", ".join(tool.metadata.get_name() for tool in known) or "none"
        raise ConfigError(f"got choice={choice!r}, but there is no such tool", hint=f"the tools are: {names}")
    inputs = {f"input_{number}": tool for number, tool in enumerate(allowed)}
    rules = [_action_rule(tool.metadata.get_name(), part) for part, tool in inputs.items()]
    rules += ['"Answer: " TEXT'] if choice in ("auto", "none") else []
    step = f'start: "Thought: " LINE "\\n" ({" | ".join(rules)})\n'
    lark = f"{step}LINE: /[^\\n]{{1,{_MAX_THOUGHT}}}/\nTEXT: /(?s:.+)/\n"
    return Grammar(lark, parts=tuple((part, _input_grammar(tool)) for part, tool in inputs.items()))


@dataclass(frozen=True, kw_only=True)
class ReActStep:
    """A request for one ReAct step, and the parser of its answer.

    Args:
        tools: The tools of the step.
        choice: See `react_grammar`.
        formatter: Writes the tools into the conversation.
        parser: Parses the answer.
    """

    tools: Sequence[BaseTool]
    choice: str = "auto"
    formatter: ReActChatFormatter = field(default_factory=ReActChatFormatter)
    parser: ReActOutputParser = field(default_factory=ReActOutputParser)

    def messages(self, conversation: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The conversation with the formatter's instructions for the tools."""
        return self.formatter.format(self.tools, chat_history=list(conversation))

    def grammar(self) -> Grammar:
        """The grammar of the step."""
        return react_grammar(self.tools, choice=self.choice)

    def parse(self, text: str) -> ToolSelection | str:
        """The action of a step, or the text of its answer."""
        step = self.parser.parse(text)
        if isinstance(step, ActionReasoningStep):
            return ToolSelection(tool_id=str(uuid.uuid4()), tool_name=step.action, tool_kwargs=step.action_input)
        return str(step.response)  # type: ignore[attr-defined]


def _input_grammar(tool: BaseTool) -> Grammar:
    function = openai_tool(tool)["function"]
    return Grammar.json_schema(function["parameters"], lenient=True, name=f"tool {function['name']!r}")


def _action_rule(name: str, part: str) -> str:
    return f"{json.dumps(f'Action: {name}')} {json.dumps(chr(10) + 'Action Input: ')} @{part}"
