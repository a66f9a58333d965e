"""Answers end validly within every token budget and context window that is accepted."""

from __future__ import annotations

import json

import pytest

from adafuse_core import (
    ConfigError,
    ContextOverflowError,
    Ensemble,
    Finished,
    Grammar,
    MemberConfig,
    RoundDone,
    TextDelta,
    ToolCall,
)
from adafuse_core.chat.dialects import SHARED
from adafuse_core.members.scripted import ScriptedMember
from tests import tiny

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["été", "日本"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "kind", "tags"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
# A short template, for models with short context windows. Its marks select the dialect.
BRIEF = (
    "{{ tools[0]['function']['name'] if tools }}{% for m in messages %}{{ m['content'] }}{% endfor %}{# <tool_call> #}"
)
LOOP = Grammar.regex("((The quick brown|Question: what is it|Answer: it is what|return) ){2,}END")
FORMS = {
    "schema": {"grammar": Grammar.json_schema(SCHEMA)},
    "call": {"tools": [TOOL], "tool_choice": "any", "complete_calls": True},
    "loop": {"grammar": LOOP},
    "free text": {"grammar": Grammar.regex("(?s:.*)END")},
}


def valid(form, answer):
    """Whether an answer is valid and complete."""
    if form == "schema":
        return json.loads(answer.text).keys() == {"name", "kind", "tags"}
    if form == "call":
        return bool(answer.tool_calls) and not answer.invalid_tool_calls and not answer.text
    return answer.text.endswith("END")


def attempt(ensemble, **options):
    """An answer, or the error message."""
    try:
        return ensemble.generate(ASK, **options)
    except (ConfigError, ContextOverflowError) as error:
        return str(error)


def minimum(ensemble, **options):
    """The smallest accepted budget."""
    for budget in range(1, 500):
        answer = attempt(ensemble, max_new_tokens=budget, **options)
        if not isinstance(answer, str):
            return budget, answer
        assert f"max_new_tokens={budget}" in answer
        assert "Hint: raise max_new_tokens" in answer
    raise AssertionError("no budget is accepted")


def member(tiny_models, name, **options):
    return MemberConfig(model=str(tiny_models[name]), chat_template=BRIEF, **options)


def passes(ensemble):
    return sum(member.backend.model.forwards for member in ensemble.members)


@pytest.fixture(scope="module")
def wild(tiny_models):
    """Random models, whose token ids are rarely the canonical ones of their tokenizers."""
    members = [member(tiny_models, name) for name in ("modern", "pieces")]
    with Ensemble.from_pretrained(*members, max_word_tokens=8) as loaded:
        yield loaded


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_valid_at_every_accepted_budget(wild, form):
    ensemble = Ensemble(wild.config)
    least, answer = minimum(ensemble, **FORMS[form])
    assert valid(form, answer)
    for budget in range(least, least + 12):
        answer = ensemble.generate(ASK, max_new_tokens=budget, **FORMS[form])
        assert valid(form, answer), answer
        assert answer.usage.completion_tokens["modern"] <= budget
        assert answer.reason in ("length", "stop", "tool_calls")


@pytest.mark.parametrize("strategy", ["adafuse", "single"])
def test_non_canonical_ids_are_counted(tiny_models, strategy):
    for name, seed_prompt in (("modern", "go"), ("crossing", "go"), ("bytes", "The")):
        ensemble = Ensemble(members=[tiny_models[name]], strategy=strategy)
        for budget in range(19, 49, 3):
            try:
                answer = ensemble.generate(seed_prompt, grammar=LOOP, max_new_tokens=budget)
            except ConfigError:
                continue
            assert answer.text.endswith("END")
            assert answer.usage.completion_tokens[name] <= budget


@pytest.mark.parametrize("form", FORMS)
def test_a_budget_that_is_too_small_is_refused_before_any_pass(wild, form):
    ensemble = Ensemble(wild.config)
    least, _ = minimum(ensemble, **FORMS[form])
    before = passes(ensemble)
    with pytest.raises(ConfigError, match=rf"max_new_tokens={least - 1} .* no room"):
        ensemble.generate(ASK, max_new_tokens=least - 1, **FORMS[form])
    assert passes(ensemble) == before


@pytest.mark.parametrize("form", ["schema", "call", "loop"])
@pytest.mark.parametrize("small", [0, 1])
def test_answers_are_valid_at_every_accepted_window(tiny_models, form, small):
    names = ["bytes", "pieces"]
    whole = Ensemble(members=[member(tiny_models, name) for name in names], max_word_tokens=8)
    length = whole.generate(ASK, **FORMS[form]).usage.prompt_tokens[names[small]]
    accepted = 0
    for window in [*range(length + 1, length + 200, 11), *range(length + 200, length + 230, 9)]:
        members = [member(tiny_models, name) for name in names]
        members[small] = member(tiny_models, names[small], context_window=window)
        answer = attempt(Ensemble(members=members, max_word_tokens=8), max_new_tokens=None, **FORMS[form])
        if isinstance(answer, str):
            assert not accepted
            assert "no room" in answer
            continue
        accepted += 1
        assert valid(form, answer), answer
        used = answer.usage.prompt_tokens[names[small]] + answer.usage.completion_tokens[names[small]]
        assert used <= window
        if accepted == 3:
            break
    assert accepted == 3


def scripted(reply, **options):
    return Ensemble(members=[ScriptedMember("a", reply, **options)])


def test_a_round_that_does_not_fit_is_replaced_by_the_shortest_ending():
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "integer"}})
    events = list(scripted("[1, 2, 3, 4, 5, 6, 7, 8, 9]").stream("go", grammar=grammar, max_new_tokens=9))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert json.loads(text)[:-1] == list(range(1, len(json.loads(text))))
    assert 1 < len(json.loads(text)) < 9
    rounds = [event.round for event in events if isinstance(event, RoundDone)]
    assert [played.cut is not None for played in rounds] == [*[False] * (len(rounds) - 1), True]
    assert rounds[-1].cut.text == text[len("".join(played.span.text for played in rounds[:-1])) :]
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].stop) == ("length", None)


def test_completed_calls_are_valid_with_complete_calls():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}
    reply = SHARED.write([ToolCall(name="f", arguments={"a": "one two three four five six seven eight nine ten"})])
    answer = scripted(reply).generate(ASK, tools=[tool], tool_choice="f", max_new_tokens=14, complete_calls=True)
    assert answer.reason == "length"
    (call,) = answer.tool_calls
    assert "one two three four five six seven eight nine ten".startswith(call.arguments["a"])
    assert 0 < len(call.arguments["a"]) < 40


def test_an_answer_within_the_budget_is_unchanged():
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "integer"}})
    answer = scripted("[1, 2, 3]").generate("go", grammar=grammar, max_new_tokens=50)
    assert (answer.text, answer.reason) == ("[1, 2, 3]", "stop")
    assert all(played.cut is None for played in answer.rounds)


def test_without_a_budget_the_members_end_the_answer():
    value = list(range(400))
    answer = scripted(json.dumps(value)).generate(
        "go", grammar=Grammar.json_schema({"type": "array"}), max_new_tokens=None
    )
    assert json.loads(answer.text) == value
    assert answer.reason == "stop"


def test_a_full_window_ends_the_answer_validly():
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "integer"}})
    for window in range(3, 12):
        ensemble = scripted("[1, 2, 3, 4, 5, 6, 7]", context_window=window)
        answer = ensemble.generate("go on", grammar=grammar, max_new_tokens=None)
        value = json.loads(answer.text)
        assert value[:-1] == list(range(1, 8))[: len(value)][:-1]
        assert answer.reason == ("stop" if len(value) == 7 else "length")
        assert answer.usage.completion_tokens["a"] <= window - 2


@pytest.mark.parametrize(("budget", "text"), [(1, "one"), (2, "one two"), (3, "one two three")])
def test_free_text_with_tools_is_cut_as_without_tools(budget, text):
    tool = {"type": "function", "function": {"name": "f"}}
    for options in ({}, {"tools": [tool]}, {"tools": [tool], "tool_choice": "none"}):
        answer = scripted("one two three four").generate(ASK, max_new_tokens=budget, **options)
        assert (answer.text, answer.reason) == (text, "length")


def test_free_text_with_tools_is_cut_inside_a_word_as_without_tools():
    tool = {"type": "function", "function": {"name": "get_time"}}
    ensemble = Ensemble()
    ask = [{"role": "user", "content": "Who are you?"}]
    whole = ensemble.generate(ask, tools=[tool], max_new_tokens=60)
    assert (whole.tool_calls, whole.reason) == ((), "stop")
    for budget in range(1, 6):
        answer = ensemble.generate(ask, tools=[tool], max_new_tokens=budget)
        assert whole.text.startswith(answer.text)
        assert answer.usage.completion_tokens["aspen"] <= budget
        assert answer.reason == "length"


def test_text_of_a_grammar_that_may_end_anywhere_is_cut_as_without_one():
    answer = scripted("one two three").generate("go", grammar=Grammar.regex("[a-z ]*"), max_new_tokens=2)
    assert (answer.text, answer.reason) == ("one two", "length")


def test_a_grammar_without_an_ending_is_refused():
    with pytest.raises(ConfigError, match="the search found no answer that the grammar allows") as caught:
        scripted("END").generate("go", grammar=Grammar.regex("(?s:.*)[E-F][N-O][D-E]"))
    assert caught.value.hint


def test_a_stop_string_ends_an_answer_inside_its_grammar():
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "integer"}})
    answer = scripted("[1, 2, 3]").generate("go", grammar=grammar, stop=", 3")
    assert (answer.text, answer.reason, answer.stop) == ("[1, 2", "stop", ", 3")


def test_a_word_that_is_longer_than_the_budget_is_left_out(tmp_path):
    folder = tiny.save_tiny(tmp_path / "m", tiny.characters(), tiny.llama, seed=3)
    grammar = Grammar.json_schema({"type": "string", "minLength": 3})
    for budget in (5, 6, 7, 9):
        answer = Ensemble(members=[folder]).generate("go", grammar=grammar, max_new_tokens=budget)
        assert len(json.loads(answer.text)) >= 3
        assert answer.usage.completion_tokens["m"] <= budget


def test_a_call_that_does_not_fit_is_an_invalid_call_and_not_nothing(caplog):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    reply = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    ensemble = Ensemble(members=[ScriptedMember("one", reply), ScriptedMember("two", reply)])
    kinds = []
    for budget in range(1, 25):
        caplog.clear()
        answer = ensemble.generate(ASK, tools=[tool], max_new_tokens=budget)
        assert not answer.text
        if answer.tool_calls:
            kinds.append("call")
        elif answer.invalid_tool_calls:
            (invalid,) = answer.invalid_tool_calls
            assert reply.startswith(invalid.arguments)
            assert answer.reason == "length"
            assert invalid.name in (None, "look")
            kinds.append("cut")
        else:
            assert "was too small for what followed" in caplog.text
            assert answer.reason == "length"
            kinds.append("none")
    assert kinds == sorted(kinds, key=("none", "cut", "call").index)
    assert {"cut", "call"} <= set(kinds)


def test_a_grammar_of_the_caller_is_never_cut():
    reply = "one two <tool_call> three"
    ensemble = Ensemble(members=[ScriptedMember("one", reply), ScriptedMember("two", reply)])
    for budget in range(1, 6):
        answer = ensemble.generate("go", grammar=Grammar.regex("one( two <tool_call> three)?"), max_new_tokens=budget)
        assert answer.text in ("one", reply)
