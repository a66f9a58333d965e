"""Tool calls and structured output: requests, streamed responses, and errors."""

from __future__ import annotations

import copy
import json
from datetime import date
from typing import Annotated

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field

from adafuse_core import ConfigError, Grammar
from adafuse_core.errors import MemberError
from adafuse_integrations.llama_index import AdaFuseLLM, tool_calls
from adafuse_integrations.llama_index.tool_calls import StreamedToolCall
from adafuse_integrations.llama_index.tools import as_choice
from tests.integrations.llama_index.conftest import TOOLS, call, get_weather, respond, scripted, text_of

CHATS = ["chat", "stream_chat", "achat", "astream_chat"]
WEATHER = call("get_weather", {"city": "Paris"})
LONG = call("get_weather", {"city": "Paris " * 30})
BOTH = f"I'll look it up.\n{WEATHER}\n{call('calculator', {'expression': '12 * 7'})}"


class City(BaseModel):
    """A city."""

    name: str
    people: int


class Section(BaseModel):
    """A section and those below it."""

    title: str
    sections: list[Section] = []


class Plan(BaseModel):
    """A plan of a text."""

    root: Section


@pytest.fixture(scope="module")
def small():
    """The two small models, which know these three tools."""
    return AdaFuseLLM(max_new_tokens=64)


def offered(llm, tools=TOOLS, **options):
    """Options of `chat` for a question with tools, without the messages."""
    asked = llm._prepare_chat_with_tools(tools, user_msg="Which?", **options)
    del asked["messages"]
    return asked


def selected(llm, response, **options):
    """Names and arguments of the calls of a response."""
    found = llm.get_tool_calls_from_response(response, **options)
    return [(each.tool_name, each.tool_kwargs) for each in found]


class TestWhatIsAsked:
    def test_members_see_the_tools_under_their_own_names(self):
        class Odd(BaseModel):
            """An odd name."""

            value: int

        Odd.__name__ = "Result[int]"
        odd = get_function_tool(Odd)
        odd.metadata.name = "Result[int]"
        llm, _ = scripted()
        shown = llm._prepare_chat_with_tools([odd], user_msg="Which?")["tools"]
        assert shown[0]["function"]["name"] == "Result[int]"
        assert shown[0]["function"]["parameters"]["required"] == ["value"]

    def test_question_and_history_become_one_conversation(self):
        llm, _ = scripted()
        history = [ChatMessage(role="system", content="S")]
        for question in ("U", ChatMessage(content="U")):
            asked = llm._prepare_chat_with_tools(TOOLS, user_msg=question, chat_history=history)
            assert [(turn.role.value, turn.content) for turn in asked["messages"]] == [("system", "S"), ("user", "U")]

    @pytest.mark.parametrize(
        ("given", "required", "meant"),
        [
            (None, False, "auto"),
            (None, True, "any"),
            ("auto", True, "any"),
            ("required", False, "any"),
            ("get_time", True, "get_time"),
            ("none", False, "none"),
            ({"type": "function", "function": {"name": "get_time"}}, False, "get_time"),
            ({"type": "any"}, False, "any"),
        ],
    )
    def test_36_tool_choice_and_tool_required_are_understood(self, given, required, meant):
        assert as_choice(given, required=required) == meant

    @pytest.mark.parametrize(("given", "required"), [({}, False), ({"mode": "any"}, False), (3, False), ("none", True)])
    def test_an_invalid_tool_choice_is_refused(self, given, required):
        with pytest.raises(ConfigError, match="tool_choice"):
            as_choice(given, required=required)

    def test_without_tools_there_are_no_tool_options(self):
        llm, member = scripted("Fine.")
        assert llm.chat_with_tools([], user_msg="How are you?").message.content == "Fine."
        assert len(member.prompts) == 1
        with pytest.raises(ConfigError, match="tools"):
            llm.chat_with_tools([], user_msg="How are you?", tool_required=True)

    @pytest.mark.parametrize("endpoint", ["complete", "stream_complete", "acomplete", "astream_complete"])
    @pytest.mark.parametrize("option", ["tools", "tool_choice", "parallel_tool_calls"])
    async def test_a_completion_refuses_tools(self, endpoint, option):
        llm, member = scripted(WEATHER)
        with pytest.raises(ConfigError, match=f"{option}.*completion"):
            await respond(llm, endpoint, **{option: offered(llm)[option]})
        assert member.prompts == []

    @pytest.mark.parametrize("flag", [True, False])
    async def test_a_recursive_class_is_refused_if_llama_index_can_not_run_it(self, flag):
        llm, member = scripted(llm={"is_function_calling_model": flag})
        tools = [get_function_tool(Section)]
        with pytest.raises(ConfigError, match="'Section' are a recursive class"):
            llm.predict_and_call(tools, "Write.")
        with pytest.raises(ConfigError, match="'Section' are a recursive class"):
            await llm.apredict_and_call(tools, "Write.")
        assert member.prompts == []

    async def test_the_schema_of_a_recursive_argument_is_enforced_at_every_level(self):
        tree = {"root": {"title": "a", "sections": [{"title": "b", "sections": [{"title": "c", "sections": []}]}]}}
        tools = [FunctionTool.from_defaults(fn=lambda root: len(str(root)), name="plant", fn_schema=Plan)]
        llm, _ = scripted(call("plant", tree))
        for answer in (llm.predict_and_call(tools, "Write."), await llm.apredict_and_call(tools, "Write.")):
            assert answer.sources[0].raw_input["kwargs"] == tree
        wrong = json.loads(json.dumps(tree).replace('{"title": "c", "sections": []}', '"oops"'))
        with pytest.raises(MemberError, match="grammar does not allow"):
            scripted(call("plant", wrong))[0].predict_and_call(tools, "Write.")

    def test_the_log_names_tool_and_path_of_what_can_not_be_enforced(self, caplog):
        class Mail(BaseModel):
            to: Annotated[str, Field(json_schema_extra={"pattern": r"^(?!\.)[a-z.]+@[a-z.]+$"})]

        llm, _ = scripted(WEATHER)
        llm.chat_with_tools([*TOOLS, get_function_tool(Mail)], user_msg="Which?")
        assert "tool 'Mail': #/properties/to/pattern can't be enforced" in caplog.text
        assert "get_weather" not in caplog.text

    def test_tools_need_messages(self):
        llm, _ = scripted("Fine.", chat=False, llm={"is_chat_model": False})
        with pytest.raises(ValueError, match="messages"):
            llm.chat_with_tools(TOOLS, user_msg="How are you?")


@pytest.mark.parametrize("endpoint", CHATS)
class TestWhatComesBack:
    async def test_33_texts_contain_no_markup_of_calls(self, endpoint):
        llm, _ = scripted(BOTH)
        responses = await respond(llm, endpoint, **offered(llm, allow_parallel_tool_calls=True))
        assert text_of(responses[-1]) == "I'll look it up."
        assert "".join(response.delta or "" for response in responses) in ("I'll look it up.", "")
        assert responses[-1].raw["finish_reason"] == "tool_calls"

    async def test_33_calls_are_blocks_and_additional_kwargs_with_unique_ids(self, endpoint):
        llm, _ = scripted(BOTH)
        last = (await respond(llm, endpoint, **offered(llm, allow_parallel_tool_calls=True)))[-1].message
        blocks = [block for block in last.blocks if isinstance(block, ToolCallBlock)]
        assert [(block.tool_name, block.tool_kwargs) for block in blocks] == [
            ("get_weather", {"city": "Paris"}),
            ("calculator", {"expression": "12 * 7"}),
        ]
        listed = last.additional_kwargs.pop("tool_calls")
        assert last.additional_kwargs == {}
        assert [each["id"] for each in listed] == [block.tool_call_id for block in blocks]
        assert len({each["id"] for each in listed}) == 2
        assert [json.loads(each["function"]["arguments"]) for each in listed] == [b.tool_kwargs for b in blocks]

    async def test_a_thought_is_a_block_and_not_text(self, endpoint):
        llm, _ = scripted("<think>\nHm, well.\n</think>\n\nFine.")
        responses = await respond(llm, endpoint, "How are you?")
        assert text_of(responses[-1]) == "Fine."
        assert [block.block_type for block in responses[-1].message.blocks] == ["thinking", "text"]
        assert responses[-1].message.blocks[0].content == "Hm, well."
        if "stream" in endpoint:
            assert "".join(r.additional_kwargs.get("thinking_delta", "") for r in responses) == "Hm, well."

    async def test_34_every_chunk_has_the_calls_so_far(self, endpoint):
        llm, _ = scripted(BOTH)
        responses = await respond(llm, endpoint, **offered(llm, allow_parallel_tool_calls=True))
        seen = [selected(llm, response, error_on_no_tool_call=False) for response in responses]
        assert [len(calls) for calls in seen] == sorted(len(calls) for calls in seen)
        assert seen[-1] == [("get_weather", {"city": "Paris"}), ("calculator", {"expression": "12 * 7"})]
        if "stream" in endpoint:
            assert seen[0] == []
            assert ("get_weather", {"city": "Paris"}) in [calls[0] for calls in seen if len(calls) == 1]

    async def test_34_an_answer_without_calls_has_none(self, endpoint):
        llm, _ = scripted("Fine.")
        for response in await respond(llm, endpoint, **offered(llm)):
            assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
            with pytest.raises(ValueError, match="at least one tool call"):
                llm.get_tool_calls_from_response(response)


def test_34_arguments_are_read_at_every_character():
    whole = {"city": 'Par"is\\ é😀', "n": -12.5e3, "deep": [{"a": None}, True, ""]}
    text = json.dumps(whole)
    known, cities = StreamedToolCall(id="1", name="tool"), []
    for character in text:
        known = known.extended(character)
        assert isinstance(known.arguments, dict)
        assert set(known.arguments) <= set(whole)
        cities.append(known.arguments.get("city", ""))
    assert all(whole["city"].startswith(city) for city in cities)
    assert {"Par", 'Par"is', whole["city"]} <= set(cities)
    assert known.arguments == whole


def test_34_reading_the_calls_of_a_chunk_parses_no_json(monkeypatch):
    llm, _ = scripted(call("get_weather", {"city": "word " * 300}), llm={"max_new_tokens": None})
    responses = list(llm.stream_chat([ChatMessage(content="Which?")], **offered(llm)))
    monkeypatch.setattr(json, "loads", None)
    monkeypatch.setattr(tool_calls, "from_json", None)
    found = [llm.get_tool_calls_from_response(each, error_on_no_tool_call=False) for each in responses]
    assert sum(map(len, found)) > 300


@pytest.mark.parametrize("endpoint", CHATS)
async def test_35_without_parallel_calls_the_first_ends_the_answer(endpoint):
    llm, _ = scripted(BOTH)
    both = await respond(llm, endpoint, **offered(llm, allow_parallel_tool_calls=True))
    assert len(selected(llm, both[-1])) == 2
    one = await respond(llm, endpoint, **offered(llm, allow_parallel_tool_calls=False))
    assert selected(llm, one[-1]) == [("get_weather", {"city": "Paris"})]


class TestCallsThatBreakOff:
    """The token budget ends inside a call, without `complete_calls`."""

    def test_35_predict_and_call_raises_an_error_with_the_reason(self):
        llm, _ = scripted(LONG, llm={"max_new_tokens": 20})
        with pytest.raises(
            ValueError, match=r"call of 'get_weather' with '\{\"city\": \"Paris .*Paris': the token budget"
        ):
            llm.predict_and_call(TOOLS, "What is the weather in Paris?")

    async def test_35_no_tool_runs_even_without_errors(self):
        llm, _ = scripted(LONG, llm={"max_new_tokens": 20})
        with pytest.raises(ValueError, match=r"'get_weather \(not run: .*expected one of the tools \['get_weather',"):
            llm.predict_and_call(TOOLS, "What is the weather in Paris?", error_on_no_tool_call=False)
        with pytest.raises(ValueError, match="not run"):
            await llm.apredict_and_call(TOOLS, "What is the weather in Paris?", error_on_no_tool_call=False)

    def test_35_complete_calls_runs_a_call_that_adafuse_completed(self):
        llm, _ = scripted(LONG, llm={"max_new_tokens": 20, "complete_calls": True})
        (source,) = llm.predict_and_call(TOOLS, "What is the weather in Paris?").sources
        assert set(source.raw_input["kwargs"]["city"].split()) == {"Paris"}

    @pytest.mark.parametrize("endpoint", CHATS)
    async def test_raw_contains_the_library_text(self, endpoint):
        llm, _ = scripted(LONG, llm={"max_new_tokens": 20})
        last = (await respond(llm, endpoint, **offered(llm)))[-1]
        (written,) = last.raw["library_text"]
        assert (written["kind"], written["fields"]) == ("shortened", ["city"])
        assert last.raw["finish_reason"] == "length"
        assert selected(llm, last, error_on_no_tool_call=False)[0][0].startswith("get_weather (not run")

    @pytest.mark.parametrize("mode", [PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM])
    def test_objects_are_always_complete_and_the_log_has_the_library_text(self, mode, caplog):
        text = json.dumps({"name": "Paris " * 40, "people": 2})
        reply = call("City", json.loads(text)) if mode == PydanticProgramMode.FUNCTION else text
        llm, _ = scripted(reply, llm={"max_new_tokens": 30, "pydantic_program_mode": mode})
        for city in (
            llm.structured_predict(City, PromptTemplate("Which?")),
            [*llm.stream_structured_predict(City, PromptTemplate("Which?"))][-1],
            llm.as_structured_llm(City).complete("Which?").raw,
        ):
            assert city.people == 2
            assert set(city.name.split()) == {"Paris"}
            assert "shortened: name" in caplog.records[-1].getMessage()

    def test_a_react_action_with_library_text_is_not_run(self):
        reply = 'Thought: hm\nAction: get_weather\nAction Input: {"city": "' + "Paris " * 40 + '"}'
        llm, _ = scripted(reply, llm={"max_new_tokens": 20, "is_function_calling_model": False})
        with pytest.raises(ValueError, match="ended inside the action 'get_weather'"):
            llm.predict_and_call(TOOLS, "Which?")

    def test_the_text_of_the_call_is_kept_and_can_be_sent_back(self):
        llm, member = scripted(LONG, llm={"max_new_tokens": 20})
        said = llm.chat_with_tools(TOOLS, "What is the weather in Paris?").message
        (text,) = (block.tool_kwargs for block in said.blocks)
        assert text.startswith('{"city": "Paris ')
        assert not text.endswith("}")
        llm.chat([ChatMessage(content="Which?"), said, ChatMessage(content="Well?")], max_new_tokens=40)
        assert member.prompts[-1][1].tool_calls[0].arguments == {"unfinished": text}


class TestForcedCallsOfSmallModels:
    def test_36_a_required_call_is_made_for_any_prompt(self, small):
        ((name, arguments),) = selected(small, small.chat_with_tools(TOOLS, "Hello!", tool_required=True))
        assert name in ("get_weather", "calculator", "get_time")
        assert all(isinstance(value, str) for value in arguments.values())

    @pytest.mark.parametrize("given", ["get_time", {"type": "function", "function": {"name": "get_time"}}])
    def test_36_the_tool_that_was_chosen_is_called(self, small, given):
        response = small.chat_with_tools(TOOLS, "What is the weather in Paris?", tool_choice=given)
        assert selected(small, response) == [("get_time", {"city": "Paris"})]

    def test_36_no_tool_is_called_where_none_is_allowed(self, small):
        response = small.chat_with_tools(TOOLS, "What is the weather in Paris?", tool_choice="none")
        assert selected(small, response, error_on_no_tool_call=False) == []

    async def test_36_predict_and_call_runs_what_was_called(self, small):
        for answer in (
            small.predict_and_call(TOOLS, "What is the weather in Paris?", tool_required=True),
            await small.apredict_and_call(TOOLS, "What is the weather in Paris?"),
        ):
            assert answer.response == "17 degrees in Paris"
            assert [source.tool_name for source in answer.sources] == ["get_weather"]


OBJECTS = {
    "by a call": {"is_function_calling_model": True},
    "by JSON": {"is_function_calling_model": False},
    "by JSON, as asked": {"pydantic_program_mode": PydanticProgramMode.LLM},
}
CITY = {"name": "New York", "people": 8500000}
PROMPT = PromptTemplate("Describe {city}.")


@pytest.mark.parametrize("ways", OBJECTS.values(), ids=OBJECTS)
class TestObjects:
    def llm(self, ways):
        called = ways.get("is_function_calling_model")
        return scripted(call("City", CITY) if called else json.dumps(CITY), llm=ways)[0]

    async def test_36_structured_predict_returns_an_object(self, ways):
        llm = self.llm(ways)
        assert llm.structured_predict(City, PROMPT, city="Paris") == City(**CITY)
        assert await llm.astructured_predict(City, PROMPT, city="Paris") == City(**CITY)
        assert llm.as_structured_llm(City).chat([ChatMessage(content="Paris")]).raw == City(**CITY)

    async def test_33_a_streamed_object_grows(self, ways):
        llm = self.llm(ways)
        grown = list(llm.stream_structured_predict(City, PROMPT, city="Paris"))
        later = [each async for each in await llm.astream_structured_predict(City, PROMPT, city="Paris")]
        for parts in (grown, later):
            assert parts[-1] == City(**CITY)
            assert "New" in [part.name for part in parts if part.people is None]

    async def test_37_the_prompt_of_the_caller_is_not_changed(self, ways):
        llm, prompt = self.llm(ways), PromptTemplate("Describe {city}.")
        llm.structured_predict(City, prompt, city="Paris")
        await llm.astructured_predict(City, prompt, city="Paris")
        list(llm.stream_structured_predict(City, prompt, city="Paris"))
        [each async for each in await llm.astream_structured_predict(City, prompt, city="Paris")]
        assert prompt.output_parser is None
        assert prompt.format(city="Paris") == "Describe Paris."

    def test_37_options_of_the_caller_are_not_changed(self, ways):
        options = {"max_new_tokens": 50, "tool_choice": "any", "tool_required": True}
        if not ways.get("is_function_calling_model"):
            options = {"max_new_tokens": 50}
        before = dict(options)
        self.llm(ways).structured_predict(City, PROMPT, llm_kwargs=options, city="Paris")
        list(self.llm(ways).stream_structured_predict(City, PROMPT, llm_kwargs=options, city="Paris"))
        assert options == before


def test_36_objects_of_a_recursive_class_are_written_as_text():
    written = {"title": "All", "sections": [{"title": "First", "sections": []}]}
    llm, _ = scripted(json.dumps(written), llm={"pydantic_program_mode": "llm"})
    made = llm.structured_predict(Section, PROMPT, city="Paris")
    assert (made.title, made.sections[0].title) == ("All", "First")


class Sky(BaseModel):
    """The weather."""

    sky: str = Field(pattern="^(cloudy|sunny)$")
    city: str = Field(max_length=20)


@pytest.mark.parametrize("ways", OBJECTS.values(), ids=OBJECTS)
def test_36_objects_of_small_models_are_always_valid(small, ways):
    llm = small.model_copy(update=ways)
    prompt = PromptTemplate("{question}")
    for question in ("It is 17 degrees and cloudy in Paris.", "Hello!"):
        assert llm.structured_predict(Sky, prompt, question=question).sky in ("cloudy", "sunny")
        assert isinstance(list(llm.stream_structured_predict(Sky, prompt, question=question))[-1], Sky)


@pytest.mark.parametrize("flag", [True, False])
async def test_37_messages_and_tools_of_the_caller_are_not_changed(flag):
    reply = WEATHER if flag else 'Thought: Well.\nAction: get_weather\nAction Input: {"city": "Paris"}'
    llm, _ = scripted(reply, llm={"is_function_calling_model": flag})
    history = [ChatMessage(role="system", content="S"), ChatMessage(content="U")]
    tools = [FunctionTool.from_defaults(get_weather)]
    before = copy.deepcopy(history), copy.deepcopy(tools[0].metadata)
    assert llm.predict_and_call(tools, "V", chat_history=history).response == "17 degrees in Paris"
    await llm.apredict_and_call(tools, "V", chat_history=history)
    if flag:
        list(llm.stream_chat_with_tools(tools, "V", chat_history=history))
    assert (history, tools[0].metadata) == before
    assert len(tools) == 1


def test_the_grammar_of_a_call_overrides_that_of_the_llm():
    llm, _ = scripted("yes", llm={"grammar": Grammar.regex("yes|no")})
    assert llm.complete("Well?").text == "yes"
    assert llm.complete("Well?", grammar=Grammar.regex("no")).text == "no"


class Booking(BaseModel):
    """A stay at a hotel."""

    note: str
    day: date


@pytest.mark.parametrize("mode", [PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM])
@pytest.mark.parametrize("tokens", [40, 60])
def test_answers_validate_with_every_token_budget(mode, tokens):
    llm = AdaFuseLLM(max_new_tokens=tokens, pydantic_program_mode=mode)
    assert isinstance(llm.structured_predict(Booking, PROMPT, city="Paris"), Booking)
    tree = AdaFuseLLM(max_new_tokens=tokens, pydantic_program_mode=mode).as_structured_llm(Section)
    assert isinstance(tree.complete("Write.").raw, Section)
