"""A short valid ending is found for every prefix of an answer."""

from __future__ import annotations

import json
import random
import time
from typing import Annotated, Literal

import pytest
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field

from adafuse_core import Grammar
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.thoughts import THINK
from adafuse_core.chat.tools import Tools
from tests.oracle import OracleGrammar


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Place(Strict):
    street: str = Field(min_length=2, max_length=9)
    number: int = Field(ge=1, le=999)


class Tree(Strict):
    name: Literal["été", "été 2", "日本", 'q"']
    kids: list[Tree]
    next: Tree | None = None


class Order(Strict):
    note: str | None = None
    kind: Literal["a", "b", 3]
    price: float
    places: list[Place] = Field(min_length=1, max_length=3)
    flags: dict[str, bool]
    codes: Annotated[list[int | str], Len(2, 4)]
    tree: Tree | Place
    code: str = Field(pattern="^([A-Z]{2}-)+[0-9]{3}$")


MODELS = [Place, Tree, Order]


def tool(model):
    schema = model.model_json_schema()
    return {"type": "function", "function": {"name": model.__name__.lower(), "parameters": schema}}


def walks(grammar, count, longest, start=""):
    """Random prefixes of answers with their guides."""
    draw, oracle = random.Random(0), OracleGrammar(grammar.source())
    for _ in range(count):
        text = oracle.random_text(draw, len(start) + draw.randrange(longest), start)
        yield text, grammar.guide().after(text)


@pytest.mark.parametrize("model", MODELS)
def test_endings_of_every_prefix_of_json_are_valid(model):
    for text, guide in walks(Grammar.json_schema(model.model_json_schema()), 60, 200):
        assert guide.short_ending is not None, text
        model.model_validate_json(text + guide.short_ending)
        assert guide.after(guide.short_ending).may_end


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("choice", ["auto", "any", "order"])
def test_endings_of_every_prefix_of_calls_are_valid(name, choice):
    dialect = DIALECTS[name]
    tools = Tools.of_request([tool(model) for model in MODELS], choice, parallel=True)
    grammar = answer_grammar(tools, dialect)
    for text, guide in walks(grammar, 25, 300, start=dialect.trigger):
        assert guide.short_ending is not None, text
        assert guide.after(guide.short_ending).may_end


def test_the_ending_of_a_complete_answer_is_empty():
    assert Grammar.json_object().guide().after("{}").short_ending == ""
    assert Grammar.regex("a*").guide().short_ending == ""


SHORTEST = {
    "object": (Grammar.json_object(), "", "{}"),
    "in a key": (Grammar.json_object(), '{"a', '": ""}'),
    "in a number": (Grammar.json_object(), '{"a": -', "0}"),
    "in a literal": (Grammar.json_object(), '{"a": tr', "ue}"),
    "after an escape": (Grammar.json_object(), '{"a": "\\', '""}'),
    "in an escape": (Grammar.json_object(), '{"a": "\\u00', '00"}'),
    "deep": (Grammar.json_object(), '{"a": [[{"b": [1, 2', "]}]]}"),
    "optional keys": (Grammar.json_schema(Tree.model_json_schema()), '{"name": "日', '本", "kids": []}'),
    "choice of words": (Grammar.regex("(one|two|three){2,}end"), "one", "oneend"),
    "loop": (Grammar.regex("(ab)+c"), "abab", "c"),
    "class in a loop": (Grammar.regex("[a-z]*;"), "abc", ";"),
    "free text": (Grammar.regex("(?s:.*)END"), "some text", "END"),
    "free text with a mark": (Grammar.regex("Thought: .*\nAction: (go|stop)"), "Thought: hm", "\nAction: go"),
    "lark": (Grammar.lark('start: rest NAME\nrest[lazy]: /(?s:.*)/ "</done>"\nNAME: /[a-z]+/'), "hm </do", "</done>a"),
    "counted": (Grammar.regex("[0-9]{30}"), "123", "0" * 27),
    "thought": (THINK.after_thought(Grammar.json_object()), "hm </thi", "</think>{}"),
}


@pytest.mark.parametrize("name", SHORTEST)
def test_the_ending_is_the_shortest(name):
    grammar, text, closing = SHORTEST[name]
    assert len(grammar.guide().after(text).short_ending) == len(closing)
    assert grammar.guide().after(text + closing).may_end


LONG = {
    "string": {"type": "string", "minLength": 2500},
    "list": {"type": "array", "items": {"type": "integer"}, "minItems": 300},
    "list of objects": {"type": "array", "items": Place.model_json_schema(), "minItems": 60},
    "many keys": {
        "type": "object",
        "properties": {f"key {number}": {"type": "string"} for number in range(200)},
        "required": [f"key {number}" for number in range(200)],
    },
}


@pytest.mark.parametrize("name", LONG)
def test_long_endings_are_found(name):
    grammar = Grammar.json_schema(LONG[name])
    value = json.loads(grammar.guide().short_ending)
    assert len(value) == LONG[name].get("minLength", LONG[name].get("minItems", 200))


FAST = {
    "loop": Grammar.regex("((the|quick|brown|fox) ){2,}END"),
    "free text": Grammar.regex("(?s:.*)END"),
    "counted": Grammar.regex("[a-z]{2000}"),
    "counted loop": Grammar.regex("(ab|ba){99}"),
    "thought": THINK.after_thought(Grammar.json_schema(Order.model_json_schema())),
    "keys": Grammar.json_schema({"properties": {str(key): {"type": "string"} for key in range(50)}}),
}


@pytest.mark.parametrize("name", FAST)
def test_endings_are_found_fast(name):
    guide = FAST[name].guide()
    started = time.thread_time()  # unaffected by other processes
    assert guide.short_ending is not None
    assert time.thread_time() - started < 1  # usually milliseconds


def test_without_an_ending_the_result_is_none():
    assert Grammar.regex("(?s:.*)[E-F][N-O][D-E]").guide().short_ending is None
