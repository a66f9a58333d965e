"""`on_word` and `EnsembleWordEvent`: every round is reported once, in every endpoint."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from adafuse_core import Ensemble, ScriptedMember
from adafuse_integrations.llama_index import AdaFuseLLM, EnsembleWord, EnsembleWordEvent
from tests.integrations.llama_index.conftest import ENDPOINTS, respond, scripted


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_30_each_round_is_reported_once(endpoint):
    words, again = [], []
    llm, _ = scripted("one two three", llm={"on_word": [words.append, again.append]})
    answer = (await respond(llm, endpoint))[-1]
    assert "".join(word.text for word in words) == "one two three"
    assert [word.round for word in words] == list(range(len(answer.raw["words"])))
    assert words == again
    assert words[-1].ends
    for word in words:
        assert word.proposers == ("m0", "m1")
        assert set(word.margins) == {"m0", "m1"}


async def test_on_word_may_be_a_single_callable_and_set_later():
    words = []
    llm, _ = scripted("one", llm={"on_word": words.append})
    llm.complete("go")
    assert words
    llm.on_word = None
    count = len(words)
    llm.complete("go")
    assert len(words) == count
    llm.on_word = (words.append,)
    llm.complete("go")
    assert len(words) == 2 * count


def test_a_choice_is_reported_with_the_score_of_every_member():
    cast = [ScriptedMember(name="a", reply="left"), ScriptedMember(name="b", reply="right")]
    words = []
    llm = AdaFuseLLM.from_ensemble(Ensemble(members=cast, strategy="adafuse"), on_word=words.append)
    llm.complete("go")
    assert words[0].text == "left"
    assert words[0].proposers == ("a",)
    assert set(words[0].scores) == {"a", "b"}
    assert words[0].score == pytest.approx(sum(words[0].scores.values()) / 2)


def test_a_word_is_frozen():
    words = []
    llm, _ = scripted("one", llm={"on_word": words.append})
    llm.complete("go")
    with pytest.raises(dataclasses.FrozenInstanceError):
        words[0].text = "two"


def test_a_word_is_reported_before_its_text_is_returned():
    words = []
    llm, _ = scripted("one two three", llm={"on_word": words.append})
    for chunk in llm.stream_complete("go"):
        assert "".join(word.text for word in words) == chunk.text


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_30_an_exception_of_a_callback_ends_the_generation_and_reaches_the_caller(endpoint):
    def object_to(word):
        if word.round == 1:
            raise LookupError("enough")

    llm, member = scripted("word " * 200, llm={"on_word": object_to})
    with pytest.raises(LookupError, match="enough"):
        await respond(llm, endpoint)
    assert member.drafts == 2
    assert not llm._running_calls


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_31_events_carry_the_span_of_their_call(seen, endpoint):
    llm, _ = scripted("one two three")
    await respond(llm, endpoint)
    words = [event for event in seen if isinstance(event, EnsembleWordEvent)]
    (start,) = [event for event in seen if event.class_name().endswith("StartEvent")]
    assert "".join(event.word.text for event in words) == "one two three"
    assert {event.span_id for event in words} == {start.span_id}
    assert start.span_id
    assert words[0].model_dump()["word"]["text"] == "one"
    assert words[0].class_name() == "EnsembleWordEvent"


async def test_callbacks_of_async_endpoints_do_not_run_on_the_event_loop():
    threads = []
    llm, _ = scripted("one", llm={"on_word": lambda _: threads.append(threading.current_thread())})
    await llm.acomplete("go")
    llm.complete("go")
    assert threads[0] is not threading.main_thread()
    assert threads[-1] is threading.main_thread()


def test_the_report_on_an_unscored_round_has_no_scores():
    words = []
    llm, _ = scripted("one", margin=1.0, llm={"on_word": words.append})
    llm.complete("go")
    assert words == [
        EnsembleWord(
            round=0,
            text="one",
            ends=True,
            proposers=("m0", "m1"),
            margins=words[0].margins,
            scores={},
            score=None,
        )
    ]
