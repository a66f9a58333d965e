"""LlamaIndex's engines with the two small models of the package."""

from __future__ import annotations

import json

import pytest
from llama_index.core import Settings
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.retrievers.bm25 import BM25Retriever

from adafuse_integrations.llama_index import AdaFuseLLM
from tests.integrations.llama_index.conftest import ENDPOINTS, memory, respond, text_of

FACTS = [
    "The Velmora bridge was opened in 1931. It crosses the river Tamsel.",
    "The Orrin museum keeps a collection of old clocks. It is closed on Mondays.",
    "The village of Pellis has 412 people. Its mayor is Anna Brandt.",
    "The lighthouse of Karst stands on a white rock. Its keeper was Jonas Reed.",
]


@pytest.fixture(scope="module")
def llm():
    return AdaFuseLLM(max_new_tokens=24)


@pytest.fixture
def retriever():
    return BM25Retriever.from_defaults(nodes=[TextNode(text=text) for text in FACTS], similarity_top_k=2)


async def test_05_all_endpoints_give_the_same_answer(llm):
    answers = {name: text_of((await respond(llm, name, "What is the capital of Italy?"))[-1]) for name in ENDPOINTS}
    assert len(set(answers.values())) == 1
    assert answers["complete"].strip()


def test_a_query_engine_streams_over_documents(llm, retriever):
    Settings.tokenizer = llm.tokenizer_fn
    words = []
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=llm.model_copy(update={"on_word": words.append}), streaming=True
    )
    response = engine.query("When was the Velmora bridge opened?")
    deltas = list(response.response_gen)
    assert "1931" in "".join(deltas)
    assert "".join(word.text for word in words).startswith("".join(deltas))
    assert response.source_nodes[0].text == FACTS[0]


def test_a_context_chat_engine_keeps_a_conversation(llm, retriever):
    engine = ContextChatEngine.from_defaults(retriever, llm=llm, memory=memory(llm))
    answers = [
        "".join(engine.stream_chat(question).response_gen)
        for question in ("When was the Velmora bridge opened?", "When is the Orrin museum closed?")
    ]
    assert all(answers)
    assert [message.content for message in engine.chat_history[1::2]] == [answer.strip() for answer in answers]


async def test_a_simple_chat_engine_streams_async(llm):
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory(llm))
    response = await engine.astream_chat("What is the capital of Italy?")
    assert "".join([delta async for delta in response.async_response_gen()]).strip()


def test_08_usage_is_counted_per_member_and_the_trace_names_both(llm):
    raw = llm.chat([ChatMessage(content="What is the capital of Italy?")]).raw
    assert set(raw["usage_by_member"]) == {"aspen", "birch"}
    assert raw["usage"] == raw["usage_by_member"]["aspen"]
    assert set(raw["members"]) == {"aspen", "birch"}
    json.dumps(raw, allow_nan=False)


def test_metadata_has_the_context_window(llm):
    assert llm.metadata.context_window == 2048 - 64
    assert llm.metadata.model_name == "adafuse(aspen+birch)"
