"""Rounds, usage and events as plain JSON values for all adapters."""

from __future__ import annotations

import json

from adafuse_core import Ensemble, ScriptedMember

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
MESSAGES = [{"role": "user", "content": "go"}]


def told(*members, prompt="go", **options):
    """The events of an answer by the paper's rule, after a JSON round trip."""
    ensemble = Ensemble(members=members, strategy="adafuse")
    return [json.loads(json.dumps(event.to_dict())) for event in ensemble.stream(prompt, **options)]


def test_events_contain_their_type():
    events = told(ScriptedMember("a", "one two"))
    assert [event["type"] for event in events] == ["text_delta", "round_done", "finished"]
    assert events[0] == {"type": "text_delta", "text": "one two"}
    counts = {"prompt_tokens": {"a": 1}, "completion_tokens": {"a": 2}, "rounds": 1}
    usage = {**counts, "cached_tokens": {"a": 0}, "read_tokens": {"a": 3}}
    assert events[-1] == {"type": "finished", "reason": "stop", "stop": None, "usage": usage}


def test_events_of_thoughts_and_calls_are_plain_json():
    script = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    events = {event["type"]: event for event in told(ScriptedMember("a", script), prompt=MESSAGES, tools=[TOOL])}
    assert events["reasoning_delta"]["text"] == "hm"
    assert (events["tool_call_delta"]["index"], events["tool_call_done"]["call"]["name"]) == (0, "look")
    assert events["finished"]["reason"] == "tool_calls"


def test_a_round_has_candidates_scores_margins_and_log_probabilities():
    members = ScriptedMember("a", "yes", margin=0.4), ScriptedMember("b", "no", margin=0.9, weight=2)
    (played,) = (event["round"] for event in told(*members) if event["type"] == "round_done")
    assert (played["text"], played["ends"], played["proposers"]) == ("no", True, ["b"])
    assert played["margins"] == {"a": [0.4], "b": [0.9]}
    assert [(each["text"], each["proposers"]) for each in played["candidates"]] == [("yes", ["a"]), ("no", ["b"])]
    assert played["candidates"][0]["member_scores"] == {"a": 0.125, "b": 5.0}
    assert played["candidates"][1]["score"] == played["score"] == (5.0 + 2 * 0.125) / 3
    assert played["logprobs"] == {"a": [-5.0, -5.0], "b": [-0.125, -0.125]}


def test_an_unscored_round_has_none_as_scores():
    (played,) = (event["round"] for event in told(ScriptedMember("a", "one")) if event["type"] == "round_done")
    assert played["score"] is played["member_scores"] is played["logprobs"] is None
