"""Keywords that can't be enforced are relaxed and logged, or raise an error that names them."""

from __future__ import annotations

import json
import logging
import re
from urllib.parse import unquote

import pytest

from adafuse_core import ConfigError, Ensemble, Grammar, ScriptedMember
from adafuse_core.chat import schema_engine
from adafuse_core.chat.dialects.base import JSON
from adafuse_core.chat.tools import Tools
from tests.chat.random_schemas import Generator

COUNT = 500
ASK = [{"role": "user", "content": "hi"}]


def accepts(grammar, text):
    guide = grammar.guide().after(text)
    return guide is not None and guide.may_end


def tool(name, parameters, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def record(required=True, **properties):
    return {"type": "object", "properties": properties, **({"required": list(properties)} if required else {})}


def named(messages):
    """Tool and path of each log message."""
    found = [re.match(r"tool '(\w+)': (#[^ ]*) can't be enforced: \S", message) for message in messages]
    assert None not in found, messages
    return [(match[1], match[2]) for match in found]


def stands(schema, path):
    """Whether a JSON pointer exists in a schema."""
    part = schema
    for step in path.split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        part = part.get(key) if isinstance(part, dict) else part[int(key)]
    return part is not None


@pytest.mark.parametrize("part", range(5))
def test_no_random_schema_is_refused_and_relaxed_keywords_are_logged(part, caplog):
    """Strict schemas are refused with the first path that the log of lenient ones contains. Five hundred schemas."""
    loosened = 0
    generator = Generator(part)
    for index in range(COUNT // 5):
        schema, name = generator.parameters(), f"tool_{index}"
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            (grammar,) = Tools.of_request([tool(name, schema)], "auto", parallel=True).arguments(JSON)
        places = named(record.getMessage() for record in caplog.records)
        assert {place[0] for place in places} <= {name}
        assert all(stands(schema, place[1]) for place in places), (schema, places)
        ending = grammar.guide().short_ending
        assert ending is not None, schema
        json.loads(ending)
        loosened += bool(places)
        strict = [tool(name, schema, strict=True)]
        if not places:
            Tools.of_request(strict, "auto", parallel=True)
            continue
        with pytest.raises(ConfigError) as caught:
            Tools.of_request(strict, "auto", parallel=True)
        assert named([caught.value.message]) == places[:1]
    assert COUNT // 5 > loosened > COUNT // 25


LOOSENED = {
    "look-ahead": (
        {"type": "string", "pattern": r"^(?!\.)[a-z.]+@[a-z.]+$"},
        "pattern",
        ['"a@b"', '".@b"'],
        ['"a"', "1"],
    ),
    "look-behind in a class of its own": ({"pattern": r"^(?<!x)[(?!]+$"}, "pattern", ['"(("'], ['"a"']),
    "smallest integer": ({"type": "integer", "minimum": -(2**63), "maximum": 5}, "minimum", ["-7", "5"], ["6", '""']),
    "large integers": ({"enum": [2**60 + 1, "a"]}, "enum", ['"a"'], []),
    "contradicting bounds": ({"type": "integer", "minimum": 5, "maximum": 3}, "maximum", ["5"], ["4"]),
    "contradicting lengths": ({"type": "string", "minLength": 4, "maxLength": 3}, "maxLength", ['"abcd"'], ['"abc"']),
    "too long": ({"type": "array", "items": {"type": "null"}, "minItems": 10**7}, "minItems", ["[]"], ["[1]"]),
    "unknown format": ({"type": "string", "format": "colour", "maxLength": 3}, "format", ['"abc"'], ['"abcd"']),
    "format beside a pattern": (
        {"type": "string", "format": "date", "pattern": "^[a-z]$"},
        "format",
        ['"a"'],
        ['"ab"', '"2020-01-01"'],
    ),
    "two of them": ({"type": "array", "uniqueItems": True, "maxItems": 1}, "uniqueItems", ["[1]"], ["[1, 2]"]),
    "one of several": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf", ["1", "1.5"], ['"a"']),
    "keys of one kind": (
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
        "minProperties",
        ['{"a": 1, "b": 2}', "{}"],
        ['{"a": "1"}'],
    ),
    "keys by pattern": (
        {"type": "object", "patternProperties": {"^[0-9]$": {}}, "additionalProperties": False, "minProperties": 3},
        "minProperties",
        ['{"1": 1}'],
        ['{"a": 1}'],
    ),
    "JSON in a string": (
        {"type": "string", "contentMediaType": "application/json"},
        "contentMediaType",
        ['"x"'],
        ["1"],
    ),
    "old keyword": ({"type": "integer", "divisibleBy": 2}, "divisibleBy", ["3"], ['"a"']),
    "no such type": ({"type": "text", "maxLength": 2}, "type", ['"ab"'], ['"abc"']),
    "one part of allOf": (
        {"allOf": [{"type": "string"}, {"maxLength": 2}, {"type": "integer"}]},
        "allOf",
        ['"ab"'],
        ['"abc"', "1"],
    ),
}


@pytest.mark.parametrize("name", LOOSENED)
@pytest.mark.parametrize("optional", [False, True])
def test_only_the_failing_keyword_is_dropped(name, optional, caplog):
    part, keyword, right, wrong = LOOSENED[name]
    schema = record(required=not optional, deep=record(x=part), other={"type": "boolean"})
    with caplog.at_level(logging.WARNING):
        grammar = Grammar.json_schema(schema, lenient=True, name="tool 't'")
    path = f"#/properties/deep/properties/x/{keyword}"
    assert named(record.getMessage() for record in caplog.records) == [("t", path)]
    filled = '{{"deep": {{"x": {}}}, "other": true}}'.format
    assert [text for text in right if not accepts(grammar, filled(text))] == []
    assert [text for text in wrong if accepts(grammar, filled(text))] == []
    assert not accepts(grammar, filled(right[0]).replace("true", "1"))
    with pytest.raises(ConfigError, match=f"^tool 't': {re.escape(path)} can't be enforced"):
        Grammar.json_schema(schema, name="tool 't'")


ENFORCED = {
    "properties counted without repetition": {**record(required=False, a={}, b={}), "minProperties": 1},
    "one more than those required": {**record(a={}), "additionalProperties": {"type": "null"}, "minProperties": 2},
    "keys from a list": {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {}},
    "nothing asked": {"type": "array", "uniqueItems": False, "not": False, "dependentRequired": {}},
    "largest integer": {"type": "integer", "maximum": 2**63 - 1},
    "a decimal number as pydantic writes it": {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
    "notes that are no JSON": {"type": "number", "default": float("nan"), "examples": [float("inf")]},
    "required without being described": {"type": "object", "properties": {"a": {}}, "required": ["b"]},
    "tagged union": {
        "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "$defs": {"A": record(kind={"const": "a"}, x={}), "B": record(kind={"const": "b"})},
    },
    "any string": {"type": "string", "format": "password"},
    "formats side by side": record(
        **{name: {"type": "string", "format": name} for name in ("email", "uri", "date-time", "uuid", "ipv4")},
        other={"type": "string", "format": "email"},
    ),
    "list of addresses": {"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 3},
    "patterns side by side": record(
        name={"type": "string", "minLength": 1, "maxLength": 100},
        mail={"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[^@\s]+$"},
        phone={"type": "string", "pattern": r"^\+?[1-9]\d{1,14}$"},
        bank={"type": "string", "pattern": r"^[A-Z]{2}\d{2}[A-Z0-9]{11,30}$"},
        words={"type": "string", "pattern": r"^\w+ \w+ \w+$"},
    ),
}


@pytest.mark.parametrize("name", ENFORCED)
def test_enforceable_keywords_are_enforced(name, caplog):
    grammar = Grammar.json_schema(ENFORCED[name])
    assert grammar.guide().short_ending is not None
    assert caplog.records == []


def test_a_decimal_number_has_a_digit():
    grammar = Grammar.json_schema(ENFORCED["a decimal number as pydantic writes it"])
    assert all(accepts(grammar, text) for text in ('"1"', '"-0.5"', '".5"', '"+10."'))
    assert not any(accepts(grammar, text) for text in ('""', '"-"', '"."', '"a"'))


def test_keys_obey_the_names_that_a_schema_gives():
    grammar = Grammar.json_schema(ENFORCED["keys from a list"])
    assert accepts(grammar, '{"b": 1}')
    assert not accepts(grammar, '{"c": 1}')
    days = Grammar.json_schema({"type": "object", "propertyNames": {"format": "date"}})
    assert accepts(days, '{"2024-02-29": 1}')
    assert not accepts(days, '{"2023-02-29": 1}')


def test_an_error_in_a_definition_is_logged_once_and_the_recursion_stays(caplog):
    node = record(
        value={"type": "string", "pattern": "^(?=a)[a-c]+$"}, kids={"type": "array", "items": {"$ref": "#/$defs/N"}}
    )
    grammar = Grammar.json_schema({"$ref": "#/$defs/N", "$defs": {"N": node}}, lenient=True, name="tool 't'")
    assert named(record.getMessage() for record in caplog.records) == [("t", "#/$defs/N/properties/value/pattern")]
    inner = '{"value": "abc", "kids": []}'
    assert accepts(grammar, f'{{"value": "c", "kids": [{inner}, {inner}]}}')
    assert not accepts(grammar, f'{{"value": "c", "kids": [{inner}, "oops"]}}')
    assert not accepts(grammar, inner.replace("abc", "xyz"))


def test_an_infinite_recursion_is_relaxed_at_its_reference(caplog):
    schema = {"$ref": "#/$defs/N", "$defs": {"N": record(a={"type": "integer"}, next={"$ref": "#/$defs/N"})}}
    grammar = Grammar.json_schema(schema, lenient=True, name="tool 't'")
    assert named(record.getMessage() for record in caplog.records) == [("t", "#/$defs/N/properties/next/$ref")]
    assert not accepts(grammar, '{"a": "x", "next": 1}')


def test_an_optional_part_that_can_never_end_is_relaxed_too(caplog):
    schema = record(required=False, a={"$ref": "#/$defs/N"}) | {"$defs": {"N": {"$ref": "#/$defs/N"}}}
    grammar = Grammar.json_schema(schema, lenient=True, name="tool 't'")
    assert named(record.getMessage() for record in caplog.records) == [("t", "#/$defs/N/$ref")]
    assert grammar.guide().after('{"a": ').short_ending is not None


def test_a_schema_with_an_id_is_supported():
    schema = record(a={"$ref": "https://example.com/s.json#/$defs/A"}) | {
        "$id": "https://example.com/s.json",
        "$defs": {"A": {"type": "null"}},
    }
    assert accepts(Grammar.json_schema(schema), '{"a": null}')


def test_other_tools_of_a_request_are_not_touched(caplog):
    tools = [tool("bad", record(a={"pattern": "(?!a)b"})), tool("good", record(a={"type": "integer"}))]
    call = '<tool_call>\n{"name": "good", "arguments": {"a": 1}}\n</tool_call>'
    answer = Ensemble(members=[ScriptedMember("m", call)]).generate(ASK, tools=tools)
    assert [(made.name, made.arguments) for made in answer.tool_calls] == [("good", {"a": 1})]
    assert "tool 'bad': #/properties/a/pattern" in caplog.text
    assert "'good'" not in caplog.text
    tools[0]["function"]["strict"] = True
    with pytest.raises(ConfigError, match="tool 'bad': #/properties/a/pattern"):
        Ensemble(members=[ScriptedMember("m", "hi")]).generate(ASK, tools=tools)


def test_schemas_are_compiled_once_whatever_tool_has_them():
    parameters = record(a={"type": "integer", "minimum": -1234}, b={"type": "string", "pattern": "^compiled-once$"})
    ensemble = Ensemble(members=[ScriptedMember("m", "hi")])
    ensemble.generate(ASK, tools=[tool("first", parameters)])
    compiled = schema_engine.engine_error.cache_info().misses
    for names in (["first"], ["second", "third"]):
        ensemble.generate(ASK, tools=[tool(name, parameters) for name in names])
    assert schema_engine.engine_error.cache_info().misses == compiled
