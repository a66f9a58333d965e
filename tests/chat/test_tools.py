"""Tools of a request: callable tools, how members see them, and calls in answers."""

from __future__ import annotations

import json
import logging

import pytest

from adafuse_core import ConfigError, Ensemble, Grammar, InvalidToolCall, PromptError, ToolCall
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import DIALECTS, SHARED
from adafuse_core.chat.messages import conversation
from adafuse_core.chat.tool_text import with_tool_instructions
from adafuse_core.chat.tools import Tools
from adafuse_core.errors import MemberError, TemplateError
from adafuse_core.events import TextDelta, ToolCallDelta
from adafuse_core.generation import collect
from adafuse_core.members.prompts import PromptEncoder
from adafuse_core.members.scripted import ScriptedMember
from adafuse_core.members.tool_prompts import show_tools
from tests import tiny
from tests.chat.test_templates import ALTERNATES, DROPS_TOOLS, NO_SYSTEM, SYSTEM_THEN_ALTERNATES

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


def tool(name="get_weather", parameters=CITY, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def accepts(grammar, text):
    guide = grammar.guide().after(text)
    return guide is not None and guide.may_end


def call_of(arguments, name="get_weather", dialect=SHARED):
    return dialect.write([ToolCall(name=name, arguments=arguments)])


def forced(parameters, **more):
    return answer_grammar(Tools.of_request([tool(parameters=parameters, **more)], "any", parallel=True), SHARED)


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "is_forced", "only", "parallel"),
    [
        ("auto", False, None, True),
        ("any", True, None, True),
        ("required", True, None, True),
        ("get_weather", True, "get_weather", False),
    ],
)
def test_tool_choice_sets_callable_and_required_tools(choice, is_forced, only, parallel):
    tools = Tools.of_request([tool(), tool("get_time")], choice, parallel=True)
    assert (tools.forced, tools.only, tools.parallel) == (is_forced, only, parallel)
    assert tools.names == ((only,) if only else ("get_weather", "get_time"))


@pytest.mark.parametrize(("given", "choice"), [(None, "auto"), ([], "auto"), ([], "none"), ([tool()], "none")])
def test_tool_choice_none_allows_no_calls(given, choice):
    assert Tools.of_request(given, choice, parallel=True) is None


BAD_REQUESTS = {
    "unknown name": (
        {"tools": [tool()], "tool_choice": "get_time"},
        "'get_time', expected one of 'auto', .*'get_weather'",
    ),
    "a dictionary": ({"tools": [tool()], "tool_choice": {"type": "function"}}, "got tool_choice={'type'"),
    "no choice": ({"tools": [tool()], "tool_choice": None}, "got tool_choice=None"),
    "a name without tools": ({"tool_choice": "get_weather"}, "'get_weather', expected one of"),
    "any without tools": ({"tool_choice": "any"}, "'any' without tools"),
    "required of no tools": ({"tools": [], "tool_choice": "required"}, "'required' without tools"),
    "one name twice": ({"tools": [tool(), tool()]}, "same name"),
    "no list": ({"tools": tool()}, "expected a list"),
    "no mapping": ({"tools": ["get_weather"]}, "got 'get_weather' as a tool"),
    "nothing": ({"tools": [None]}, "got None as a tool"),
    "no function": ({"tools": [{"type": "function"}]}, "as a tool, expected"),
    "a bare function": ({"tools": [{"name": "f", "parameters": {}}]}, "as a tool, expected"),
    "no name": ({"tools": [{"type": "function", "function": {"parameters": {}}}]}, "as a tool, expected"),
    "an empty name": ({"tools": [tool("")]}, "as a tool, expected"),
    "a number as name": ({"tools": [tool(3)]}, "as a tool, expected"),
    "parameters of no object": (
        {"tools": [tool(parameters={"type": "string"})]},
        "expected the JSON schema of an object",
    ),
    "parameters as a list": ({"tools": [tool(parameters=["city"])]}, "'parameters': .* in a tool, expected name"),
    "parameters of a text": ({"tools": [tool(parameters={"type": "string"})]}, "expected the JSON schema of an object"),
    "tools that are no list": ({"tools": {}}, "tools"),
    "another kind of tool": ({"tools": [{**tool(), "type": "web_search"}]}, "of type 'web_search'"),
    "no schema": (
        {"tools": [tool(parameters={"properties": {"a": {"type": "strin"}}}, strict=True)]},
        "tool 'get_weather': #/properties/a/type can't be enforced: Invalid type: strin",
    ),
    "no JSON": ({"tools": [tool(parameters={"properties": {"a": {"enum": [{1}]}}})]}, "not plain JSON"),
    "no grammar": ({"grammar": "{}"}, "got grammar='{}', expected a Grammar"),
    "a schema as grammar": ({"tools": [tool()], "grammar": CITY}, "expected a Grammar"),
    "strict and not enforced": (
        {"tools": [tool(parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}}, strict=True)]},
        "uniqueItems",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_at_once(name):
    options, message = BAD_REQUESTS[name]
    member = ScriptedMember(reply="hi")
    with pytest.raises(ConfigError, match=message):
        Ensemble(members=[member]).stream(ASK, **options)
    assert member.prompts == []


def test_tools_with_a_plain_prompt_are_refused_at_once():
    ensemble = Ensemble(members=[ScriptedMember(reply="hi")])
    with pytest.raises(PromptError, match="tools were given with a plain prompt"):
        ensemble.stream("go", tools=[tool()])
    assert ensemble.generate("go", tools=[tool()], tool_choice="none").text == "hi"
    assert ensemble.generate("go", tools=[]).text == "hi"


# -- what a call may be ------------------------------------------------------------------------------------------------

NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}
PARAMETERS = {
    "none": (None, {}, {"a": 1}),
    "empty": ({}, {}, {"a": 1}),
    "no properties": ({"type": "object"}, {}, {"a": 1}),
    "no type": ({"properties": {"a": {"type": "integer"}}}, {"a": 1}, {"a": "1"}),
    "optional": ({"type": "object", "properties": {"a": {"type": "integer"}}}, {}, {"b": 1}),
    "open": ({"type": "object", "additionalProperties": True}, {"a": [1, {"b": None}]}, None),
    "definitions": (
        {"type": "object", "properties": {"node": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": NODE}},
        {"node": {"next": {"next": None}}},
        {"node": {"next": 1}},
    ),
    "reference at the root": ({"$ref": "#/$defs/Node", "$defs": {"Node": NODE}}, {"next": {"next": None}}, {"a": 1}),
    "choice at the root": (
        {"anyOf": [CITY, {"properties": {"at": CITY}}]},
        {"at": {"city": "Paris"}},
        {"town": "Paris"},
    ),
    "all at the root": (
        {"allOf": [CITY, {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]}]},
        {"city": "Paris", "n": 1},
        {"city": "Paris"},
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_arguments_obey_the_parameters(name):
    parameters, right, wrong = PARAMETERS[name]
    grammar = forced(parameters)
    assert accepts(grammar, call_of(right))
    assert wrong is None or not accepts(grammar, call_of(wrong))
    assert grammar.guide().after(grammar.guide().short_ending).may_end


def test_unenforceable_keywords_are_relaxed_without_strict(caplog):
    with caplog.at_level(logging.WARNING):
        grammar = forced({"properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}})
    assert "uniqueItems" in caplog.text
    assert accepts(grammar, call_of({"a": [1, 1]}))
    assert not accepts(grammar, call_of({"a": ["x"]}))


@pytest.mark.parametrize("name", DIALECTS)
def test_an_answer_calls_or_obeys_its_own_grammar(name):
    dialect = DIALECTS[name]
    answer = Grammar.json_schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    grammar = answer_grammar(Tools.of_request([tool()], "auto", parallel=True), dialect, answer)
    assert accepts(grammar, call_of({"city": "Paris"}, dialect=dialect))
    assert accepts(grammar, '{"name": "get_weather"}')
    assert accepts(grammar, '{"name": "<tool_call>"}')
    assert not accepts(grammar, "Hello")
    assert not accepts(grammar, "")


# -- how members are told ----------------------------------------------------------------------------------------------

EACH, OPEN = "{% for m in messages %}", "{% endfor %}<|im_start|>assistant\n"
SHOWN = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
CALLS = "{% for c in m['tool_calls'] %}"
TEMPLATES = {
    "hermes": SHOWN
    + EACH
    + TURN
    + CALLS
    + "<tool_call>\n{{ c['function'] | tojson }}\n</tool_call>{% endfor %}"
    + OPEN,
    "llama3": SHOWN
    + EACH
    + TURN
    + CALLS
    + "{{ '{\"name\": \"' }}{{ c['function']['name'] }}{{ '\", \"parameters\": ' }}"
    + "{{ c['function']['arguments'] | tojson }}{% endfor %}"
    + OPEN,
    "mistral": SHOWN + EACH + TURN + CALLS + "[TOOL_CALLS][{{ c['function'] | tojson }}]{% endfor %}" + OPEN,
    "unknown": SHOWN + EACH + TURN + CALLS + "<function={{ c['function']['name'] }}>{% endfor %}" + OPEN,
    "ignores tools": tiny.CHATML,
    "drops tools": DROPS_TOOLS,
    "no system": NO_SYSTEM,
    "alternates": ALTERNATES,
    "system then alternates": SYSTEM_THEN_ALTERNATES,
    "brackets": tiny.BRACKETS,
}
HISTORY = conversation(
    [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}],
        },
        {"role": "tool", "content": 'sun "hot"', "name": "get_weather", "tool_call_id": "c1"},
        {"role": "user", "content": "And in Rome?"},
    ]
)


def encoder(name, dialect=None):
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = TEMPLATES[name]
    return PromptEncoder(name=name, tokenizer=tokenizer, dialect=dialect)


def prompts(names, messages=HISTORY, tools=None, dialects=None):
    """How members are shown tools, and the prompt of each."""
    members = [encoder(name, dialect) for name, dialect in zip(names, dialects or [None] * len(names), strict=True)]
    calls = Tools.of_request(tools or [tool(description="Tells the weather.")], "auto", parallel=True)
    dialect, shown, schemas = show_tools(messages, calls, members)
    texts = [m.tokenizer.decode(m.encode(shown, schemas).ids, skip_special_tokens=False) for m in members]
    return dialect, schemas, texts


@pytest.mark.parametrize("name", ["hermes", "llama3", "mistral"])
def test_members_of_one_dialect_see_tools_in_their_templates(name):
    dialect, schemas, texts = prompts([name, name])
    assert dialect == DIALECTS[name]
    assert schemas == [tool(description="Tells the weather.")]
    for text in texts:
        assert "You can call these tools" not in text
        assert '"description": "Tells the weather."' in text


@pytest.mark.parametrize(
    "names",
    [
        ["hermes", "llama3"],
        ["llama3", "mistral", "hermes"],
        ["hermes", "ignores tools"],
        ["unknown"],
        ["ignores tools", "drops tools", "no system", "alternates", "system then alternates", "brackets"],
        ["brackets", "mistral"],
    ],
    ids="+".join,
)
def test_members_without_a_common_dialect_get_the_same_instructions(names):
    dialect, schemas, texts = prompts(names)
    assert (dialect, schemas) == (SHARED, None)
    for text in texts:
        for part in (
            json.dumps(tool(description="Tells the weather.")["function"]),
            '<tool_call>\n{"name": "NAME", "arguments": {"PARAMETER": VALUE}}\n</tool_call>',
            "Be brief.",
            "What is the weather in Paris?",
            "I look.\n" + call_of({"city": "Paris"}),
            'Result of get_weather:\nsun "hot"',
            "And in Rome?",
        ):
            assert text.count(part) == 1
        assert text.index("Be brief.") < text.index("weather in Paris?") < text.index("sun") < text.index("Rome")


def test_a_configured_dialect_is_described_if_no_template_shows_it():
    dialect, schemas, (text,) = prompts(["ignores tools"], dialects=["mistral"])
    assert (dialect, schemas) == (DIALECTS["mistral"], None)
    assert '[{"name": "NAME", "arguments": {"PARAMETER": VALUE}}]' in text
    assert '[{"name": "get_weather", "arguments": {"city": "Paris"}}]' in text


def test_a_configured_dialect_may_equal_another_members_template():
    dialect, schemas, _ = prompts(["hermes", "ignores tools"], dialects=[None, "hermes"])
    assert (dialect, schemas) == (SHARED, None)
    dialect, schemas, _ = prompts(["hermes", "hermes"], dialects=[None, "hermes"])
    assert schemas is not None


def test_messages_are_left_as_they_were():
    before = repr(HISTORY)
    plain = with_tool_instructions(HISTORY, Tools.of_request([tool()], "auto", parallel=True))
    assert repr(HISTORY) == before
    assert not any(message.tool_calls or message.role == "tool" for message in plain)


def test_a_call_without_text_is_rendered_alone():
    messages = conversation([*ASK, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}])
    plain = with_tool_instructions(messages, Tools.of_request([tool()], "auto", parallel=True))
    assert plain[2].content == call_of({}, "f")


def test_a_member_without_a_template_is_refused():
    tokenizer = tiny.byte_level(chat=False)
    members = [encoder("hermes"), PromptEncoder(name="bare", tokenizer=tokenizer)]
    _, shown, schemas = show_tools(HISTORY, Tools.of_request([tool()], "auto", parallel=True), members)
    with pytest.raises(TemplateError, match=r"'bare'.*no chat template"):
        members[1].encode(shown, schemas)


# -- what comes of it --------------------------------------------------------------------------------------------------


def scripted(reply, **options):
    return Ensemble(members=[ScriptedMember("a", reply, **options), ScriptedMember("b", reply, **options)])


def by_paper(reply):
    """The same members, which draft three words at a time."""
    return Ensemble(members=scripted(reply).members, strategy="adafuse")


@pytest.mark.parametrize("name", DIALECTS)
def test_an_answer_with_a_call_has_no_text(name):
    reply = call_of({"city": "Paris é"}, dialect=DIALECTS[name])
    answer = scripted(reply, dialect=name).generate(ASK, tools=[tool()])
    assert (answer.text, answer.reason, answer.invalid_tool_calls) == ("", "tool_calls", ())
    (call,) = answer.tool_calls
    assert (call.name, call.arguments) == ("get_weather", {"city": "Paris é"})


def test_several_calls_have_several_ids():
    reply = SHARED.write([ToolCall(name="get_weather", arguments={"city": city}) for city in ("Rome", "Paris", "Oslo")])
    answer = scripted("I look.\n" + reply).generate(ASK, tools=[tool()])
    assert answer.text == "I look."
    assert [call.arguments["city"] for call in answer.tool_calls] == ["Rome", "Paris", "Oslo"]
    one = scripted("I look.\n" + reply).generate(ASK, tools=[tool()], parallel_tool_calls=False)
    assert [call.arguments["city"] for call in one.tool_calls] == ["Rome"]
    assert len({call.id for call in answer.tool_calls}) == 3


def test_without_tools_markup_is_text():
    reply = call_of({"city": "Paris"})
    for options in ({}, {"tools": [tool()], "tool_choice": "none"}):
        answer = scripted(reply).generate(ASK, **options)
        assert (answer.text, answer.reason, answer.tool_calls) == (reply, "stop", ())


@pytest.mark.parametrize(
    ("reply", "options"),
    [
        ("Hello!", {"tool_choice": "any"}),
        (call_of({"city": "Rome"}, "get_time"), {}),
        (call_of({"city": 3}), {}),
        (call_of({"city": "Rome"}) + " bye", {}),
        (SHARED.write([ToolCall(name="get_weather", arguments={"city": "Rome"})] * 2), {"tool_choice": "get_weather"}),
    ],
)
def test_a_script_that_violates_the_grammar_is_refused(reply, options):
    with pytest.raises(MemberError, match=r"(?s)member 'a': the script continues with .* grammar does not allow"):
        by_paper(reply).generate(ASK, tools=[tool()], **options)


def test_forced_text_is_committed_without_running_members():
    ensemble = by_paper(call_of({"city": "Rome"}))
    answer = ensemble.generate(ASK, tools=[tool()], tool_choice="get_weather")
    forced_round, drafted = answer.rounds
    assert forced_round.span.text == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "'
    assert (forced_round.drafts, forced_round.candidates[0].proposers, forced_round.scores) == ((), (), ())
    assert (drafted.span.text, len(drafted.drafts)) == ('Rome"}}\n</tool_call>', 2)
    assert [member.drafts for member in ensemble.members] == [1, 1]


def test_an_answer_cut_in_a_call_has_an_invalid_call():
    member = ScriptedMember("a", "I look.\n" + call_of({"city": "Paris stop there"}), fail_after=4)
    with pytest.raises(MemberError) as caught:
        Ensemble(members=[member], strategy="adafuse", max_words=2).generate(ASK, tools=[tool()])
    answer = caught.value.partial
    assert (answer.text, answer.reason, answer.tool_calls) == ("I look.", "error", ())
    (invalid,) = answer.invalid_tool_calls
    assert isinstance(invalid, InvalidToolCall)
    assert (invalid.name, invalid.arguments) == ("get_weather", '{"city": "Paris stop')
    assert "ended inside" in invalid.error


def test_with_a_grammar_the_text_may_look_like_a_call():
    grammar = Grammar.json_schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    for name, text in (("hermes", '{"name": "<tool_call>"}'), ("plain", '{"name": "get_weather"}')):
        answer = scripted(text, dialect=name).generate(ASK, tools=[tool()], grammar=grammar)
        assert (answer.text, answer.reason, answer.tool_calls) == (text, "stop", ())
        call = call_of({"city": "Rome"}, dialect=DIALECTS[name])
        answer = scripted(call, dialect=name).generate(ASK, tools=[tool()], grammar=grammar)
        assert (answer.text, answer.reason, len(answer.tool_calls)) == ("", "tool_calls", 1)


def test_deltas_of_text_have_no_markup():
    reply = "One two <tool_ three\n\n" + call_of({"city": "Rome"})
    deltas = [event.text for event in scripted(reply).stream(ASK, tools=[tool()]) if isinstance(event, TextDelta)]
    assert "".join(deltas) == "One two <tool_ three"


def test_plain_prompts_are_answered_with_plain_text():
    reply = "<think>hm</think>" + call_of({"city": "Rome"})
    assert scripted(reply).generate("go").text == reply
    answer = scripted(reply).generate(ASK)
    assert (answer.reasoning, answer.text) == ("hm", call_of({"city": "Rome"}))


def test_prompts_are_counted_as_they_are_read():
    ensemble = Ensemble()
    for messages, tools in ((ASK, [tool()]), (list(HISTORY), [tool(), tool("get_time")]), (ASK, None)):
        usage = ensemble.generate(messages, tools=tools, max_new_tokens=64).usage
        assert usage.prompt_tokens == ensemble.count_tokens(messages, tools)


# -- calls that repeat themselves --------------------------------------------------------------------------------------


def endless(dialect, *arguments):
    """Members that repeat these calls in one answer."""
    calls = [ToolCall(name="get_weather", arguments=each) for each in arguments]
    once = dialect.write(calls)
    body = once[len(dialect.head) : len(once) - len(dialect.tail)]
    text = dialect.head + dialect.between.join([body] * 12) + dialect.tail
    return Ensemble(members=[ScriptedMember(name, text, dialect=dialect.name) for name in "ab"])


@pytest.mark.parametrize("choice", ["any", "auto"])
@pytest.mark.parametrize("name", [name for name, dialect in DIALECTS.items() if dialect.between is not None])
@pytest.mark.parametrize("arguments", [[{"city": "Rome"}], [{"city": "Rome"}, {"city": "Oslo is wide"}]])
def test_an_answer_ends_where_it_repeats_a_call(name, choice, arguments):
    ensemble = endless(DIALECTS[name], *arguments)
    events = list(ensemble.stream(ASK, tools=[tool()], tool_choice=choice, max_new_tokens=400))
    answer = collect(events)
    assert [call.arguments for call in answer.tool_calls] == arguments
    assert (answer.text, answer.reason, answer.invalid_tool_calls) == ("", "tool_calls", ())
    assert {event.index for event in events if isinstance(event, ToolCallDelta)} == set(range(len(arguments)))
    written = "".join(played.span.text for played in answer.rounds)
    assert written.count("get_weather") <= len(arguments) + 2  # the answer ends after the round with the repeated call


def test_equal_arguments_may_be_written_in_several_ways():
    open_tool = tool(parameters={"type": "object", "additionalProperties": True})
    pieces = ['{"a": 1, "b": [true, "é"]}', '{"b": [true, "é"], "a": 1.0}']
    text = "\n".join(f'<tool_call>\n{{"name": "get_weather", "arguments": {piece}}}\n</tool_call>' for piece in pieces)
    (call,) = scripted(text).generate(ASK, tools=[open_tool]).tool_calls
    assert call.arguments == {"a": 1, "b": [True, "é"]}


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1}, {"a": True}), ({"a": 0}, {"a": False}), ({"a": [1]}, {"a": [1, 1]}), ({"a": None}, {}), ({}, {"a": 0})],
)
def test_different_calls_are_all_kept(one, other):
    open_tool = tool(parameters={"type": "object", "additionalProperties": True})
    text = SHARED.write([ToolCall(name="get_weather", arguments=arguments) for arguments in (one, other)])
    assert [call.arguments for call in scripted(text).generate(ASK, tools=[open_tool]).tool_calls] == [one, other]


def test_the_same_arguments_for_another_tool_are_another_call():
    text = SHARED.write([ToolCall(name=name, arguments={"city": "Rome"}) for name in ("get_weather", "get_time")])
    answer = scripted(text).generate(ASK, tools=[tool(), tool("get_time")], tool_choice="any")
    assert [call.name for call in answer.tool_calls] == ["get_weather", "get_time"]


@pytest.mark.parametrize(
    "reply",
    ['{"name": "get_weather", "parameters": {"city": "Rome"}}', '<function=get_weather>{"city": "Rome"}</function>'],
)
def test_calls_in_another_form_are_not_repeated_either(reply):
    ensemble = Ensemble(members=[ScriptedMember("m", reply + "\n", ends_answer=False)])
    answer = ensemble.generate(ASK, tools=[tool()], max_new_tokens=200)
    assert [call.arguments for call in answer.tool_calls] == [{"city": "Rome"}]
    assert (answer.text, answer.reason) == ("", "tool_calls")
    assert sum(played.span.text.count("get_weather") for played in answer.rounds) <= 3


def test_a_second_call_of_a_tool_that_is_cut_is_an_invalid_call_with_all_its_pieces():
    text = SHARED.write([ToolCall(name="get_weather", arguments={"city": city}) for city in ("Rome", "Oslo stop it")])
    events = list(scripted(text).stream(ASK, tools=[tool()], max_new_tokens=23))
    answer = collect(events)
    assert [call.arguments for call in answer.tool_calls] == [{"city": "Rome"}]
    (invalid,) = answer.invalid_tool_calls
    pieces = [event for event in events if isinstance(event, ToolCallDelta) and event.index == 1]
    assert pieces[0].id == invalid.id
    assert "".join(piece.arguments for piece in pieces) == invalid.arguments == '{"city": "Oslo'


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("choice", ["any", "auto"])
def test_an_answer_may_end_after_each_call(name, choice):
    dialect = DIALECTS[name]
    rules = answer_grammar(Tools.of_request([tool()], choice, parallel=True), dialect)
    calls = [ToolCall(name="get_weather", arguments={"city": city}) for city in ("Rome", "Oslo", "Bonn")]
    for count in range(1, 4 if dialect.between is not None else 2):
        text = dialect.write(calls[:count])
        assert accepts(rules, text)
        assert accepts(rules, text + dialect.line_end)
    assert not accepts(rules, text + dialect.line_end + "\n")


@pytest.mark.parametrize("name", ["hermes", "plain"])
def test_an_end_of_line_after_the_last_call_is_no_text(name):
    answer = scripted(call_of({"city": "Rome"}, dialect=DIALECTS[name]) + "\n", dialect=name).generate(
        ASK, tools=[tool()], tool_choice="any"
    )
    assert (answer.text, answer.reason, len(answer.tool_calls)) == ("", "tool_calls", 1)
