"""LlamaIndex's engines with scripted members: endpoints, threads and callbacks."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import TextNode
from llama_index.retrievers.bm25 import BM25Retriever

from tests.integrations.llama_index.conftest import memory, scripted

FACTS = [
    "The capital of France is Paris.",
    "The capital of Italy is Rome.",
    "The capital of Spain is Madrid.",
    "Cats sleep most of the day.",
]


@pytest.fixture
def retriever():
    return BM25Retriever.from_defaults(nodes=[TextNode(text=text) for text in FACTS], similarity_top_k=2)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"])
def test_a_query_engine_answers_in_every_mode(retriever, mode):
    llm, member = scripted("Paris.", context_window=2048, llm={"max_new_tokens": 64})
    synthesizer = get_response_synthesizer(llm=llm, response_mode=ResponseMode(mode))
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm, response_synthesizer=synthesizer)
    assert "Paris." in str(engine.query("What is the capital of France?"))
    assert all(not isinstance(prompt, str) for prompt in member.prompts)
    assert any(FACTS[0] in turn.content for prompt in member.prompts for turn in prompt)


def test_a_streamed_query_comes_word_by_word(retriever):
    llm, _ = scripted("It is Paris.", context_window=2048, llm={"max_new_tokens": 64})
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm, streaming=True)
    assert list(engine.query("What is the capital of France?").response_gen) == ["It", " is", " Paris.", ""]


async def test_an_async_query_answers(retriever):
    llm, _ = scripted("It is Paris.", context_window=2048, llm={"max_new_tokens": 64})
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm, use_async=True)
    assert str(await engine.aquery("What is the capital of France?")) == "It is Paris."


def test_a_plain_text_llm_gets_one_formatted_prompt(retriever):
    llm, member = scripted("Paris.", chat=False, llm={"is_chat_model": False, "max_new_tokens": 64})
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm)
    assert str(engine.query("What is the capital of France?")) == "Paris."
    assert isinstance(member.prompts[0], str)


def test_17_a_query_with_a_system_prompt_says_it_once(retriever):
    llm, member = scripted("Paris.", llm={"system_prompt": "Be brief.", "max_new_tokens": 64})
    RetrieverQueryEngine.from_args(retriever, llm=llm).query("What is the capital of France?")
    assert [turn.content for turn in member.prompts[0]].count("Be brief.") == 1


def simple(llm, retriever=None):
    return SimpleChatEngine.from_defaults(llm=llm, memory=memory(llm))


ENGINES = {
    "simple": simple,
    "context": lambda llm, retriever: ContextChatEngine.from_defaults(retriever, llm=llm, memory=memory(llm)),
    "condense_plus_context": lambda llm, retriever: CondensePlusContextChatEngine.from_defaults(
        retriever, llm=llm, memory=memory(llm)
    ),
    "condense_question": lambda llm, retriever: CondenseQuestionChatEngine.from_defaults(
        RetrieverQueryEngine.from_args(retriever, llm=llm, streaming=True), llm=llm, memory=memory(llm)
    ),
}


@pytest.mark.parametrize("name", ENGINES)
class TestChatEngines:
    def build(self, name, retriever):
        llm, _ = scripted("Paris it is.", context_window=4096, llm={"max_new_tokens": 64})
        return ENGINES[name](llm, retriever)

    def test_two_turns_are_answered(self, name, retriever):
        engine = self.build(name, retriever)
        assert str(engine.chat("What is the capital of France?")) == "Paris it is."
        assert str(engine.chat("Really?")) == "Paris it is."
        assert [message.role.value for message in engine.chat_history] == ["user", "assistant"] * 2
        assert all(message.additional_kwargs == {} for message in engine.chat_history)

    def test_26_two_turns_are_streamed(self, name, retriever):
        engine = self.build(name, retriever)
        for question in ("What is the capital of France?", "Really?"):
            assert "".join(engine.stream_chat(question).response_gen) == "Paris it is."

    async def test_two_turns_are_streamed_async(self, name, retriever):
        engine = self.build(name, retriever)
        for question in ("What is the capital of France?", "Really?"):
            response = await engine.astream_chat(question)
            assert "".join([delta async for delta in response.async_response_gen()]) == "Paris it is."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # LlamaIndex raises there too
def test_24_cancel_lets_a_consumer_leave_a_chat_stream_at_once():
    llm, member = scripted("word " * 1000, steps=3, context_window=100_000)
    response = simple(llm).stream_chat("Talk.").response_gen
    next(response)
    llm.cancel()
    with pytest.raises(Exception, match="cancelled"):
        list(response)
    assert not member.running
    assert member.drafts <= 3


def test_40_handlers_of_the_settings_see_calls_through_engines(retriever):
    llm, _ = scripted("Paris.", context_window=2048, llm={"max_new_tokens": 64})
    counter = TokenCountingHandler(tokenizer=str.split)
    Settings.callback_manager = CallbackManager([counter])
    Settings.llm = llm
    RetrieverQueryEngine.from_args(retriever).query("What is the capital of France?")
    assert len(counter.llm_token_counts) == 1
    llm.complete("And Italy?")
    assert len(counter.llm_token_counts) == 2


async def test_28_many_chat_turns_at_once(retriever):
    llm, _ = scripted("Paris it is.", context_window=4096, delay=0.002, llm={"max_new_tokens": 64})
    engines = [simple(llm) for _ in range(8)]
    answers = await asyncio.gather(*(engine.achat("Where?") for engine in engines))
    assert [str(answer) for answer in answers] == ["Paris it is."] * 8
