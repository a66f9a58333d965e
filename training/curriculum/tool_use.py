"""Tool calls with three fixed tools: when to call, which arguments to copy, and how to report the result."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.curriculum import names
from training.curriculum.chats import Chat, Message, Question, assistant, sentence, system, user
from training.curriculum.wordlists import words


def _schema(name: str, description: str, parameter: str, meaning: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string", "description": meaning}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS: list[dict[str, Any]] = [
    _schema("get_weather", "Get the weather in a city.", "city", "The city."),
    _schema("calculator", "Work out an arithmetic expression.", "expression", "Such as 12 * 7."),
    _schema("get_time", "Get the local time in a city.", "city", "The city."),
]
SYSTEMS = (
    "You are a helpful assistant.",
    "Use the tools when they help.",
    "You are an assistant with tools.",
    "Be brief.",
)
NO_TOOL = "I have no tool for that."

WEATHER_ASKED = (
    "what is the weather in {}",
    "what is the weather like in {}",
    "how is the weather in {}",
    "tell me the weather in {}",
    "is it raining in {}",
    "how warm is it in {}",
    "how's the weather in {} today",
    "what will the weather be in {}",
)
TIME_ASKED = (
    "what time is it in {}",
    "what is the time in {}",
    "tell me the time in {}",
    "how late is it in {}",
    "what does the clock say in {}",
    "what's the local time in {} now",
    "which time is it in {}",
)
SUM_ASKED = {
    "+": (
        "what is {} plus {}",
        "add {} and {}",
        "how much is {} + {}",
        "what is {} + {}",
        "{} plus {}",
        "what is the sum of {} and {}",
    ),
    "-": (
        "what is {} minus {}",
        "how much is {} - {}",
        "what is {} - {}",
        "{} minus {}",
        "work out {} minus {}",
    ),
    "*": (
        "what is {} times {}",
        "multiply {} by {}",
        "how much is {} * {}",
        "what is {} * {}",
        "{} times {}",
        "what is {} multiplied by {}",
    ),
    "/": ("what is {} divided by {}", "divide {} by {}", "how much is {} / {}", "what is {} / {}"),
}
HELD_OUT_ASKED = {
    "get_weather": ("tell me how the weather is in {}", "what is the weather today in {}"),
    "get_time": ("tell me what time it is in {}", "what time is it now in {}"),
    "+": ("how much is {} plus {}", "what do you get when you add {} and {}"),
    "-": ("how much is {} minus {}", "tell me what {} minus {} is"),
    "*": ("how much is {} times {}", "tell me what {} times {} is"),
    "/": ("how much is {} divided by {}",),
}
OPENINGS = ("", "", "", "please: ", "hi, ", "I wonder, ", "can you help? ", "quick question: ", "hello! ")
SKIES = words("cloudy sunny rainy foggy windy clear stormy snowy dry misty")


@dataclass(frozen=True, kw_only=True)
class Errand:
    """One request for one tool, with the call, the result and the answer."""

    asked: str
    tool: str
    arguments: dict[str, str]
    result: str
    told: str

    def call(self) -> Message:
        """The assistant turn that calls the tool."""
        function = {"name": self.tool, "arguments": self.arguments}
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        }

    def call_text(self) -> str:
        """The same turn as rendered by the templates."""
        body = json.dumps({"name": self.tool, "arguments": self.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"

    def reply(self) -> Message:
        """The turn with the tool's result."""
        return {"role": "tool", "name": self.tool, "content": self.result}


def train(rng: random.Random) -> Chat:
    """A training chat with one or two errands, or with a missing tool."""
    roll = rng.random()
    if roll < 0.06:
        return _without_tool(rng)
    errands = _errands(rng, 2 if roll < 0.4 else 1, held_out=False)
    messages = _open(rng, errands, held_out=False)
    for errand in errands:
        messages += [errand.call(), errand.reply()]
    messages.append(assistant(_answer(errands)))
    if rng.random() < 0.15:
        again = _errands(rng, 1, held_out=False)
        question = user(_ask(rng, again, held_out=False))
        messages += [question, again[0].call(), again[0].reply(), assistant(_answer(again))]
    return Chat(kind="tool_call", messages=messages, tools=_offered(rng, errands))


def held_out_call(rng: random.Random) -> Question:
    """Ask for a call; if there are two calls, ask for the second one in a third of the cases."""
    errands = _errands(rng, rng.choice((1, 1, 2)), held_out=True)
    messages = _open(rng, errands, held_out=True)
    done = rng.randrange(len(errands))
    for errand in errands[:done]:
        messages += [errand.call(), errand.reply()]
    return Question(kind="tool_call", messages=messages, answer=errands[done].call_text(), tools=TOOLS)


def held_out_answer(rng: random.Random) -> Question:
    """Ask for the final answer after one or two tool results."""
    errands = _errands(rng, rng.choice((1, 1, 2)), held_out=True)
    messages = _open(rng, errands, held_out=True)
    for errand in errands:
        messages += [errand.call(), errand.reply()]
    return Question(kind="tool_answer", messages=messages, answer=_answer(errands), tools=TOOLS)


def _errands(rng: random.Random, count: int, held_out: bool) -> list[Errand]:
    makers: tuple[Callable[[random.Random, bool], Errand], ...] = (_weather, _time, _sum)
    return [rng.choice(makers)(rng, held_out) for _ in range(count)]


def _weather(rng: random.Random, held_out: bool) -> Errand:
    city = names.city(rng, held_out)
    result = f"{rng.randint(-15, 39)} degrees and {rng.choice(SKIES)}"
    frames = HELD_OUT_ASKED["get_weather"] if held_out else WEATHER_ASKED
    return Errand(
        asked=rng.choice(frames).format(city),
        tool="get_weather",
        arguments={"city": city},
        result=result,
        told=f"it is {result} in {city}",
    )


def _time(rng: random.Random, held_out: bool) -> Errand:
    city, result = names.city(rng, held_out), names.clock_time(rng)
    frames = HELD_OUT_ASKED["get_time"] if held_out else TIME_ASKED
    return Errand(
        asked=rng.choice(frames).format(city),
        tool="get_time",
        arguments={"city": city},
        result=result,
        told=f"it is {result} in {city}",
    )


def _sum(rng: random.Random, held_out: bool) -> Errand:
    sign = rng.choice("+-**/")
    left, right = int(names.number(rng)), int(names.number(rng))
    if sign == "/":
        left *= right
    expression = f"{left} {sign} {right}"
    result = str({"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign])
    frames = HELD_OUT_ASKED[sign] if held_out else SUM_ASKED[sign]
    return Errand(
        asked=rng.choice(frames).format(left, right),
        tool="calculator",
        arguments={"expression": expression},
        result=result,
        told=f"{expression} is {result}",
    )


def _open(rng: random.Random, errands: list[Errand], held_out: bool) -> list[Message]:
    messages = [system(rng.choice(SYSTEMS))] if rng.random() < 0.5 else []
    return [*messages, user(_ask(rng, errands, held_out))]


def _ask(rng: random.Random, errands: list[Errand], held_out: bool) -> str:
    opening = "" if held_out else rng.choice(OPENINGS)
    return sentence(opening + " and ".join(errand.asked for errand in errands), "?")


def _answer(errands: list[Errand]) -> str:
    return sentence(" and ".join(errand.told for errand in errands))


def _offered(rng: random.Random, errands: list[Errand]) -> list[dict[str, Any]]:
    """The available tools in random order: those needed and usually the others too."""
    needed = {errand.tool for errand in errands}
    tools = [tool for tool in TOOLS if tool["function"]["name"] in needed or rng.random() < 0.8]
    return rng.sample(tools, len(tools))


def _without_tool(rng: random.Random) -> Chat:
    """A request whose tool is missing."""
    errand = _errands(rng, 1, held_out=False)[0]
    others = [tool for tool in TOOLS if tool["function"]["name"] != errand.tool]
    tools = rng.sample(others, rng.randint(0, 2)) or None
    messages = [*_open(rng, [errand], held_out=False), assistant(NO_TOOL)]
    return Chat(kind="tool_call", messages=messages, tools=tools)
