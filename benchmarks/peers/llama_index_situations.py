"""Situations for an LLM of LlamaIndex."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms.function_calling import FunctionCallingLLM
from transformers import AutoTokenizer

from adafuse_integrations.llama_index import AdaFuseLLM
from peers.comparison import PATIENCE, Seen, attempt, in_words, refused, succeeded, within
from peers.llama_index_sides import MODEL, Peer, Side
from peers.watching import failing, passes, slowed, with_start_token

QUESTION = "What is the capital of Italy?"
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
ENDLESS = "one two three"  # as a plain prompt, its continuation never ends
STRICT = (  # a template like Gemma's: no system role, user and assistant alternate
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def failing_stream(side: Side) -> Seen:
    """The model fails while a stream runs"""
    llm = side.make()
    for _ in llm.stream_complete(QUESTION):
        pass  # loads the model
    with failing(side.module(llm)):
        outcome = within(PATIENCE, lambda: list(llm.stream_complete(QUESTION + " And of Spain?")))
    if outcome is None:
        return Seen(f"hangs: nothing after {PATIENCE:.0f} s", False)
    return Seen(f"raises {in_words(outcome)}", isinstance(outcome, Exception))


def start_tokens(side: Side) -> Seen:
    """Start tokens in a chat prompt, with a tokenizer that adds one, as Llama's and Mistral's do"""
    with TemporaryDirectory() as folder:
        model, start = with_start_token(Path(folder) / "birch")
        llm = side.make(model=model)
        llm.chat([ChatMessage(content="Hello!")])
        with side.prompts(llm) as seen:
            llm.chat([ChatMessage(content=QUESTION)])
    count = seen[0].count(start)
    return Seen(f"{count}", count == 1)


def system_prompt(side: Side) -> Seen:
    """`system_prompt` reaches the model, by `complete` and by `stream_complete`"""
    llm = side.make(system_prompt="Be brief.")
    llm.complete(QUESTION)
    with side.prompts(llm) as seen:
        llm.complete(QUESTION)
        list(llm.stream_complete(QUESTION))
    texts = [TOKENIZER.decode(ids) for ids in seen]
    there = ["Be brief." in text for text in texts]
    return Seen(", ".join("yes" if one else "no" for one in there), all(there) and texts[0] == texts[1])


def completion_of_a_chat_model(side: Side) -> Seen:
    """`complete(question)` on a chat model"""
    llm = side.make()
    llm.complete(QUESTION)
    with side.prompts(llm) as seen:
        llm.complete(QUESTION)
    text = TOKENIZER.decode(seen[0])
    turn = "<|im_start|>user" in text
    return Seen("one user turn in its template" if turn else "bare text, no template", turn)


def call_options(side: Side) -> Seen:
    """`complete(..., max_tokens=2)`"""
    llm = side.make()
    full, short = llm.complete(QUESTION).text, llm.complete(QUESTION, max_tokens=2).text
    return Seen("ignored" if short == full else "honoured", short != full)


def unknown_option(side: Side) -> Seen:
    """`complete(..., max_tokns=2)`, a misspelling"""
    llm = side.make()
    outcome = attempt(lambda: llm.complete(QUESTION, max_tokns=2))
    return refused(outcome, "ignored")


def stop_strings(side: Side) -> Seen:
    """`chat(..., stop=[" of"])`"""
    llm = side.make()
    text = llm.chat([ChatMessage(content=QUESTION)], stop=[" of"]).message.content
    ends = " of" not in text
    return Seen("ends before it" if ends else f"ignored: {text!r}", ends)


def overflow(side: Side) -> Seen:
    """A prompt of 6,000 tokens for a window of 2,048"""
    llm = side.make(max_new_tokens=1)
    outcome = attempt(lambda: llm.complete("one two " * 3000))
    return refused(outcome, "answers, without a word", ValueError)


def event_loop(side: Side) -> Seen:
    """Longest hold-up of the event loop during `achat`, in ms; a pass takes 20 ms"""
    llm = side.make()
    llm.complete(QUESTION)
    with slowed(side.module(llm)):
        longest = asyncio.run(blocked_time(llm))
        for _ in range(2):  # other processes can block it too, but not every time
            longest = longest if longest < 0.05 else min(longest, asyncio.run(blocked_time(llm)))
    return Seen(f"{longest * 1000:.0f}", longest < 0.05)


def events_per_call(side: Side) -> Seen:
    """LLM events of `complete`, `chat`, `acomplete`, `achat`, `astream_chat`"""
    llm = side.make()
    counts = []
    for name in ("complete", "chat", "acomplete", "achat", "astream_chat"):
        counter = TokenCountingHandler(tokenizer=str.split)
        llm.callback_manager = CallbackManager([counter])
        asyncio.run(call(llm, name))
        counts.append(len(counter.llm_token_counts))
    return Seen(", ".join(map(str, counts)), set(counts) == {1})


def usage(side: Side) -> Seen:
    """Token counts in the answer, in the model's own tokens"""
    raw = side.make().chat([ChatMessage(content=QUESTION)]).raw or {}
    found = isinstance(raw, dict) and raw.get("usage")
    return Seen(json.dumps(found) if found else "none", bool(found))


def plain_raw(side: Side) -> Seen:
    """`json.dumps(response.raw)`"""
    raw = side.make().chat([ChatMessage(content=QUESTION)]).raw
    return succeeded(attempt(lambda: json.dumps(raw)), "works")


def laziness(side: Side) -> Seen:
    """Passes of the model in 0.5 s for a stream that nobody reads"""
    llm = side.make(max_new_tokens=64)
    llm.complete(QUESTION)
    with passes(side.module(llm)) as seen, slowed(side.module(llm)):
        stream = llm.stream_complete(ENDLESS, formatted=True)
        time.sleep(0.5)
        begun = len(seen)
        if begun:
            join(stream)
    return Seen(str(begun), begun == 0)


def closing(side: Side) -> Seen:
    """Passes of the model after a stream was closed at its first word"""
    llm = side.make(max_new_tokens=200)
    llm.complete(QUESTION)
    with passes(side.module(llm)) as seen, slowed(side.module(llm)):
        stream = llm.stream_complete(ENDLESS, formatted=True)
        next(stream)
        stream.close()
        before = len(seen)
        time.sleep(1.0)
        after = len(seen) - before
    return Seen(str(after), after <= 1)


def odd_roles(side: Side) -> Seen:
    """Two system messages, then a question, on a template that alternates"""
    llm = side.make(template=STRICT)
    roles = [(MessageRole.SYSTEM, "Be kind."), (MessageRole.SYSTEM, "Be brief."), (MessageRole.USER, QUESTION)]
    outcome = attempt(lambda: llm.chat([ChatMessage(role=role, content=text) for role, text in roles]))
    return succeeded(outcome, "answers")


def earlier_calls(side: Side) -> Seen:
    """A tool call of an earlier turn, in the next prompt"""
    llm = side.make()
    call = ToolCallBlock(tool_call_id="1", tool_name="get_weather", tool_kwargs={"city": "Paris"})
    messages = [
        ChatMessage(content="What is the weather in Paris?"),
        ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=""), call]),
        ChatMessage(role=MessageRole.TOOL, content="17 degrees", additional_kwargs={"tool_call_id": "1"}),
    ]
    llm.chat(messages)
    with side.prompts(llm) as seen:
        llm.chat(messages)
    there = "get_weather" in TOKENIZER.decode(seen[0])
    return Seen("is there" if there else "vanished", there)


def default_kind(side: Side) -> Seen:
    """`metadata.is_chat_model` by default, for a model with a chat template"""
    if isinstance(side, Peer):
        from llama_index.llms.huggingface import HuggingFaceLLM

        chat = HuggingFaceLLM(model_name=MODEL, tokenizer_name=MODEL, device_map="cpu").metadata.is_chat_model
    else:
        chat = AdaFuseLLM(members=[MODEL]).metadata.is_chat_model
    return Seen(str(chat), chat)


def tools(side: Side) -> Seen:
    """Function calling (needed by FunctionAgent)"""
    llm = side.make()
    able = isinstance(llm, FunctionCallingLLM) and llm.metadata.is_function_calling_model
    return Seen("yes" if able else "no", able)


def device_map(side: Side) -> Seen:
    """`device_map={"": "cpu"}`, which transformers takes"""
    if isinstance(side, Peer):
        outcome = attempt(lambda: side.make(device_map={"": "cpu"}))
    else:
        outcome = attempt(
            lambda: AdaFuseLLM(members=[{"model": MODEL, "device_map": {"": "cpu"}}], max_new_tokens=2).complete("Hi")
        )
    raised = isinstance(outcome, Exception)
    return Seen(f"{type(outcome).__name__}" if raised else "works", not raised)


def model_name(side: Side) -> Seen:
    """`metadata.model_name` of an LLM made from a loaded model"""
    if isinstance(side, Peer):
        from llama_index.llms.huggingface import HuggingFaceLLM

        loaded = side.make()
        name = HuggingFaceLLM(model=loaded._model, tokenizer=loaded._tokenizer, device_map="cpu").metadata.model_name
    else:
        name = AdaFuseLLM.from_ensemble(side.make().ensemble).metadata.model_name
    return Seen(name, "birch" in name)


def mutation(side: Side) -> Seen:
    """A mapping of options that the caller gave, afterwards"""
    if isinstance(side, Peer):
        given: dict[str, Any] = {"use_fast": True}
        before = copy.deepcopy(given)
        side.make(tokenizer_kwargs=given)
    else:
        given = {"model": MODEL, "model_kwargs": {"low_cpu_mem_usage": True}}
        before = copy.deepcopy(given)
        AdaFuseLLM(members=[given], max_new_tokens=2).complete("Hi")
    return Seen("unchanged" if given == before else f"{before} became {given}", given == before)


def pickle_size(side: Side) -> Seen:
    """Size of a pickle (the weights have 7.8 MB)"""
    llm = side.make()
    llm.complete(QUESTION)
    outcome = attempt(lambda: pickle.dumps(llm))
    if isinstance(outcome, Exception):
        return Seen(in_words(outcome), False)
    size = len(outcome)
    return Seen(f"{size / 1e6:.1f} MB" if size > 1e5 else f"{size} bytes", size < 1e5)


def copied_weights(side: Side) -> Seen:
    """`copy.deepcopy(llm)`"""
    llm = side.make()
    llm.complete(QUESTION)
    outcome = attempt(lambda: side.module(copy.deepcopy(llm)))
    if isinstance(outcome, Exception):
        return Seen(in_words(outcome), False)
    shared = outcome is side.module(llm)
    return Seen("shares the model" if shared else "clones the weights", shared)


SITUATIONS: tuple[Callable[[Side], Seen], ...] = (
    failing_stream,
    start_tokens,
    system_prompt,
    completion_of_a_chat_model,
    call_options,
    unknown_option,
    stop_strings,
    overflow,
    event_loop,
    events_per_call,
    usage,
    plain_raw,
    laziness,
    closing,
    odd_roles,
    earlier_calls,
    default_kind,
    tools,
    device_map,
    model_name,
    mutation,
    pickle_size,
    copied_weights,
)


# --- helpers ---


def join(stream: Any) -> None:
    """Read a stream to its end, so that no thread is left running."""
    for _ in stream:
        pass


async def call(llm: Any, name: str) -> None:
    """Call an endpoint and read the whole result."""
    given = QUESTION if "complete" in name else [ChatMessage(content=QUESTION)]
    result = getattr(llm, name)(given)
    if name.startswith("a"):
        result = await result
    if "stream" in name:
        [chunk async for chunk in result]


async def blocked_time(llm: Any) -> float:
    """Longest time in seconds during which the event loop was blocked."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    task = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    await llm.achat([ChatMessage(content=QUESTION)])
    await asyncio.sleep(0.01)
    task.cancel()
    return longest
