"""The reader parses answers into thoughts, text and calls, from any pieces, without losses."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.chat.call_reader import CallReader
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.dialects.hermes import DIALECT as HERMES
from adafuse_core.chat.reader import read_answer
from adafuse_core.events import Finished, ReasoningDelta, RoundDone, TextDelta, ToolCallDelta, ToolCallDone
from adafuse_core.rounds import Round, Usage

NAMES = ("get_time", "get_weather", "f")
EMPTY = Usage(prompt_tokens={}, completion_tokens={}, rounds=0)


def read(pieces, dialect=HERMES, *, thinking=False, reason="stop"):
    """All events of an answer that is parsed in pieces."""
    calls = None if dialect is None else CallReader(dialect, NAMES)
    given = [*(TextDelta(text=piece) for piece in pieces), Finished(reason=reason, stop=None, usage=EMPTY)]
    return list(read_answer(iter(given), calls=calls, thinking=thinking))


def joined(events):
    """Thought, text, calls and finish reason."""
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return thought, text, [event.call for event in events if isinstance(event, ToolCallDone)], events[-1].reason


def summary(events):
    """The same without IDs."""
    thought, text, calls, reason = joined(events)
    kinds = [(type(call), call.name, call.arguments) for call in calls]
    return thought, text, kinds, reason


def parts(text, cuts):
    cuts = sorted(cuts)
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}é😀"], "b": {}}}\n</tool_call>'
NEXT = '<tool_call>\n{"name": "get_time", "arguments": {"city": "日本"}}\n</tool_call>'
ANSWERS = {
    "call": (HERMES, CALL),
    "text and calls": (HERMES, f"I look.\n\n{CALL}\n{NEXT}"),
    "cut call": (HERMES, f"{CALL}\n{NEXT[:40]}"),
    "thought, text and call": (HERMES, f"<think>\nhm\n\nhm </th\n</think>\n\nSo <tool_\n\n{CALL}"),
    "thought only": (HERMES, "<think>\nhm\n"),
    "text": (HERMES, "a < b <tool <tool_call\n\n"),
    "no thought": (HERMES, " <thinking>hm</think>"),
    "list": (DIALECTS["mistral"], '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"x": "]"}}]'),
    "list in text": (DIALECTS["mistral"], 'See [{"name": "f", "arguments": {}}]'),
    "bare": (DIALECTS["llama3"], '\n{"name": "f", "parameters": {"x": {}}}'),
    "bare ones": (DIALECTS["plain"], '{"name": "f", "arguments": {}}\n{"name": "get_time", "arguments": {"x": 1}}'),
    "JSON that is no call": (DIALECTS["llama3"], '{"name": "fred", "parameters": {}}'),
    "JSON like a call": (DIALECTS["plain"], '{"name": "get"}'),
    "nothing": (HERMES, ""),
    "blanks": (HERMES, " \n\n"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_events_do_not_depend_on_the_pieces(name):
    dialect, text = ANSWERS[name]
    whole = summary(read([text], dialect))
    assert summary(read(text, dialect)) == whole
    for cut in range(len(text) + 1):
        assert summary(read([text[:cut], text[cut:]], dialect)) == whole


@pytest.mark.parametrize("name", ANSWERS)
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_events_do_not_depend_on_several_cuts(name, data):
    dialect, text = ANSWERS[name]
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert summary(read(parts(text, cuts), dialect)) == summary(read([text], dialect))


def test_text_and_calls_are_told_apart():
    thought, text, calls, reason = joined(read([f"I look.\n\n{CALL}\n{NEXT}"]))
    assert (thought, text, reason) == ("", "I look.", "tool_calls")
    assert [(call.name, call.arguments) for call in calls] == [
        ("f", {"a": [1, "}é😀"], "b": {}}),
        ("get_time", {"city": "日本"}),
    ]
    assert len({call.id for call in calls}) == 2
    assert all(call.id.isalnum() and len(call.id) == 9 for call in calls)


def test_a_call_comes_in_pieces_with_its_name_and_id_first():
    events = read(f"{CALL}\n{NEXT}")
    for index, (name, call) in enumerate([("f", CALL), ("get_time", NEXT)]):
        pieces = [event for event in events if isinstance(event, ToolCallDelta) and event.index == index]
        done = next(event.call for event in events if isinstance(event, ToolCallDone) and event.index == index)
        assert (pieces[0].name, pieces[0].id) == (name, done.id)
        assert all(piece.name is None and piece.id is None for piece in pieces[1:])
        written = "".join(piece.arguments for piece in pieces)
        assert f'"arguments": {written}}}\n' in call
        assert json.loads(written) == done.arguments
        assert len(pieces) > 5
    order = [event.index for event in events if isinstance(event, ToolCallDelta | ToolCallDone)]
    assert order == sorted(order)


def test_arguments_are_shown_as_they_come():
    begun = read([CALL[:50]])
    shown = "".join(event.arguments for event in begun if isinstance(event, ToolCallDelta))
    assert CALL[:50].endswith(shown)
    assert len(shown) > 5


@pytest.mark.parametrize("text", ["<", "<tool_", "x <tool_call", "a\n", "a\n\n<tool_call", "\n", "<tool_call\n>"])
def test_an_end_that_looks_like_a_call_is_text(text):
    assert summary(read(text)) == ("", text, [], "stop")


def test_text_is_shown_once_it_can_not_be_a_call():
    events = read(["a <tool", "_box>", "\n", "b"])
    assert [event.text for event in events[:-1]] == ["a ", "<tool_box>", "\nb"]


@pytest.mark.parametrize("name", DIALECTS)
@given(text=st.text(alphabet='<tol_ca>{"name": f}[],\n é', max_size=30), data=st.data())
@settings(deadline=None, max_examples=60)
def test_no_text_is_lost_where_nothing_is_called(name, text, data):
    assume(DIALECTS[name].trigger not in text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=4))
    assert summary(read(parts(text, cuts), DIALECTS[name])) == ("", text, [], "stop")


def test_without_tools_markup_is_text():
    assert summary(read([CALL], None)) == ("", CALL, [], "stop")


@pytest.mark.parametrize("name", DIALECTS)
def test_an_answer_cut_anywhere_in_a_call_has_an_invalid_call(name):
    dialect = DIALECTS[name]
    text = dialect.write([ToolCall(name="f", arguments={"a": {"b": "}"}})])
    arguments = text.index('{"a"')
    closed = text.index('}"}}') + 4
    for cut in range(len(dialect.trigger), len(text)):
        _, shown, (call,), reason = joined(read([text[:cut]], dialect, reason="length"))
        assert shown == ""
        assert reason == "length"
        assert call.id
        if cut >= closed:  # the call is complete
            assert (type(call), call.name, call.arguments) == (ToolCall, "f", {"a": {"b": "}"}})
        else:
            assert isinstance(call, InvalidToolCall)
            assert call.error
            named = cut >= arguments
            assert call.name == ("f" if named else None)
            assert call.arguments == (text[arguments:cut] if named else text[:cut])


@pytest.mark.parametrize("name", ["hermes", "mistral", "plain"])
def test_an_answer_cut_in_a_second_call_keeps_the_first(name):
    dialect = DIALECTS[name]
    both = dialect.write([ToolCall(name="f", arguments={"a": 1})] * 2)
    second, arguments = both.rindex(dialect.begin), both.rindex('{"a"')
    for cut in range(both.index("1}") + 2, both.rindex("1}") + 2):
        _, shown, calls, _ = joined(read([both[:cut]], dialect, reason="length"))
        assert (shown, calls[0].name, calls[0].arguments) == ("", "f", {"a": 1})
        rest = both[arguments if cut >= arguments else second : cut]
        assert [(type(call), call.arguments) for call in calls[1:]] == (
            [(InvalidToolCall, rest)] if cut > second else []
        )


def test_deltas_of_a_cut_call_belong_to_it():
    events = read([CALL[:60]], reason="length")
    (call,) = (event.call for event in events if isinstance(event, ToolCallDone))
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert deltas[0].id == call.id
    assert "".join(delta.arguments for delta in deltas) == call.arguments


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        (CALL, "stop", "tool_calls"),
        (CALL, "length", "length"),
        ("hello", "stop", "stop"),
        (CALL[:30], "length", "length"),
    ],
)
def test_finished_has_the_reason(text, reason, told):
    assert read([text], reason=reason)[-1] == Finished(reason=told, stop=None, usage=EMPTY)


def test_rounds_are_passed_on_in_their_place():
    done = RoundDone(round=Round(drafts=(), candidates=(), scores=(), fused=(), chosen=0))
    given = [TextDelta(text="a"), done, TextDelta(text="<tool"), done, Finished(reason="stop", stop=None, usage=EMPTY)]
    seen = list(read_answer(iter(given), calls=CallReader(HERMES, NAMES), thinking=False))
    assert seen == [TextDelta(text="a"), done, done, TextDelta(text="<tool"), given[-1]]


def test_an_integer_of_thousands_of_digits_makes_a_call_invalid():
    text = CALL.replace("[1,", f"[{'1' * 5000},")
    (call,) = joined(read([text]))[2]
    assert isinstance(call, InvalidToolCall)


@pytest.mark.parametrize("dialect", [None, HERMES])
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>hm</think>So.", "hm", "So."),
        ("<think>\nhm\nhm\n</think>\n\nSo.\n", "hm\nhm", "So.\n"),
        (" \n<think>hm</think> So.", "hm", " So."),
        ("<think></think>So.", "", "So."),
        ("<think>\n\n</think>\n\nSo.", "", "So."),
        ("<think>hm", "hm", ""),
        ("<think>hm\n</thi", "hm\n</thi", ""),
        ("<think>hm </thin g</think>", "hm </thin g", ""),
        ("<think>a<think>b</think>c</think>", "a<think>b", "c</think>"),
        ("So <think>hm</think>", "", "So <think>hm</think>"),
        ("<thin", "", "<thin"),
        ("<thinks>", "", "<thinks>"),
        ("</think>So", "", "</think>So"),
        (" ", "", " "),
        ("", "", ""),
    ],
)
def test_a_leading_thought_is_not_text(dialect, text, thought, answer):
    assert summary(read([text], dialect)) == (thought, answer, [], "stop")
    assert summary(read(text, dialect)) == (thought, answer, [], "stop")
    for cut in range(len(text) + 1):
        assert summary(read([text[:cut], text[cut:]], dialect)) == (thought, answer, [], "stop")


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("hm\n</think>\n\nSo.", "hm", "So."),
        ("</think>So.", "", "So."),
        ("hm", "hm", ""),
        ("hm <think> hm</think>So.", "hm <think> hm", "So."),
        ("", "", ""),
    ],
)
def test_a_thought_that_the_prompt_opened_is_not_text(text, thought, answer):
    assert summary(read([text], thinking=True)) == (thought, answer, [], "stop")
    assert summary(read(text, thinking=True)) == (thought, answer, [], "stop")


def test_a_call_in_a_thought_is_thought_and_one_after_it_a_call():
    thought, text, kinds, _ = summary(read(f"<think>{CALL}</think>\n{NEXT}"))
    assert (thought, text) == (CALL, "")
    assert kinds == [(ToolCall, "get_time", {"city": "日本"})]


def test_thoughts_are_shown_as_they_come():
    events = read(["<think>one ", "two\n", "three</think>", "So"])
    assert [event.text for event in events[:-1]] == ["one ", "two", "\nthree", "So"]


def test_a_call_that_repeats_another_one_is_dropped_and_nothing_is_read_beyond_it():
    calls = CallReader(HERMES, NAMES)
    again = CALL.replace("}é", "}\\u00e9")
    events = [event for piece in f"{CALL}\n{NEXT}\n{again}\n{NEXT}" for event in calls.read(piece, last=False)]
    events += calls.read("", last=True)
    assert [event.call.name for event in events if isinstance(event, ToolCallDone)] == ["f", "get_time"]
    assert {event.index for event in events if isinstance(event, ToolCallDelta)} == {0, 1}
    assert (calls.repeated, calls.count) == (True, 2)
