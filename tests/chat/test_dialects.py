"""Dialects: grammar, writer and parser agree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_core.calls import ToolCall
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.call_reader import CallReader
from adafuse_core.chat.dialects import DIALECTS, SHARED
from adafuse_core.chat.reader import read_answer
from adafuse_core.chat.tools import Tools
from adafuse_core.events import Finished, TextDelta, ToolCallDone
from adafuse_core.rounds import Usage

NAMES = ("f", "get weather/2", 'q"uo\\te', "日本 é", "</tool_call>", 'x", "arguments": {"', "tab\t\n", "[TOOL_CALLS]")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "additionalProperties": True}}}
    for name in NAMES
]
EMPTY = Usage(prompt_tokens={}, completion_tokens={}, rounds=0)


def grammar(dialect, choice="any", parallel=True):
    return answer_grammar(Tools.of_request(TOOLS, choice, parallel), dialect)


def accepts(rules, text):
    guide = rules.guide().after(text)
    return guide is not None and guide.may_end


def of_another_tool(dialect, arguments):
    """A call of an unknown tool."""
    return dialect.write([ToolCall(name="zzz", arguments=arguments)])


def read(dialect, pieces):
    """Text and calls of an answer that is parsed in pieces."""
    events = [*(TextDelta(text=piece) for piece in pieces), Finished(reason="stop", stop=None, usage=EMPTY)]
    seen = list(read_answer(iter(events), calls=CallReader(dialect, NAMES), thinking=False))
    text = "".join(event.text for event in seen if isinstance(event, TextDelta))
    return text, [event.call for event in seen if isinstance(event, ToolCallDone)]


def until_repeated(calls):
    """The calls before the first repeated one."""
    places = (place for place, call in enumerate(calls) if any(call.repeats(other) for other in calls[:place]))
    return calls[: next(places, len(calls))]


def plain(calls):
    return [(call.name, call.arguments) for call in calls]


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")  # allowed in JSON, but excluded here
texts = st.text(characters, max_size=6) | st.sampled_from(['"}', "}}", "\n</tool_call>", "<tool_call>", "]", "\\"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
some_calls = st.lists(
    st.builds(ToolCall, name=st.sampled_from(NAMES), arguments=st.dictionaries(texts, values, max_size=3)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", DIALECTS)
@given(calls=some_calls, data=st.data())
@settings(deadline=None, max_examples=40)
def test_written_calls_obey_the_grammar_and_are_parsed_from_any_pieces(name, calls, data):
    dialect = DIALECTS[name]
    calls = calls[:1] if dialect.between is None else calls
    text = dialect.write(calls)
    assert accepts(grammar(dialect), text)
    assert accepts(grammar(dialect, "auto"), text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said, found = read(dialect, pieces)
    assert (said, plain(found)) == ("", plain(until_repeated(calls)))
    assert len({call.id for call in found}) == len(found)


@pytest.mark.parametrize("name", DIALECTS)
def test_calls_are_read_in_pieces_cut_at_every_place(name):
    dialect = DIALECTS[name]
    calls = [ToolCall(name=tool, arguments={"a": {"b": ['"}', 1.5]}, "é😀": None}) for tool in NAMES[:2]]
    calls = calls[:1] if dialect.between is None else calls
    text = dialect.write(calls)
    for cut in range(len(text) + 1):
        said, found = read(dialect, [text[:cut], text[cut:]])
        assert (said, plain(found)) == ("", plain(calls))
    said, found = read(dialect, text)
    assert (said, plain(found)) == ("", plain(calls))


@pytest.mark.parametrize("name", DIALECTS)
def test_several_calls_where_the_dialect_and_the_request_allow_them(name):
    dialect = DIALECTS[name]
    one, two = (dialect.write([ToolCall(name="f")] * count) for count in (1, 2))
    assert accepts(grammar(dialect), one)
    assert accepts(grammar(dialect), two) == (dialect.between is not None)
    assert accepts(grammar(dialect, parallel=False), one)
    assert not accepts(grammar(dialect, parallel=False), two)
    assert not accepts(grammar(dialect, "f"), two)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_forced_answer_is_nothing_but_calls(name):
    dialect = DIALECTS[name]
    call = dialect.write([ToolCall(name="f", arguments={"a": 1})])
    rules = grammar(dialect)
    for text in ("", "hello", f"hello {call}", f"{call} hello", of_another_tool(dialect, {"a": 1}), call[:-1]):
        assert not accepts(rules, text)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_named_tool_is_the_only_one(name):
    dialect = DIALECTS[name]
    assert accepts(grammar(dialect, NAMES[1]), dialect.write([ToolCall(name=NAMES[1])]))
    assert not accepts(grammar(dialect, NAMES[1]), dialect.write([ToolCall(name="f")]))


@pytest.mark.parametrize("name", DIALECTS)
def test_without_a_forced_call_any_text_is_allowed(name):
    dialect = DIALECTS[name]
    rules = grammar(dialect, "auto")
    for text in (
        "",
        "Hello!\n\n日本",
        '{"answer": [1]}',
        "[1, 2]",
        dialect.trigger[:-1],
        "<tool_",
        " \n",
        "```json\n{}",
    ):
        assert accepts(rules, text), text
        assert read(dialect, text) == (text, [])


@pytest.mark.parametrize("name", DIALECTS)
def test_calls_obey_the_schema_of_their_tool(name):
    dialect = DIALECTS[name]
    rules = grammar(dialect, "auto")
    begun = dialect.head + dialect.begin
    assert rules.guide().after(begun + "f") is not None
    assert rules.guide().after(begun + "z") is None
    assert not accepts(rules, begun)


def test_text_may_come_before_calls_where_the_dialect_allows_it():
    call = SHARED.write([ToolCall(name="f", arguments={"a": 1})])
    for text in ("I look.", "I look.\n\n", "<tool_ ", "日本\n", "\n"):
        assert accepts(grammar(SHARED, "auto"), text + call)
        said, found = read(SHARED, text + call)
        assert (said, plain(found)) == (text.rstrip("\n"), [("f", {"a": 1})])


@pytest.mark.parametrize("name", ["llama3", "mistral", "plain"])
def test_calls_may_come_after_line_ends_where_they_begin_the_answer(name):
    dialect = DIALECTS[name]
    call = dialect.write([ToolCall(name="f", arguments={"a": 1})])
    assert accepts(grammar(dialect, "auto"), "\n\n" + call)
    for pieces in (["\n\n" + call], ["\n", "\n" + call], "\n\n" + call):
        said, found = read(dialect, pieces)
        assert (said, plain(found)) == ("", [("f", {"a": 1})])
    assert read(dialect, "So: " + call) == ("So: " + call, [])
    assert read(dialect, "\n\nSo") == ("\n\nSo", [])


@pytest.mark.parametrize("name", DIALECTS)
def test_calls_may_come_after_a_thought_but_not_in_it(name):
    dialect = DIALECTS[name]
    call = dialect.write([ToolCall(name="f", arguments={"a": 1})])
    rules = grammar(dialect, "auto")
    for text in (f"<think>hm</think>{call}", f"\n<think>\nhm\n</think>\n\n{call}", f"<think>{call}</think>{call}"):
        assert accepts(rules, text), text
        said, found = read(dialect, text)
        assert (said, plain(found)) == ("", [("f", {"a": 1})])
    broken = of_another_tool(dialect, {"a": 1})
    assert accepts(rules, f"<think>{broken}</think>Hello")
    assert rules.guide().after(f"<think>hm</think>\n{broken}") is None
