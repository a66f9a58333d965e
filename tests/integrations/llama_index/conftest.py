"""LLMs with scripted members, and a fixture that restores LlamaIndex's global settings after each test."""

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
    """Restore LlamaIndex's global LLM, tokenizer, callbacks and handlers."""
    for name in ("_llm", "_callback_manager", "_tokenizer", "_node_parser", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None, raising=False)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", str.split)
    root = get_dispatcher()
    monkeypatch.setattr(root, "event_handlers", list(root.event_handlers))
    if not inspect.iscoroutinefunction(request.function):
        asyncio.set_event_loop(None)  # otherwise its sync code makes an event loop that is never closed


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two random models: the first template accepts any role, the second has a start token and no system role."""
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
    """Records every event of LlamaIndex's instrumentation."""

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
    """Permit more steps to each member of an LLM."""
    for member in crew(llm):
        member.let(steps)


def call(name, arguments):
    """A tool call in the members' dialect."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def taking_turns(*replies):
    """A scripted reply that depends on the number of tool results in the conversation."""
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
    """Call an endpoint and return its result as LlamaIndex receives it."""
    given = prompt if "complete" in endpoint or not isinstance(prompt, str) else [ChatMessage(content=prompt)]
    return getattr(llm, endpoint)(given, **options)


async def respond(llm, endpoint, prompt="Which city?", **options):
    """All responses of a call of a sync or async endpoint."""
    result = begin(llm, endpoint, prompt, **options)
    if endpoint.startswith("a"):
        result = await result
    if endpoint in WHOLE:
        return [result]
    return [chunk async for chunk in result] if endpoint.startswith("a") else list(result)


def memory(llm):
    """The memory of a chat engine. LlamaIndex's newer default memory never closes its database."""
    return ChatMemoryBuffer.from_defaults(llm=llm)


def text_of(response):
    """The text of a completion or chat response."""
    return response.text if hasattr(response, "text") else response.message.content


class Heartbeat:
    """Measures the longest time that an event loop was blocked."""

    async def __aenter__(self):
        self.longest = 0.0
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        await asyncio.sleep(0.002)  # let a blocked loop run once more
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self):
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before)
