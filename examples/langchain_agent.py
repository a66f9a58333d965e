"""A LangChain agent: the ensemble calls tools until it can answer. Calls and answers are streamed."""

import operator
import re

from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk, ToolMessage

from adafuse_integrations.langchain import ChatAdaFuse

WEATHER = {"Paris": "14 degrees and cloudy", "Oslo": "-3 degrees and snowy"}
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return WEATHER.get(city, "unknown")


def calculator(expression: str) -> str:
    """Work out an arithmetic expression."""
    left, sign, right = re.fullmatch(r"\s*(\d+)\s*([-+*/])\s*(\d+)\s*", expression).groups()
    return str(SIGNS[sign](int(left), int(right)))


llm = ChatAdaFuse()  # or ChatAdaFuse(members=["Qwen/Qwen2.5-7B-Instruct", "NousResearch/Hermes-3-Llama-3.1-8B"])
agent = create_agent(llm, [get_weather, calculator])
question = {"role": "user", "content": "What is the weather in Paris and what is 12 times 7?"}

for message, _ in agent.stream({"messages": [question]}, stream_mode="messages"):
    if isinstance(message, ToolMessage):
        print(f" [{message.name} says: {message.content}]")
    elif isinstance(message, AIMessageChunk):
        for call in message.tool_call_chunks:
            print(call["name"] or "", call["args"] or "", sep="", end="", flush=True)
        print(message.text, end="", flush=True)
print()
