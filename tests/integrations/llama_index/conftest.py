"""LLMs on scripted members, and LlamaIndex's process-wide settings put back after each test."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import operator
import time

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from llama_index_instrumentation import get_dispatcher
from pydantic import Field
from tokenizers.processors import TemplateProcessing

from adafuse_core import Ensemble
from adafuse_integrations.llama_index import AdaFuseLLM
from tests import tiny
from tests.integrations.stepped import Stepped

ENDPOINTS = (
    "complete",
    "stream_complete",
    "chat",
    "stream_chat",
    "acomplete",
    "astream_complete",
    "achat",
    "astream_chat",
)
STREAMS = tuple(name for name in ENDPOINTS if "stream" in name)
WHOLE = tuple(name for name in ENDPOINTS if "stream" not in name)
REPLY = "Paris is the capital of France.\nGrüße, 日本 👩‍👩‍👧!"


@pytest.fixture(autouse=True)
def settings(request, monkeypatch):
    """LlamaIndex keeps LLM, tokenizer, callbacks and handlers for the whole process."""
    for name in ("_llm", "_callback_manager", "_tokenizer", "_node_parser", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None, raising=False)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", str.split)
    root = get_dispatcher()
    monkeypatch.setattr(root, "event_handlers", list(root.event_handlers))
    if not inspect.iscoroutinefunction(request.function):
        asyncio.set_event_loop(None)  # else its sync code makes an event loop of its own that nobody closes


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two random models: one whose template takes any role, one with a start token whose template takes no system."""
    folder = tmp_path_factory.mktemp("pair")
    pieces = tiny.metaspace()
    pieces.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", pieces.bos_token_id)]
    )
    return [
        str(tiny.save_tiny(folder / "bytes", tiny.byte_level())),
        str(tiny.save_tiny(folder / "pieces", pieces, seed=1)),
    ]


class Seen(BaseEventHandler):
    """Keeps every event of LlamaIndex's instrumentation."""

    events: list = Field(default_factory=list)

    def handle(self, event, **_):
        self.events.append(event)


@pytest.fixture
def seen(settings):
    """All events of a test."""
    handler = Seen()
    get_dispatcher().add_event_handler(handler)
    return handler.events


def scripted(reply=REPLY, *, members=2, llm=None, **options):
    """An LLM on scripted members that all say the reply, a word a round; and the first of the members.

    Args:
        llm: Options of the LLM; others go to the members.
    """
    options = {"margin": 0.0, **options}
    cast = [Stepped(name=f"m{number}", reply=reply, **options) for number in range(members)]
    return AdaFuseLLM.from_ensemble(Ensemble(members=cast), **{"max_new_tokens": None, **(llm or {})}), cast[0]


def crew(llm):
    """The members of an LLM."""
    return llm.ensemble.members


def let(llm, steps):
    """Let each member of an LLM make more steps."""
    for member in crew(llm):
        member.let(steps)


def call(name, arguments):
    """A tool call as members write it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def taking_turns(*replies):
    """A reply that depends on how many tool results there are already."""
    return lambda prompt: replies[sum(turn.role == "tool" for turn in prompt)]


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"17 degrees in {city}"


def calculator(expression: str) -> str:
    """Work out an arithmetic expression."""
    left, sign, right = expression.split()
    return str({"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](int(left), int(right)))


def get_time(city: str) -> str:
    """Get the local time in a city."""
    return "14:05"


TOOLS = [FunctionTool.from_defaults(fn) for fn in (get_weather, calculator, get_time)]


def begin(llm, endpoint, prompt="Which city?", **options):
    """Call an endpoint; the result is what LlamaIndex gets."""
    given = prompt if "complete" in endpoint or not isinstance(prompt, str) else [ChatMessage(content=prompt)]
    return getattr(llm, endpoint)(given, **options)


async def respond(llm, endpoint, prompt="Which city?", **options):
    """All responses of a call to an endpoint; awaited where it has to be."""
    result = begin(llm, endpoint, prompt, **options)
    if endpoint.startswith("a"):
        result = await result
    if endpoint in WHOLE:
        return [result]
    return [chunk async for chunk in result] if endpoint.startswith("a") else list(result)


def memory(llm):
    """The memory of a chat engine; LlamaIndex's newer default one never closes its database."""
    return ChatMemoryBuffer.from_defaults(llm=llm)


def text_of(response):
    """The text of a completion or chat response."""
    return response.text if hasattr(response, "text") else response.message.content


class Heartbeat:
    """Measures how long an event loop was held up."""

    async def __aenter__(self):
        self.longest = 0.0
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        await asyncio.sleep(0.002)  # a loop that was held up until now beats once more
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self):
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before)
