"""The trace in answers of all adapters: a summary by default, all rounds on request, or nothing."""

from __future__ import annotations

import json
from functools import reduce
from operator import add

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from llama_index.core.llms import ChatMessage
from pydantic import ValidationError

from adafuse_core import Ensemble, ScriptedMember
from adafuse_core.errors import ConfigError
from adafuse_integrations.langchain import AdaFuseLLM, ChatAdaFuse
from adafuse_integrations.llama_index import AdaFuseLLM as LlamaIndexLLM

KINDS = {"langchain chat": ChatAdaFuse, "langchain llm": AdaFuseLLM, "llama_index": LlamaIndexLLM}
FORTY = " ".join(f"word{number}" for number in range(40))
OTHER = " ".join(f"else{number}" for number in range(40))
LONG_NAMES = ("Llama-3.1-8B-Instruct", "Mistral-7B-Instruct-v0.3")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def made(kind, *texts, margin=0.0, max_words=1, names=("left", "right"), **options):
    """A model whose scripted members write these texts."""
    members = [ScriptedMember(name, text, margin=margin) for name, text in zip(names, texts, strict=False)]
    return KINDS[kind].from_ensemble(Ensemble(members=members, strategy="adafuse", max_words=max_words), **options)


def trace_of(kind, llm, **options):
    """The trace of a complete answer, and its text."""
    if kind == "langchain chat":
        answer = llm.invoke("go", **options)
        return answer.response_metadata["adafuse"], answer.text
    if kind == "langchain llm":
        (answer,) = llm.generate(["go"], **options).generations[0]
        return answer.generation_info["adafuse"], answer.text
    answer = llm.chat([ChatMessage(content="go")], **options)
    return answer.raw, answer.message.content


def pieces_of(kind, llm):
    """The traces of the chunks of a stream."""
    if kind == "langchain chat":
        return [chunk.response_metadata.get("adafuse", {}) for chunk in llm.stream("go")]
    if kind == "langchain llm":
        return [chunk.generation_info["adafuse"] for chunk in llm._stream("go")]
    return [response.raw for response in llm.stream_chat([ChatMessage(content="go")])]


def stored(kind, llm):
    """An answer as applications store it: a message in a LangGraph checkpoint, or JSON."""
    if kind == "langchain chat":
        return JsonPlusSerializer().dumps_typed(llm.invoke("go"))[1]
    if kind == "langchain llm":
        (answer,) = llm.generate(["go"]).generations[0]
        return answer.model_dump_json().encode()
    return llm.chat([ChatMessage(content="go")]).model_dump_json().encode()


def test_an_answer_of_forty_words_is_small_unless_the_trace_is_full(kind):
    sizes = {}
    for level in ("summary", "full", False):
        llm = made(kind, FORTY, OTHER, names=LONG_NAMES, trace=level)
        sizes[level] = len(stored(kind, llm))
    default = len(stored(kind, made(kind, FORTY, OTHER, names=LONG_NAMES)))
    texts = len(FORTY)
    assert abs(default - sizes["summary"]) < 8  # ids of messages differ
    assert sizes["summary"] - sizes[False] < texts + 40 * 40
    assert sizes["summary"] < 3000
    assert sizes["full"] > 3 * sizes["summary"]


def test_a_summary_has_text_proposers_and_number_of_candidates(kind):
    llm = made(kind, "one two three", "one too three", margin=0.5)
    told, text = trace_of(kind, llm)
    assert told["members"] == ["left", "right"]
    assert told["words"][0] == {"text": "one", "by": [0, 1], "of": 1}
    assert told["words"][1] == {"text": " two", "by": [0], "of": 2}
    assert "".join(word["text"] for word in told["words"]) == text
    assert "rounds" not in told
    assert json.loads(json.dumps(told)) == told


def test_pieces_of_a_stream_add_up_to_the_summary_of_the_answer(kind):
    llm = made(kind, FORTY, OTHER)
    pieces, (whole, _) = pieces_of(kind, llm), trace_of(kind, llm)
    words = [word for piece in pieces[:-1] for word in piece.get("words", [])]
    if kind == "llama_index":  # its last response contains the whole trace
        assert pieces[-1]["words"] == whole["words"]
        assert words == whole["words"][: len(words)]
    else:
        assert words + pieces[-1].get("words", []) == whole["words"]
        assert [name for piece in pieces for name in piece.get("members", [])] == whole["members"]
    assert all(max(word["by"]) < len(whole["members"]) for word in whole["words"])


def test_added_chunks_have_the_same_trace_as_the_answer():
    llm = made("langchain chat", FORTY, OTHER)
    added = reduce(add, llm.stream("go")).response_metadata["adafuse"]
    assert added == llm.invoke("go").response_metadata["adafuse"]


def test_usage_is_only_in_the_last_chunk(kind):
    *earlier, last = pieces_of(kind, made(kind, FORTY, OTHER))
    assert not any("usage" in piece for piece in earlier)
    if kind != "langchain llm":  # its usage is next to the trace
        assert "usage" in last


def test_chunks_do_not_grow(kind):
    sizes = [len(json.dumps(piece)) for piece in pieces_of(kind, made(kind, FORTY, OTHER, names=LONG_NAMES))[:-1]]
    assert max(sizes) < 150


@pytest.mark.parametrize("level", ["full", True])
def test_the_full_trace_has_all_candidates(kind, level):
    told, text = trace_of(kind, made(kind, "one two", "one too", trace=level))
    assert "words" not in told
    assert "".join(played["text"] for played in told["rounds"]) == text
    assert {"candidates", "margins", "member_scores"} <= told["rounds"][0].keys()


def test_without_trace_there_are_no_rounds(kind):
    told, _ = trace_of(kind, made(kind, "one two", trace=False))
    assert not told.keys() & {"rounds", "words", "members"}


def test_a_summary_contains_requested_log_probabilities(kind):
    llm = made(kind, "one two", "one too")
    assert all("logprobs" not in word for word in trace_of(kind, llm)[0]["words"])
    told, _ = trace_of(kind, llm, logprobs=True)
    assert all(set(word["logprobs"]) == {"left", "right"} for word in told["words"])
    with pytest.raises(ConfigError, match="trace=False"):
        trace_of(kind, made(kind, "one two", trace=False), logprobs=True)


@pytest.mark.parametrize("wrong", ["ful", "off", 1, None])
def test_an_unknown_level_is_refused(kind, wrong):
    with pytest.raises(ValidationError, match="trace"):
        made(kind, "one", trace=wrong)
    llm = made(kind, "one")
    llm.trace = wrong
    with pytest.raises(ConfigError, match="summary"):
        trace_of(kind, llm)


def test_stored_messages_of_llama_index_contain_no_trace():
    answer = made("llama_index", FORTY, OTHER).chat([ChatMessage(content="go")])
    assert len(answer.message.model_dump_json()) < len(FORTY) + 200


def test_the_cache_key_contains_the_level():
    from langchain_core.caches import InMemoryCache

    cache = InMemoryCache()
    for kind in ("langchain chat", "langchain llm"):
        for level, name in (("summary", "words"), ("full", "rounds")):
            llm = KINDS[kind](members=["small:aspen"], max_tokens=2, cache=cache, trace=level)
            assert name in trace_of(kind, llm)[0]


def test_a_stored_message_comes_back_with_its_summary():
    message = made("langchain chat", FORTY, OTHER).invoke("go")
    back = JsonPlusSerializer().loads_typed(JsonPlusSerializer().dumps_typed(message))
    assert isinstance(back, AIMessage)
    assert back.response_metadata == message.response_metadata
