"""Log-probabilities of answers: one entry a word, with the value that the ensemble gives to the word."""

from __future__ import annotations

import itertools
import math

import pytest

from adafuse_core import Ensemble, ScriptedMember, Span
from tests.integrations.server.running import ANSWER, MESSAGES, serving

BODY = {"model": "pair", "messages": MESSAGES}


def ask(client, **options):
    return client.chat.completions.create(
        **{"model": "adafuse", "messages": MESSAGES, "logprobs": True, "top_logprobs": 3, **options}
    )


def test_the_words_of_the_entries_are_the_answer(small):
    choice = ask(small.client()).choices[0]
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content == ANSWER
    assert len(entries) == len(ANSWER.split())
    assert all(bytes(entry.bytes).decode() == entry.token for entry in entries)
    assert all(entry.logprob <= 0 for entry in entries)


def test_the_value_of_a_word_is_the_power_mean_of_the_members(small):
    entries = ask(small.client()).choices[0].logprobs.content
    beginnings = list(itertools.accumulate(entry.token for entry in entries))
    scored = Ensemble().score(MESSAGES, [Span(text=text) for text in beginnings])
    totals = [(0.0, 0.0), *(tuple(score.nll for score in each.scores.values()) for each in scored)]
    words = [
        [after - before for before, after in zip(*pair, strict=True)]  # of each member
        for pair in itertools.pairwise(totals)
    ]
    expected = [-2 * math.log(sum(math.exp(-nll / 2) for nll in word) / 2) for word in words]
    assert [-entry.logprob for entry in entries] == pytest.approx(expected, abs=1e-3)


def test_alternatives_are_sorted_and_contain_other_candidates(small, count):
    entries = ask(small.client()).choices[0].logprobs.content
    several = 0
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert 1 <= len(values) <= 3
        several += len(values) > 1
    count("words with alternatives", several, at_least=2)
    assert ask(small.client(), top_logprobs=0).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(small.client(), logprobs=False, top_logprobs=None).choices[0].logprobs is None


def test_a_stream_has_the_entries_of_its_words(small):
    client = small.client()
    whole = ask(client).choices[0].logprobs.content
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True)]
    streamed = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    for chunk in chunks[:-1]:
        assert "".join(entry.token for entry in chunk.logprobs.content) == chunk.delta.content


def test_completions_have_lists_of_words(small):
    client, options = small.client(), {"model": "adafuse", "prompt": "The Jungle Book was", "max_tokens": 8}
    choice = client.completions.create(logprobs=2, **options).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    for word, start, top in zip(told.tokens, told.text_offset, told.top_logprobs, strict=True):
        assert choice.text[start:].startswith(word)
        assert len(top) <= 2
    assert client.completions.create(logprobs=0, **options).choices[0].logprobs.top_logprobs is None
    chunks = client.completions.create(logprobs=2, stream=True, **options)
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert list(itertools.chain(*(each.tokens for each in streamed))) == told.tokens
    assert list(itertools.chain(*(each.text_offset for each in streamed))) == told.text_offset


def test_one_member_has_log_probabilities_of_its_own(small):
    choice = ask(small.client(), model="adafuse:birch").choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    scored = Ensemble(members=["small:birch"]).score(MESSAGES, [choice.logprobs.content[0].token])[0]
    assert -choice.logprobs.content[0].logprob == pytest.approx(scored.scores["birch"].nll, abs=1e-3)


@pytest.mark.parametrize("pool", ["geometric", "max"])
def test_weights_and_pool_of_the_ensemble_apply(pool):
    members = [
        ScriptedMember("one", "a b", logprobs={"b": (-1.0, -1.0)}, weight=3.0),
        ScriptedMember("two", "a b", logprobs={"b": (-0.5,)}),
    ]
    with serving(ensembles={"pair": Ensemble(members=members, pool=pool)}) as server:
        entries = server.client().chat.completions.create(**BODY, logprobs=True).choices[0].logprobs.content
    assert entries[1].token == " b"
    assert -entries[1].logprob == pytest.approx((3 * 2.0 + 0.5) / 4 if pool == "geometric" else 0.5)


def test_json_under_a_grammar_has_an_entry_for_all_of_its_text(small):
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
    named = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    choice = ask(small.client(), response_format=named).choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
