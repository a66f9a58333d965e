"""LlamaIndex's agents with tools: FunctionAgent, AgentWorkflow and ReActAgent.

The small models of the package were trained to call these three tools, but not to write ReAct steps. A grammar enforces
the format of the steps and the schemas of the tools, and here a call in every step.
"""

import asyncio
import operator
from typing import Literal

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.tools import FunctionTool

from adafuse_integrations.llama_index import AdaFuseLLM, react_grammar

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"{11 + len(city)} degrees and cloudy"


def calculator(expression: str) -> str:
    """Work out an arithmetic expression."""
    left, sign, right = expression.split()
    return str(SIGNS[sign](int(left), int(right)))


def get_time(city: Literal["Lima", "Oslo", "Paris", "Rome"]) -> str:
    """Get the local time in a city."""
    return {"Lima": "8:05", "Oslo": "14:05", "Paris": "14:05", "Rome": "14:05"}[city]


llm = AdaFuseLLM()  # or AdaFuseLLM(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])


async def show(agent, question):
    """Run an agent and print its events."""
    print("you>", question)
    run = agent.run(question)
    async for event in run.stream_events():
        if isinstance(event, AgentStream):
            print(event.delta, end="", flush=True)
        elif isinstance(event, ToolCallResult):
            print(f"[{event.tool_name} {event.tool_kwargs} -> {event.tool_output.content}]")
    await run
    print()


async def main():
    print("FunctionAgent")
    agent = FunctionAgent(tools=[get_weather, calculator, get_time], llm=llm)
    await show(agent, "What is the weather in Paris and what is 12 times 7?")
    await show(agent, "What is the capital of Peru?")

    print("AgentWorkflow")
    workflow = AgentWorkflow.from_tools_or_functions([get_weather, calculator, get_time], llm=llm)
    await show(workflow, "What time is it in Oslo?")

    print("ReActAgent")
    clock = FunctionTool.from_defaults(get_time, return_direct=True)
    steps = llm.model_copy(update={"grammar": react_grammar([clock], choice="any")})
    formatter = ReActChatFormatter(system_header="Use the tools when they help.")  # the default header is too long
    await show(ReActAgent(tools=[clock], llm=steps, formatter=formatter), "What time is it in Rome?")


asyncio.run(main())
