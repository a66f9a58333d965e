"""What ChatAdaFuse and LangChain's own ChatHuggingFace do in the same situations, on the same small model.

ChatHuggingFace runs over its local pipeline. It is no dependency of this project: in an environment of its own,
`pip install langchain==1.4.7 langchain-huggingface==1.2.3 langchain-tests==1.1.9`. Where it is absent, only our side is
shown; where langchain-tests is absent, the standard suites are left out. Every line is what was seen in this run.
"""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import arguments, finish, show
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from peers import (
    PATIENCE,
    Seen,
    attempt,
    begin,
    compare,
    installed,
    replaced,
    show_situations,
    slowed,
    with_start_token,
    within,
)
from pydantic import BaseModel
from transformers import AutoTokenizer

from adafuse_core import small_models
from adafuse_integrations.langchain import ChatAdaFuse

MODEL = str(small_models.path("aspen"))
QUESTION = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"
PEER = "langchain-huggingface"


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


class Side:
    """One of the two classes, by what the checks need of it."""

    name = "ChatAdaFuse"
    suite = """
from adafuse_integrations.langchain import ChatAdaFuse as Model
PARAMS = {"members": [MODEL], "max_tokens": 64}
"""

    def make(self, *, model: str = MODEL, max_tokens: int = 16, plain: bool = False) -> Any:
        """A chat model on the small model; with `plain` nothing is set that has a default."""
        return ChatAdaFuse(members=[model], **({} if plain else {"max_tokens": max_tokens}))

    def module(self, llm: Any) -> Any:
        """The PyTorch model behind it."""
        return llm._running().members[0].backend.model.module


class Peer(Side):
    """`ChatHuggingFace` over `HuggingFacePipeline`."""

    name = "ChatHuggingFace"
    suite = """
from langchain_huggingface import ChatHuggingFace as Model, HuggingFacePipeline
OPTIONS = {"max_new_tokens": 64, "do_sample": False, "return_full_text": False}
PARAMS = {"llm": HuggingFacePipeline.from_model_id(model_id=MODEL, task="text-generation", pipeline_kwargs=OPTIONS)}
"""

    def make(self, *, model: str = MODEL, max_tokens: int = 16, plain: bool = False) -> Any:
        from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

        options = {"max_new_tokens": max_tokens, "do_sample": False, "return_full_text": False}
        given = {} if plain else {"pipeline_kwargs": options}
        return ChatHuggingFace(llm=HuggingFacePipeline.from_model_id(model_id=model, task="text-generation", **given))

    def module(self, llm: Any) -> Any:
        return llm.llm.pipeline.model


# --- the situations ---


def echo(side: Side) -> Seen:
    """`invoke` with default options returns the prompt too"""
    text = side.make(plain=True).invoke(QUESTION).text
    echoed = QUESTION in text
    return Seen("yes, with its template" if "<|im_start|>" in text else "yes" if echoed else "no", not echoed)


def ways(side: Side) -> Seen:
    """`invoke`, `stream`, `ainvoke`, `astream` give the same text"""
    llm = side.make()
    expected = llm.invoke(QUESTION).text
    found = {name: attempt(lambda name=name: asyncio.run(said(llm, name))) for name in ("stream", "ainvoke", "astream")}
    wrong = {name: kind(text) for name, text in found.items() if text != expected}
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
    return Seen("honoured" if honoured else "ignored" if short == full else kind(short), honoured)


def unknown_option(side: Side) -> Seen:
    """`invoke(..., max_tokns=2)`, a misspelling"""
    outcome = attempt(lambda: side.make().invoke(QUESTION, max_tokns=2))
    return Seen(kind(outcome) if isinstance(outcome, Exception) else "ignored", isinstance(outcome, Exception))


def usage(side: Side) -> Seen:
    """Usage and reason of the end: `invoke`, `stream`"""
    llm = side.make()
    answers = [llm.invoke(QUESTION), reduce(add, llm.stream(QUESTION))]
    told = [(one.usage_metadata or {}).get("total_tokens") for one in answers]
    reasons = [one.response_metadata.get("finish_reason") for one in answers]
    return Seen(f"{told[0]} tokens, {reasons[0]!r}; {told[1]} tokens, {reasons[1]!r}", all(told) and all(reasons))


def counting(side: Side) -> Seen:
    """`get_num_tokens("one two three")` without a network"""
    outcome = attempt(lambda: side.make().get_num_tokens("one two three"))
    return Seen(kind(outcome), isinstance(outcome, int) and outcome > 0)


def overflow(side: Side) -> Seen:
    """A prompt of 12,000 tokens for a window of 2,048"""
    outcome = attempt(lambda: side.make(max_tokens=1).invoke("one two " * 3000))
    good = isinstance(outcome, ContextOverflowError)
    return Seen(kind(outcome) if isinstance(outcome, Exception) else "answers, without a word", good)


def start_tokens(side: Side) -> Seen:
    """Start tokens in a prompt, with a tokenizer that adds one and a template that writes one, as Llama's do"""
    with TemporaryDirectory() as folder:
        llm = side.make(model=with_start_token(Path(folder) / "birch"), max_tokens=2)
        llm.invoke("Hello!")
        with inputs(side.module(llm)) as seen:
            llm.invoke(QUESTION)
        count = max(ids.count(start_id(folder)) for ids in seen)
    return Seen(str(count), count == 1)


def failing_stream(side: Side) -> Seen:
    """The model fails while a stream runs"""
    llm = side.make()
    joined(llm.stream(QUESTION))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with replaced(side.module(llm), "forward", fail):
        outcome = within(PATIENCE, lambda: joined(llm.stream(QUESTION + " And of Spain?")))
    if outcome is None:
        return Seen(f"hangs: nothing after {PATIENCE:.0f} s", False)
    return Seen(kind(outcome), isinstance(outcome, Exception))


def closing(side: Side) -> Seen:
    """Passes of the model after a stream was closed at its first word"""
    llm = side.make(max_tokens=64)
    llm.invoke(QUESTION)
    with slowed(side.module(llm)), inputs(side.module(llm)) as seen:
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

    with slowed(side.module(llm)), inputs(side.module(llm)) as seen:
        outcome = attempt(lambda: asyncio.run(cancel(seen)))
    return Seen(kind(outcome), isinstance(outcome, int) and outcome <= 1)


def tools_shown(side: Side) -> Seen:
    """With `bind_tools`, "What is the weather in Paris?" calls the tool"""
    outcome = attempt(lambda: side.make(max_tokens=40).bind_tools([get_weather]).invoke(WEATHER))
    calls = outcome.tool_calls if isinstance(outcome, AIMessage) else []
    good = [(call["name"], call["args"]) for call in calls] == [("get_weather", {"city": "Paris"})]
    told = "called" if good else kind(outcome) if isinstance(outcome, Exception) else f"none; says {outcome.text!r}"
    return Seen(told, good)


def forced_call(side: Side) -> Seen:
    """With two tools and `tool_choice="any"`, "Hello!" calls one of them"""
    outcome = attempt(
        lambda: side.make(max_tokens=40).bind_tools([get_weather, get_time], tool_choice="any").invoke("Hello!")
    )
    good = isinstance(outcome, AIMessage) and bool(outcome.tool_calls)
    return Seen("called" if good else kind(outcome) if isinstance(outcome, Exception) else "none", good)


def tool_results(side: Side) -> Seen:
    """A tool's result as the last message, as in every agent"""
    call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "c1"}
    talk = [HumanMessage(WEATHER), AIMessage("", tool_calls=[call]), ToolMessage("12 degrees", tool_call_id="c1")]
    outcome = attempt(lambda: side.make().invoke(talk).text)
    return Seen(kind(outcome), isinstance(outcome, str))


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
    return Seen(
        kind(outcome) if isinstance(outcome, Exception) else f"answers {outcome.text!r}",
        isinstance(outcome, ValueError),
    )


def tracing(side: Side) -> Seen:
    """Model and most tokens that traces are told"""
    heard = Metadata()
    side.make().invoke(QUESTION, {"callbacks": [heard]})
    told = heard.metadata.get("ls_model_name"), heard.metadata.get("ls_max_tokens")
    return Seen(", ".join(str(one).replace(MODEL, "aspen") for one in told), all(told))


def copies(side: Side) -> Seen:
    """Weights of a deep copy; of `configurable_fields`"""
    llm = side.make()
    llm.invoke(QUESTION)
    copied = attempt(lambda: side.module(copy.deepcopy(llm)) is side.module(llm))
    tuned = llm.configurable_fields(temperature=ConfigurableField(id="t")).with_config(configurable={"t": 0.0})
    with inputs(side.module(llm)) as seen:
        reached = attempt(lambda: bool(tuned.invoke(QUESTION)) and bool(seen))
    words = {True: "shared", False: "its own"}
    told = [words[one] if isinstance(one, bool) else kind(one) for one in (copied, reached)]
    return Seen("; ".join(told), set(told) == {"shared"})


def pickles(side: Side) -> Seen:
    """Size of a pickle (the weights have 7.3 MB)"""
    llm = side.make()
    llm.invoke(QUESTION)
    outcome = attempt(lambda: len(pickle.dumps(llm)))
    if isinstance(outcome, Exception):
        return Seen(kind(outcome), False)
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


# --- the standard suites ---

SUITE = """
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

class TestUnit(ChatModelUnitTests):
    chat_model_class = Model
    chat_model_params = {name: value for name, value in PARAMS.items() if name != "max_tokens"}  # it gives its own

class TestIntegration(ChatModelIntegrationTests):
    chat_model_class = Model
    chat_model_params = PARAMS
    supports_json_mode = True
"""


def run_suites(side: Side) -> dict[str, dict[str, str]]:
    """How each test of `langchain-tests` ends and why, none of them marked as expected to fail."""
    with TemporaryDirectory() as folder:
        path, report = Path(folder) / "test_suites.py", Path(folder) / "report.xml"
        path.write_text(f"MODEL = {MODEL!r}\n{side.suite}{SUITE}", encoding="utf-8")
        root = str(Path(__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", f"--junitxml={report}", str(path)]
        subprocess.run([sys.executable, "-m", "pytest", *options], cwd=folder, env=environment, capture_output=True)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return {f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}": ending(case) for case in cases}


def ending(case: Any) -> dict[str, str]:
    """How a test ended, and why."""
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            how = "skipped" if child.tag == "skipped" else "failed"
            return {"how": how, "why": (child.get("message", "").splitlines() or [""])[0].replace(MODEL, "aspen")[:160]}
    return {"how": "passed", "why": ""}


def suite_rows(suites: dict[str, dict[str, dict[str, str]]]) -> list[list[object]]:
    """One row per test, parametrized ones together; then the sums."""
    tests = dict.fromkeys(name.partition("[")[0] for suite in suites.values() for name in suite)
    rows: list[list[object]] = []
    for test in tests:
        cells = []
        for suite in suites.values():
            counts = Counter(end["how"] for name, end in suite.items() if name.partition("[")[0] == test)
            cells.append(", ".join(f"{count} {how}" if count > 1 else how for how, count in counts.items()))
        rows.append([test, *cells])
    sums = [Counter(end["how"] for end in suite.values()) for suite in suites.values()]
    for how in ("passed", "skipped", "failed"):
        rows.append([f"all {how}", *(count[how] for count in sums)])
    return rows


# --- what they use ---


class Metadata(BaseCallbackHandler):
    """What a handler is told of a call."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}

    def on_chat_model_start(self, *_: Any, metadata: Any = None, **__: Any) -> None:
        self.metadata = metadata or {}


def kind(outcome: Any) -> str:
    """An outcome in a few words, without this machine's paths."""
    if not isinstance(outcome, Exception):
        return repr(outcome) if isinstance(outcome, str) else str(outcome)
    first = (str(outcome).splitlines() or [""])[0].replace(MODEL, "aspen")
    return f"{type(outcome).__name__}: {first[:90]}" if first else type(outcome).__name__


def joined(stream: Any) -> str:
    """The text of a stream."""
    return "".join(chunk.text for chunk in stream)


async def said(llm: Any, way: str) -> str:
    """The text of an answer."""
    if way == "astream":
        return "".join([chunk.text async for chunk in llm.astream(QUESTION)])
    return joined(llm.stream(QUESTION)) if way == "stream" else (await llm.ainvoke(QUESTION)).text


def start_id(folder: str) -> int:
    """The id of that start token."""
    return int(AutoTokenizer.from_pretrained(Path(folder) / "birch").bos_token_id)


@contextmanager
def inputs(module: Any) -> Iterator[list[list[int]]]:
    """The token ids of the passes of a model."""
    seen: list[list[int]] = []

    def note(_: Any, given: Any, options: Any) -> None:
        ids = options.get("input_ids") if options.get("input_ids") is not None else given[0]
        seen.append(ids.flatten().tolist())

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def main() -> None:
    args = arguments(__doc__ or "").parse_args()
    about = begin(args, ("langchain-core", "langchain-tests", PEER, "huggingface_hub"))
    sides: list[Side] = [Peer(), Side()] if installed(PEER) else [Side()]
    rows = compare(sides, SITUATIONS)
    show_situations(rows, sides)
    suites = {} if args.quick or not installed("langchain-tests") else {side.name: run_suites(side) for side in sides}
    if suites:
        show("langchain-tests, nothing expected to fail", ["test", *suites], suite_rows(suites))
    finish({**about, "rows": rows, "suites": suites}, args.json)


if __name__ == "__main__":
    main()
