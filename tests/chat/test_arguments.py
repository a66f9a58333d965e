"""A dialect with its own syntax of arguments: a grammar, a writer and a parser."""

from __future__ import annotations

import json

import pytest

from adafuse_core import Ensemble, Grammar, InvalidToolCall, MemberConfig, ScriptedMember, ToolCall
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.dialects.base import Arguments, Dialect
from adafuse_core.chat.tools import Tools
from adafuse_core.errors import MemberError
from adafuse_core.events import ToolCallDelta

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
VALUES = {"string": "/[^;)]*/", "integer": "/-?[0-9]+/"}


def pairs_grammar(schema, *, lenient, name):
    """All properties in order, such as `city=Paris; days=3`."""
    pairs = (f'"{name}=" {VALUES[value["type"]]}' for name, value in schema["properties"].items())
    return Grammar.lark("start: " + ' "; " '.join(pairs))


def write_pairs(arguments):
    return "; ".join(f"{name}={value}" for name, value in arguments.items())


def read_pairs(text):
    written, complete, _ = text.partition(")")
    if not complete:
        return None, len(text), ""
    pairs = (pair.split("=", 1) for pair in written.split("; ") if pair)
    value = {name: int(word) if word.lstrip("-").isdigit() else word for name, word in pairs}
    return value, len(written), json.dumps(value)


PAIRS = Arguments(example="PARAMETER=VALUE", grammar=pairs_grammar, write=write_pairs, read=read_pairs)
SHELL = Dialect(
    name="shell",
    trigger="$ ",
    begin="$ ",
    middle="(",
    end=")",
    between="\n",
    after_text=True,
    arguments=PAIRS,
    marks=("$ NAME(",),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}},
        },
    }
    for name, properties in (("weather", {"city": "string", "days": "integer"}), ("now", {}))
]
CALLS = [ToolCall(name="weather", arguments={"city": "Paris é", "days": 3}), ToolCall(name="now")]


@pytest.fixture
def shell(monkeypatch):
    """Adds the dialect to the table."""
    monkeypatch.setitem(DIALECTS, "shell", SHELL)
    return SHELL


def accepts(grammar, text):
    guide = grammar.guide().after(text)
    return guide is not None and guide.may_end


@pytest.mark.parametrize("choice", ["auto", "any"])
@pytest.mark.parametrize("answer", [None, Grammar.json_object()], ids=["text", "JSON"])
def test_the_grammar_of_a_dialects_own_arguments_is_that_of_its_calls(choice, answer):
    grammar = answer_grammar(Tools.of_request(TOOLS, choice, parallel=True), SHELL, answer)
    assert accepts(grammar, "$ weather(city=Paris é; days=3)\n$ now()")
    assert accepts(grammar, SHELL.write(CALLS))
    for wrong in ("$ weather(city=Paris; days=x)", '$ weather({"city": "Paris"})', "$ now(a=1)", "$ weather(days=3)"):
        assert not accepts(grammar, wrong)


def test_calls_in_a_dialects_own_syntax_are_read_and_shown_as_json(shell):
    members = [ScriptedMember(name, "I look.\n" + SHELL.write(CALLS), dialect="shell") for name in "ab"]
    events = list(Ensemble(members=members).stream(ASK, tools=TOOLS))
    answer = Ensemble(members=members).generate(ASK, tools=TOOLS)
    assert (answer.text, answer.reason) == ("I look.", "tool_calls")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [(c.name, c.arguments) for c in CALLS]
    for index, call in enumerate(CALLS):
        deltas = [event for event in events if isinstance(event, ToolCallDelta) and event.index == index]
        assert json.loads("".join(delta.arguments for delta in deltas)) == call.arguments


def test_an_answer_that_ends_inside_such_arguments_has_an_invalid_call_with_their_text(shell):
    member = ScriptedMember(reply=SHELL.write(CALLS), dialect="shell", fail_after=2)
    with pytest.raises(MemberError) as caught:
        Ensemble(members=[member], strategy="adafuse", max_words=1).generate(ASK, tools=TOOLS)
    (invalid,) = caught.value.partial.invalid_tool_calls
    assert isinstance(invalid, InvalidToolCall)
    assert (invalid.name, invalid.arguments) == ("weather", "city=Paris")


def test_a_script_that_breaks_the_syntax_is_refused(shell):
    ensemble = Ensemble(members=[ScriptedMember(reply="$ weather(days=3)", dialect="shell")])
    with pytest.raises(MemberError, match="grammar does not allow"):
        ensemble.generate(ASK, tools=TOOLS)


def test_a_dialect_needs_only_a_row_in_the_table(shell):
    assert MemberConfig(model="m", tool_dialect="shell").tool_dialect == "shell"
    silent = ScriptedMember("b", reply="Hello", dialect="shell")
    silent.shows_tools = False  # so that instructions show the form of a call
    Ensemble(members=[silent]).generate(ASK, tools=TOOLS)
    assert "$ NAME(PARAMETER=VALUE)" in silent.prompts[0][0].content
