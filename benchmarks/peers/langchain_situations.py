"""Situations for a chat model of LangChain."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel

from peers.comparison import PATIENCE, Seen, attempt, in_words, portable, refused, within
from peers.langchain_sides import Side
from peers.watching import failing, passes, slowed, with_start_token

QUESTION = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return "12 degrees and rainy"


@tool
def get_time(city: str) -> str:
    """Get the local time in a city."""
    return "10:30"


class City(BaseModel):
    """A city and how many live there."""

    name: str
    people: int


def echo(side: Side) -> Seen:
    """`invoke` with default options returns the prompt too"""
    text = side.make(plain=True).invoke(QUESTION).text
    echoed = QUESTION in text
    return Seen("yes, with its template" if "<|im_start|>" in text else "yes" if echoed else "no", not echoed)


def ways(side: Side) -> Seen:
    """`invoke`, `stream`, `ainvoke`, `astream` give the same text"""
    llm = side.make()
    expected = llm.invoke(QUESTION).text
    found = {
        name: attempt(lambda name=name: asyncio.run(text_by(llm, name))) for name in ("stream", "ainvoke", "astream")
    }
    wrong = {name: in_words(text) for name, text in found.items() if text != expected}
    return Seen("; ".join(f"{name}: {text}" for name, text in wrong.items()) or "yes", not wrong)


def stop_strings(side: Side) -> Seen:
    """`stop=["of France"]`: `invoke`, `stream`"""
    llm = side.make()
    texts = [llm.invoke(QUESTION, stop=["of France"]).text, joined(llm.stream(QUESTION, stop=["of France"]))]
    held = [text.strip() == "The capital" for text in texts]
    return Seen(
        ", ".join("ends before it" if good else f"{text!r}" for good, text in zip(held, texts, strict=True)), all(held)
    )


def call_options(side: Side) -> Seen:
    """`invoke(..., max_tokens=2)`"""
    llm = side.make()
    full, short = llm.invoke(QUESTION).text, attempt(lambda: llm.invoke(QUESTION, max_tokens=2).text)
    honoured = isinstance(short, str) and len(short) < len(full)
    return Seen("honoured" if honoured else "ignored" if short == full else in_words(short), honoured)


def unknown_option(side: Side) -> Seen:
    """`invoke(..., max_tokns=2)`, a misspelling"""
    outcome = attempt(lambda: side.make().invoke(QUESTION, max_tokns=2))
    return refused(outcome, "ignored")


def usage(side: Side) -> Seen:
    """Usage and reason of the end: `invoke`, `stream`"""
    llm = side.make()
    answers = [llm.invoke(QUESTION), reduce(add, llm.stream(QUESTION))]
    counts = [(one.usage_metadata or {}).get("total_tokens") for one in answers]
    reasons = [one.response_metadata.get("finish_reason") for one in answers]
    ends = [f"{count} tokens, {reason!r}" for count, reason in zip(counts, reasons, strict=True)]
    return Seen("; ".join(ends), all(counts) and all(reasons))


def counting(side: Side) -> Seen:
    """`get_num_tokens("one two three")` without a network"""
    outcome = attempt(lambda: side.make().get_num_tokens("one two three"))
    return Seen(in_words(outcome), isinstance(outcome, int) and outcome > 0)


def overflow(side: Side) -> Seen:
    """A prompt of 12,000 tokens for a window of 2,048"""
    outcome = attempt(lambda: side.make(max_tokens=1).invoke("one two " * 3000))
    return refused(outcome, "answers, without a word", ContextOverflowError)


def start_tokens(side: Side) -> Seen:
    """Start tokens in a prompt, with a tokenizer that adds one and a template that writes one, as Llama's do"""
    with TemporaryDirectory() as folder:
        model, start = with_start_token(Path(folder) / "birch")
        llm = side.make(model=model, max_tokens=2)
        llm.invoke("Hello!")
        with passes(side.module(llm)) as seen:
            llm.invoke(QUESTION)
        count = max(ids.count(start) for ids in seen)
    return Seen(str(count), count == 1)


def failing_stream(side: Side) -> Seen:
    """The model fails while a stream runs"""
    llm = side.make()
    joined(llm.stream(QUESTION))
    with failing(side.module(llm)):
        outcome = within(PATIENCE, lambda: joined(llm.stream(QUESTION + " And of Spain?")))
    if outcome is None:
        return Seen(f"hangs: nothing after {PATIENCE:.0f} s", False)
    return Seen(in_words(outcome), isinstance(outcome, Exception))


def closing(side: Side) -> Seen:
    """Passes of the model after a stream was closed at its first word"""
    llm = side.make(max_tokens=64)
    llm.invoke(QUESTION)
    with slowed(side.module(llm)), passes(side.module(llm)) as seen:
        stream = llm.stream("Who wrote Hamlet, and what is the capital of Peru?")
        next(chunk for chunk in stream if chunk.text)
        stream.close()
        before = len(seen)
        time.sleep(1.0)
        after = len(seen) - before
    return Seen(str(after), after <= 1)


def cancelling(side: Side) -> Seen:
    """Passes of the model after `ainvoke` was cancelled"""
    llm = side.make(max_tokens=64)
    llm.invoke(QUESTION)

    async def cancel(seen: list[Any]) -> int:
        task = asyncio.create_task(llm.ainvoke("Who wrote Hamlet, and what is the capital of Peru?"))
        while len(seen) < 2 and not task.done():
            await asyncio.sleep(0.002)
        if task.done():
            task.result()
        task.cancel()
        before = len(seen)
        await asyncio.wait([task])
        await asyncio.sleep(1.0)
        return len(seen) - before

    with slowed(side.module(llm)), passes(side.module(llm)) as seen:
        outcome = attempt(lambda: asyncio.run(cancel(seen)))
    return Seen(in_words(outcome), isinstance(outcome, int) and outcome <= 1)


def tools_shown(side: Side) -> Seen:
    """With `bind_tools`, "What is the weather in Paris?" calls the tool"""
    outcome = attempt(lambda: side.make(max_tokens=40).bind_tools([get_weather]).invoke(WEATHER))
    calls = outcome.tool_calls if isinstance(outcome, AIMessage) else []
    good = [(call["name"], call["args"]) for call in calls] == [("get_weather", {"city": "Paris"})]
    told = "called" if good else in_words(outcome) if isinstance(outcome, Exception) else f"none; says {outcome.text!r}"
    return Seen(told, good)


def forced_call(side: Side) -> Seen:
    """With two tools and `tool_choice="any"`, "Hello!" calls one of them"""
    outcome = attempt(
        lambda: side.make(max_tokens=40).bind_tools([get_weather, get_time], tool_choice="any").invoke("Hello!")
    )
    good = isinstance(outcome, AIMessage) and bool(outcome.tool_calls)
    return Seen("called" if good else in_words(outcome) if isinstance(outcome, Exception) else "none", good)


def tool_results(side: Side) -> Seen:
    """A tool's result as the last message, as in every agent"""
    call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "c1"}
    talk = [HumanMessage(WEATHER), AIMessage("", tool_calls=[call]), ToolMessage("12 degrees", tool_call_id="c1")]
    outcome = attempt(lambda: side.make().invoke(talk).text)
    return Seen(in_words(outcome), isinstance(outcome, str))


def structured(side: Side) -> Seen:
    """`with_structured_output` of a pydantic class: `function_calling`, `json_schema`, `json_mode`"""
    outcomes = []
    for method in ("function_calling", "json_schema", "json_mode"):
        llm = side.make(max_tokens=48)
        outcomes.append(
            attempt(lambda llm=llm, method=method: llm.with_structured_output(City, method=method).invoke("Hi"))
        )
    texts = ["valid" if isinstance(outcome, City) else type(outcome).__name__ for outcome in outcomes]
    return Seen(", ".join(texts), set(texts) == {"valid"})


def images(side: Side) -> Seen:
    """An image in a message"""
    block = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    outcome = attempt(lambda: side.make().invoke([HumanMessage([{"type": "text", "text": QUESTION}, block])]))
    return refused(outcome, f"answers {getattr(outcome, 'text', None)!r}", ValueError)


def tracing(side: Side) -> Seen:
    """Model and most tokens that traces are told"""
    recorder = Metadata()
    side.make().invoke(QUESTION, {"callbacks": [recorder]})
    told = recorder.metadata.get("ls_model_name"), recorder.metadata.get("ls_max_tokens")
    return Seen(", ".join(portable(str(one)) for one in told), all(told))


def copies(side: Side) -> Seen:
    """Weights of a deep copy; of `configurable_fields`"""
    llm = side.make()
    llm.invoke(QUESTION)
    copied = attempt(lambda: side.module(copy.deepcopy(llm)) is side.module(llm))
    tuned = llm.configurable_fields(temperature=ConfigurableField(id="t")).with_config(configurable={"t": 0.0})
    with passes(side.module(llm)) as seen:
        reached = attempt(lambda: bool(tuned.invoke(QUESTION)) and bool(seen))
    words = {True: "shared", False: "its own"}
    told = [words[one] if isinstance(one, bool) else in_words(one) for one in (copied, reached)]
    return Seen("; ".join(told), set(told) == {"shared"})


def pickles(side: Side) -> Seen:
    """Size of a pickle (the weights have 7.3 MB)"""
    llm = side.make()
    llm.invoke(QUESTION)
    outcome = attempt(lambda: len(pickle.dumps(llm)))
    if isinstance(outcome, Exception):
        return Seen(in_words(outcome), False)
    return Seen(f"{outcome / 1e6:.1f} MB" if outcome > 1e5 else f"{outcome} bytes", outcome < 1e5)


SITUATIONS: tuple[Callable[[Side], Seen], ...] = (
    echo,
    ways,
    stop_strings,
    call_options,
    unknown_option,
    usage,
    counting,
    overflow,
    start_tokens,
    failing_stream,
    closing,
    cancelling,
    tools_shown,
    forced_call,
    tool_results,
    structured,
    images,
    tracing,
    copies,
    pickles,
)


# --- helpers ---


class Metadata(BaseCallbackHandler):
    """Records the metadata that a callback handler receives."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}

    def on_chat_model_start(self, *_: Any, metadata: Any = None, **__: Any) -> None:
        self.metadata = metadata or {}


def joined(stream: Any) -> str:
    """The text of a stream."""
    return "".join(chunk.text for chunk in stream)


async def text_by(llm: Any, way: str) -> str:
    """The text of an answer, by the given method."""
    if way == "astream":
        return "".join([chunk.text async for chunk in llm.astream(QUESTION)])
    return joined(llm.stream(QUESTION)) if way == "stream" else (await llm.ainvoke(QUESTION)).text
