"""Schemas of tools and answers: every form is supported, and nested levels are enforced."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal, NotRequired, Required, Union

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.tools import StructuredTool, tool
from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from adafuse_core import ConfigError, Ensemble, ScriptedMember
from adafuse_core.chat.dialects.base import JSON
from adafuse_core.chat.tools import Tools
from adafuse_integrations.langchain import ChatAdaFuse
from adafuse_integrations.langchain.schemas import function_tool


class Node(BaseModel):
    """A node of a tree."""

    value: int
    children: list[Node] = []


class OldNode(BaseModelV1):
    """A node of a tree."""

    value: int
    children: list[OldNode] = []


OldNode.update_forward_refs()


class DictNode(TypedDict):
    """A node of a tree."""

    value: Annotated[int, ..., "what it holds"]
    children: list[DictNode]


@dataclass
class DataNode:
    """A node of a tree."""

    value: int
    children: list[DataNode]


class Cat(BaseModel):
    lives: int


class Dog(BaseModel):
    born: date


def plant(value: int, children: list[Node]) -> str:
    """Plant a tree.

    Args:
        value: what it holds
        children: its branches
    """
    return f"{value} {children}"


NODE = {
    "type": "object",
    "title": "plant",
    "$defs": {
        "N": Node.model_json_schema()["$defs"]["Node"]
        | {"properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/N"}}}}
    },
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/N"}}},
    "required": ["value"],
}
ROOT = {"title": "plant", "$ref": "#/$defs/N", "$defs": NODE["$defs"]}
TOOLS = {
    "pydantic": Node,
    "pydantic's first version": OldNode,
    "typed dict": DictNode,
    "dataclass": DataNode,
    "function": plant,
    "tool": tool(plant),
    "tool with a schema as a server gives it": StructuredTool(
        name="plant", description="Plant a tree.", args_schema={**NODE}, func=lambda **_: "ok"
    ),
    "JSON schema": NODE,
    "OpenAI's": {"type": "function", "function": {"name": "plant", "parameters": NODE}},
    "Anthropic's": {"name": "plant", "input_schema": NODE},
}
DEEP = {"value": 1, "children": [{"value": 2, "children": [{"value": 3, "children": []}]}]}
WRONG = [
    {"value": 1, "children": ["oops"]},
    {"value": 1, "children": [{"value": 2, "children": ["oops"]}]},
    {"value": 1, "children": [{"value": "2", "children": []}]},
]


def accepts(grammar, value):
    guide = grammar.guide().after(json.dumps(value))
    return guide is not None and guide.may_end


def scripted(reply):
    return ChatAdaFuse(ensemble=Ensemble(members=[ScriptedMember("m", reply)]))


def call_of(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


@pytest.mark.parametrize("form", TOOLS)
@pytest.mark.parametrize("strict", [None, True])
def test_the_schema_of_a_recursive_tool_is_enforced_at_every_level(form, strict):
    (made,) = ChatAdaFuse().bind_tools([TOOLS[form]], strict=strict).kwargs["tools"]
    (grammar,) = Tools.of_request([made], "auto", parallel=True).arguments(JSON)
    assert accepts(grammar, DEEP)
    assert [value for value in WRONG if accepts(grammar, value)] == []
    assert accepts(grammar, {"value": 1, "children": [{"value": 2}]}) is (
        strict is None and form not in ("typed dict", "dataclass")
    )


class Leaf(TypedDict):
    """A leaf."""

    value: Annotated[int, ..., "what it holds"]
    size: Annotated[float, 1.5, "how large it is"]


@pytest.mark.parametrize("form", [Leaf, plant, tool(parse_docstring=True)(plant)])
def test_descriptions_of_arguments_are_shown(form):
    parameters = function_tool(form)["function"]["parameters"]
    assert parameters["properties"]["value"]["description"] == "what it holds"
    assert ("size" in parameters["required"]) is False


@pytest.mark.parametrize("form", TOOLS)
def test_name_and_description_are_kept(form):
    function = function_tool(TOOLS[form])["function"]
    assert function["name"] in ("plant", "Node", "OldNode", "DictNode", "DataNode")
    assert function["description"] or form in ("JSON schema", "OpenAI's", "Anthropic's")
    assert "title" not in function["parameters"] or form in ("OpenAI's", "Anthropic's")


@pytest.mark.parametrize("schema", [Node, OldNode, DictNode, DataNode, NODE, ROOT])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_the_schema_of_a_recursive_answer_is_enforced_at_every_level(schema, method):
    name = schema["title"] if isinstance(schema, dict) else schema.__name__
    chain = scripted(call_of(name, DEEP) if method == "function_calling" else json.dumps(DEEP))
    answer = chain.with_structured_output(schema, method=method).invoke("go")
    child = answer["children"][0] if isinstance(answer, dict) else answer.children[0]
    assert type(child) is (dict if isinstance(answer, dict) else schema)
    for wrong in WRONG:
        llm = scripted(call_of(name, wrong) if method == "function_calling" else json.dumps(wrong))
        with pytest.raises(Exception, match="grammar does not allow"):
            llm.with_structured_output(schema, method=method).invoke("go")


VALUES = {
    "union": (Cat | Dog, {"born": "2024-02-29"}, Dog(born=date(2024, 2, 29))),
    "typing's union": (Union[Cat, Dog], {"lives": 7}, Cat(lives=7)),  # noqa: UP007
    "list": (list[Cat], [{"lives": 1}, {"lives": 9}], [Cat(lives=1), Cat(lives=9)]),
    "literal": (Literal["yes", "no"], "no", "no"),
    "annotated": (Annotated[int, Field(ge=3, le=5)], 4, 4),
    "keys": (dict[int, date], {"3": "2024-01-31"}, {3: date(2024, 1, 31)}),
    "optional date": (date | None, "2024-01-31", date(2024, 1, 31)),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_an_answer_is_a_value_of_any_type(name, method):
    kind, written, value = VALUES[name]
    wrapped = written if name == "dataclass" else {"value": written}
    reply = call_of("answer", wrapped) if method == "function_calling" else json.dumps(written)
    chain = scripted(reply).with_structured_output(kind, method=method)
    assert [chain.invoke("go"), await chain.ainvoke("go"), list(chain.stream("go"))[-1]] == [value] * 3
    raw = scripted(reply).with_structured_output(kind, method=method, include_raw=True).invoke("go")
    assert (raw["parsed"], raw["parsing_error"]) == (value, None)


def test_an_incomplete_answer_is_an_error_for_every_type():
    with pytest.raises(OutputParserException, match="can't read the answer"):
        scripted('[{"lives": 1}]').with_structured_output(list[Cat], stop=["1"]).invoke("go")


def test_a_type_without_a_json_schema_is_refused():
    class Nothing:
        pass

    with pytest.raises(ConfigError, match="it has no JSON schema"):
        ChatAdaFuse().with_structured_output(Nothing)


class Exact(BaseModel):
    """A strict class, which can only be validated from JSON text: JSON values have no dates and sets."""

    model_config = ConfigDict(strict=True)

    day: date
    pair: tuple[int, int]


def test_strict_classes_are_read_from_json():
    reply = '{"day": "2024-01-31", "pair": [1, 2]}'
    assert scripted(reply).with_structured_output(Exact).invoke("go") == Exact(day=date(2024, 1, 31), pair=(1, 2))


@pytest.mark.parametrize("tokens", [36, 40, 80])
def test_answers_validate_with_every_token_budget(tokens):
    class Booking(BaseModel):
        note: str
        day: date
        kind: Literal["single", "double"]

    booked = ChatAdaFuse(max_tokens=tokens).with_structured_output(Booking).invoke("Hello!")
    assert isinstance(booked, Booking)


def test_the_log_names_tool_and_path_of_what_can_not_be_enforced(caplog):
    class Mail(BaseModel):
        to: Annotated[str, Field(json_schema_extra={"pattern": r"^(?!\.)[a-z.]+@[a-z.]+$"})]

    scripted("hi").bind_tools([Mail, plant]).invoke("go")
    assert "tool 'Mail': #/properties/to/pattern can't be enforced" in caplog.text
    with pytest.raises(ConfigError, match="tool 'Mail': #/properties/to/pattern"):
        scripted("hi").bind_tools([Mail, plant], strict=True).invoke("go")


class Filter(TypedDict, total=False):
    """What to look for.

    Args:
        near: a dog that lives there
    """

    name: Required[Annotated[str, ..., "whole or in part"]]
    age: NotRequired[int]
    near: Dog


def test_a_typed_dict_may_hold_any_types_and_optional_fields():
    function = function_tool(Filter)["function"]
    assert (function["description"], function["parameters"]["required"]) == ("What to look for.", ["name"])
    properties = function["parameters"]["properties"]
    assert (properties["name"]["description"], properties["near"]["description"]) == (
        "whole or in part",
        "a dog that lives there",
    )
    for reply in ({"name": "Rex"}, {"name": "Rex", "age": 3, "near": {"born": "2024-01-31"}}):
        chain = scripted(call_of("Filter", reply)).with_structured_output(Filter, method="function_calling")
        assert chain.invoke("go") == reply


class Numbers(RootModel[list[int]]):
    """Some numbers."""


@dataclass
class Single:
    value: int


NUMBERS = {"type": "array", "items": {"type": "integer"}}
WRAPPED = {
    "root model": (Numbers, "Numbers", {"value": [1, 2]}, Numbers([1, 2])),
    "schema of a list": ({"title": "numbers", **NUMBERS}, "numbers", {"value": [1, 2]}, [1, 2]),
    "schema without a title": (NUMBERS, "answer", {"value": [1, 2]}, [1, 2]),
    "schema of a union": ({"title": "it", "anyOf": [{"type": "null"}, NUMBERS]}, "it", {"value": None}, None),
    "object without a title": ({"type": "object", "properties": {"a": {}}}, "answer", {"a": 1}, {"a": 1}),
    "class that contains itself": (Node.model_json_schema(), "Node", DEEP, DEEP),
    "field called value": (Single, "Single", {"value": 3}, Single(3)),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("strict", [None, True])
def test_a_call_stands_for_a_value_of_any_schema(name, strict):
    schema, tool_name, arguments, value = WRAPPED[name]
    chain = scripted(call_of(tool_name, arguments)).with_structured_output(
        schema, method="function_calling", strict=strict
    )
    assert chain.invoke("go") == value


@pytest.mark.parametrize("form", ["OpenAI's responses", "no parameters", "no title"])
@pytest.mark.parametrize("strict", [None, True])
def test_a_tool_may_have_any_form_of_a_dict(form, strict):
    tool, name = {
        "OpenAI's responses": ({"type": "function", "name": "plant", "parameters": NODE}, "plant"),
        "no parameters": ({"name": "plant", "description": "Plant."}, "plant"),
        "no title": (Node.model_json_schema(), "Node"),
    }[form]
    function = function_tool(tool, strict=strict)["function"]
    assert function["name"] == name
    assert ("children" in function["parameters"]["properties"]) == (form != "no parameters")


def test_a_tool_that_a_provider_runs_is_refused():
    for given in ({"type": "web_search_20250305", "name": "web_search"}, {"type": "web_search_preview"}):
        with pytest.raises(ConfigError, match="web_search"):
            scripted("hi").bind_tools([given])
