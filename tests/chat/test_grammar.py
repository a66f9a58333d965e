"""Grammars: accepted texts, refused grammars, and guides of growing answers."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_core import ConfigError, Grammar
from adafuse_core.chat.thoughts import THINK
from adafuse_core.rounds import Span
from tests.oracle import OracleGrammar

INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def record(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


def accepts(grammar, text):
    """Whether a text is a complete answer."""
    guide = grammar.guide().after(text)
    return guide is not None and guide.may_end


def begins(grammar, text):
    """Whether a text is a prefix of an answer."""
    return grammar.guide().after(text) is not None


TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {"Node": record(value=INTEGER, children={"type": "array", "items": {"$ref": "#/$defs/Node"}})},
}
SCHEMAS = {
    "object": (
        {"type": "object", "properties": {"a": INTEGER, "b": STRING}, "required": ["a"]},
        ['{"a": 1}', '{"a": 1, "b": "x"}'],
        ["{}", '{"b": "x"}', '{"a": "1"}', '{"a": 1, "c": 2}', '{"a":1}', '{ "a": 1}', '{"a": 1}\n', '{"a": 1,}'],
    ),
    "nested": (
        record(a=record(b=record(c=NULL))),
        ['{"a": {"b": {"c": null}}}'],
        ['{"a": {"b": {}}}', '{"a": {"b": {"c": null}, "d": 1}}'],
    ),
    "array": (
        {"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 2},
        ["[1]", "[1, -2]"],
        ["[]", "[1, 2, 3]", "[1,2]", '["1"]'],
    ),
    "tuple": ({"type": "array", "prefixItems": [INTEGER, STRING], "items": False}, ['[1, "a"]'], ['[1, "a", 2]']),
    "enum": ({"enum": ["été", 'q"', 1, None]}, ['"été"', '"q\\""', "1", "null"], ['"ete"', "été", "2"]),
    "const": ({"const": {"a": [1, None, "日本"]}}, ['{"a": [1, null, "日本"]}'], ['{"a": [1]}', "{}"]),
    "number": ({"type": "number"}, ["1", "-1", "-0.5", "1e5", "2E-7", "0.10"], ["01", "1.", ".5", "+1", "NaN"]),
    "range": ({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, ["-3", "0", "11"], ["-4", "12", "1.0"]),
    "length": ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"日本語"'], ['"a"', '"abcd"']),
    "string": (STRING, ['""', '"é😀\u2028"', '"\\u0001\\n\\"\\\\"'], ['"\n"', '"\\x"', '"', '"\\ud83d"']),
    "pattern": ({"type": "string", "pattern": "^a[0-9]+$"}, ['"a1"', '"a22"'], ['"a"', '"b1"', '"a1 "']),
    "date": ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"today"']),
    "types": ({"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
    "union": ({"anyOf": [record(a=INTEGER), NULL]}, ['{"a": 1}', "null"], ['{"a": null}', '{"a": 1, "b": 2}']),
    "recursive": (TREE, ['{"value": 1, "children": [{"value": 2, "children": []}]}'], ['{"value": 1}']),
    "open": (record(a=INTEGER) | {"additionalProperties": STRING}, ['{"a": 1, "z": "x"}'], ['{"a": 1, "z": 1}']),
    "anything": ({}, ["1", '"a"', '{"a": [1, {"b": null}]}', "[]"], ["{a: 1}", "tru"]),
    "no object": ({"type": "object", "properties": {}}, ["{}"], ['{"a": 1}']),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_accepts_what_obeys_it_and_nothing_else(name):
    schema, right, wrong = SCHEMAS[name]
    grammar = Grammar.json_schema(schema)
    assert [text for text in right if not accepts(grammar, text)] == []
    assert [text for text in wrong if accepts(grammar, text)] == []


def test_json_is_written_as_json_dumps_writes_it():
    grammar = Grammar.json_schema(record(a={"type": "array", "items": INTEGER}, b=record(c=STRING)))
    value = {"a": [1, 2], "b": {"c": "x"}}
    assert accepts(grammar, json.dumps(value))
    assert not begins(grammar, json.dumps(value, indent=1))
    assert not begins(grammar, json.dumps(value, separators=(",", ":")))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=3))
@settings(deadline=None, max_examples=60)
def test_every_object_that_json_dumps_writes_is_a_json_object(value):
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # json.dumps does not escape this character
    assert accepts(Grammar.json_object(), text)


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null", "{", "{]", '{"a"}'])
def test_json_object_refuses_other_values(text):
    assert not accepts(Grammar.json_object(), text)


COMBINED = {
    "allOf": {"allOf": [record(a=INTEGER), record(b=INTEGER)]},
    "allOf with a definition": {
        "$defs": {"Base": record(a=INTEGER)},
        "allOf": [{"$ref": "#/$defs/Base"}, record(b=INTEGER)],
    },
    "properties beside anyOf": record(a=INTEGER) | {"anyOf": [record(b=INTEGER), record(c=INTEGER)]},
    "deep inside": record(x={"type": "array", "items": {"allOf": [record(a=INTEGER), record(b=INTEGER)]}}),
}


@pytest.mark.parametrize("name", COMBINED)
def test_parts_that_describe_one_object_allow_each_others_properties(name):
    text = '{"a": 1, "b": 2}'
    grammar = Grammar.json_schema(COMBINED[name])
    assert accepts(grammar, '{"x": [' + text + "]}" if name == "deep inside" else text)
    assert not accepts(grammar, '{"a": 1}')


def test_a_reference_beside_a_description_closes_its_object():
    schema = record(x={"$ref": "#/$defs/Base", "description": "d"}) | {"$defs": {"Base": record(a=INTEGER)}}
    assert accepts(Grammar.json_schema(schema), '{"x": {"a": 1}}')
    assert not begins(Grammar.json_schema(schema), '{"x": {"a": 1, ')


@pytest.mark.parametrize("name", ["properties", "enum", "items", "anyOf", "additionalProperties", "$defs"])
def test_a_property_may_be_called_like_a_keyword(name):
    grammar = Grammar.json_schema(record(**{name: record(a=INTEGER), "z": NULL}))
    assert accepts(grammar, json.dumps({name: {"a": 1}, "z": None}))
    assert not begins(grammar, json.dumps({name: {"a": 1}})[:-2] + ", ")
    assert not begins(grammar, json.dumps({name: {"a": 1}})[:-1] + ', "additionalProperties')


def test_values_that_look_like_schemas_are_unchanged():
    value = {"properties": {"a": 1}}
    grammar = Grammar.json_schema({"enum": [value]})
    assert accepts(grammar, json.dumps(value))


def test_a_schema_is_not_changed():
    schema = record(a=record(b=INTEGER))
    before = json.dumps(schema)
    Grammar.json_schema(schema)
    assert json.dumps(schema) == before


UNENFORCED = {"type": "array", "items": INTEGER, "uniqueItems": True}


def test_a_keyword_that_can_not_be_enforced_is_refused():
    with pytest.raises(ConfigError, match="uniqueItems") as caught:
        Grammar.json_schema(UNENFORCED)
    assert caught.value.hint


def test_a_lenient_grammar_drops_the_keyword_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        grammar = Grammar.json_schema(UNENFORCED, lenient=True)
    assert "uniqueItems" in caplog.text
    assert accepts(grammar, "[1, 1]")
    assert not begins(grammar, '["')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "strin"),
        (record(a=False), "nsatisfiable"),
        ({"$ref": "#/$defs/Missing"}, "Missing"),
        ({"enum": [object()]}, "not plain JSON"),
        ({"enum": [float("nan")]}, "can't be enforced"),
        (True, "got True as JSON schema"),
        ("{}", "got '{}' as JSON schema"),
        (None, "got None as JSON schema"),
    ],
)
def test_other_values_as_schemas_are_refused(schema, message):
    with pytest.raises(ConfigError, match=message):
        Grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("a+b?", ["a", "aab"], ["", "b", "ab ", "abb"]),
        ("a/b", ["a/b"], ["a\\/b"]),
        (r"a\/b", ["a/b"], ["a\\/b"]),
        (r"\\/", ["\\/"], ["/"]),
        ("[/]", ["/"], [""]),
        ("a\nb", ["a\nb"], ["anb", "a\\nb"]),
        ("a\\\nb", ["a\nb"], ["a\\nb"]),
        (r"a\nb", ["a\nb"], ["anb"]),
        ('"[^"]*"', ['"x"'], ["x"]),
        ("^a$", ["a"], ["aa"]),
        ("(?i)yes|no", ["YES", "No"], ["maybe"]),
        (r"\p{Greek}+", ["αβγ"], ["abc"]),
        (".", ["日", "😀"], ["\n", "ab"]),
        ("(?s).", ["\n"], [""]),
        ("", [""], ["a"]),
        ("a{3}", ["aaa"], ["aa"]),
        (r"#\d+ @x %y", ["#1 @x %y"], ["#1"]),
    ],
)
def test_a_regular_expression_matches_the_whole_answer(pattern, right, wrong):
    grammar = Grammar.regex(pattern)
    assert [text for text in right if not accepts(grammar, text)] == []
    assert [text for text in wrong if accepts(grammar, text)] == []


@pytest.mark.parametrize("pattern", ["(a", "a(?=b)", r"(a)\1", "[z-a]"])
def test_a_pattern_that_can_not_be_used_is_refused_with_its_reason(pattern):
    with pytest.raises(ConfigError, match="regular expression can't be enforced") as caught:
        Grammar.regex(pattern)
    assert "Rust" in caught.value.hint


@pytest.mark.parametrize("make", [Grammar.regex, Grammar.lark])
def test_other_values_as_text_are_refused(make):
    with pytest.raises(ConfigError, match=r"got .*=3, expected a string"):
        make(3)


def test_lark_rules_may_be_recursive():
    grammar = Grammar.lark('start: "(" start ")" | NAME\nNAME: /[a-z]+/')
    assert accepts(grammar, "((abc))")
    assert not accepts(grammar, "((abc)")
    assert not begins(grammar, "(a))")


@pytest.mark.parametrize("rules", ["start: missing", 'top: "a"', 'start: "a', "", "start: /(/"])
def test_rules_that_can_not_be_used_are_refused_with_their_reason(rules):
    with pytest.raises(ConfigError, match=r"the grammar can't be enforced: ."):
        Grammar.lark(rules)


def test_a_grammar_can_be_copied_and_pickled_also_after_its_use():
    grammar = THINK.after_thought(Grammar.json_schema(record(a=INTEGER)))
    assert accepts(grammar, '</think>{"a": 1}')
    for other in (copy.copy(grammar), copy.deepcopy(grammar), pickle.loads(pickle.dumps(grammar))):
        assert other == grammar
        assert accepts(other, '</think>{"a": 1}')


def test_equal_grammars_are_one_key():
    first, second = (Grammar.json_schema(record(a=INTEGER)) for _ in range(2))
    assert len({first, second, Grammar.regex("a")}) == 2


def test_a_lead_goes_before_the_answer():
    led = OracleGrammar(Grammar.regex("a+").source(lead=' "x'))
    assert led.after(b' "xaa').is_accepting()
    assert led.after(b"aa") is None


def test_forced_text_is_known():
    guide = Grammar.json_schema(record(name=STRING, n={"enum": [10, 12]})).guide()
    assert guide.forced == Span(text='{"name": "')
    guide = guide.after('{"name": "')
    assert guide.forced is None
    guide = guide.after('x"')
    assert guide.forced == Span(text=', "n": 1')
    guide = guide.after(', "n": 10')
    assert guide.forced == Span(text="}", ends=True)
    assert guide.after("}").forced == Span(text="", ends=True)


def test_no_text_is_forced_where_an_answer_may_end_or_continue():
    guide = Grammar.regex("a(bc)?").guide()
    assert guide.forced == Span(text="a")
    assert guide.after("a").forced is None
    assert guide.after("a").may_end


def test_incomplete_characters_are_not_forced():
    guide = Grammar.json_schema({"enum": ["été", "êta"]}).guide()
    assert guide.forced == Span(text='"')
    assert guide.after('"').forced is None
    assert guide.after('"é').forced == Span(text='té"', ends=True)


def test_a_guide_is_never_changed():
    guide = Grammar.json_object().guide()
    for text in ('{"a": 1', "{}", "x", '{"é'):
        guide.after(text)
        assert not guide.may_end
        assert guide.forced == Span(text="{")
        assert guide.short_ending == "{}"


@given(st.text(alphabet='{}[]",: 0123456789eabé😀\\ntrufls-.', max_size=12), st.data())
@settings(deadline=None, max_examples=60)
def test_the_guide_after_pieces_is_the_guide_after_the_whole_text(text, data):
    cut = data.draw(st.integers(0, len(text)))
    guide = Grammar.json_schema({}).guide()
    whole, first = guide.after(text), guide.after(text[:cut])
    pieces = first and first.after(text[cut:])
    assert (whole is None) == (pieces is None)
    if whole is not None:
        assert (whole.may_end, whole.forced) == (pieces.may_end, pieces.forced)


def test_an_answer_may_follow_a_thought():
    grammar = THINK.after_thought(Grammar.json_schema(record(a=INTEGER)))
    answer = '{"a": 1}'
    assert accepts(grammar, f"hm {{ hm\n</think>\n\n{answer}")
    assert accepts(grammar, f"</think>{answer}")
    assert not accepts(grammar, answer)
    assert not accepts(grammar, f"hm</think>{answer} hm</think>{answer}")
    assert not begins(grammar, "</think>hm")


@pytest.mark.parametrize("rules", ['start: "a" <|im_end|>', "start: <eos>", "start: /a/ <[5]>"])
def test_special_tokens_are_refused(rules):
    with pytest.raises(ConfigError, match="special token"):
        Grammar.lark(rules)


def test_angle_brackets_in_texts_patterns_and_comments_are_text():
    Grammar.lark('start: "<eos>" /<b>|\\/<i>/ // no <eos>\n')


@pytest.mark.parametrize("make", [Grammar.regex, lambda text: Grammar.json_schema({"const": text})])
def test_text_that_no_member_can_write_is_refused(make):
    with pytest.raises(ConfigError, match="not valid Unicode"):
        make("a\ud800")


def test_deeply_nested_schemas_are_refused():
    schema = {"type": "string"}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ConfigError, match="nested too deeply"):
        Grammar.json_schema(schema)
