"""LlamaIndex's agents, workflows and routers, with tool calls and with plain text."""

from __future__ import annotations

import json

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool, ToolMetadata
from llama_index.core.workflow import Context, JsonSerializer
from llama_index.retrievers.bm25 import BM25Retriever
from workflows.errors import WorkflowCancelledByUser

from adafuse_core import ConfigError
from adafuse_integrations.llama_index import AdaFuseLLM, ToolCallSelector, react_grammar
from tests.integrations.llama_index.conftest import (
    TOOLS,
    call,
    crew,
    get_time,
    get_weather,
    memory,
    scripted,
    taking_turns,
)
from tests.integrations.stepped import stopped, until

# LlamaIndex's workflows look at all attributes of a pydantic object, the deprecated ones too; its agents use a
# deprecated property of its workflows.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

WEATHER = call("get_weather", {"city": "Paris"})
SUM = call("calculator", {"expression": "12 * 7"})
ACTION = 'Thought: I need a tool.\nAction: get_weather\nAction Input: {"city": "Paris"}'
ANSWER = "Thought: I know it.\nAnswer: 17 degrees."
QUESTION = "What is the weather in Paris?"


def observing(*replies):
    """A scripted reply that depends on the number of observations in a ReAct prompt."""
    return lambda prompt: replies[sum(turn.content.startswith("Observation:") for turn in prompt)]


async def run(agent, llm, question=QUESTION, **options):
    """Run an agent and return its answer and all its events."""
    handler = agent.run(question, memory=memory(llm), **options)
    events = [event async for event in handler.stream_events()]
    return await handler, events


def results(events):
    """Name, arguments and result of each tool call."""
    found = [event for event in events if isinstance(event, ToolCallResult)]
    return [(event.tool_name, event.tool_kwargs, event.tool_output.content) for event in found]


@pytest.mark.parametrize("streaming", [True, False])
class TestFunctionAgent:
    async def test_32_tools_run_until_there_is_an_answer(self, streaming):
        llm, member = scripted(taking_turns(WEATHER, SUM, "It is 17 degrees, and 84."))
        agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming)
        answer, events = await run(agent, llm)
        assert str(answer) == "It is 17 degrees, and 84."
        assert results(events) == [
            ("get_weather", {"city": "Paris"}, "17 degrees in Paris"),
            ("calculator", {"expression": "12 * 7"}, "84"),
        ]
        assert [(turn.role, turn.name) for turn in member.prompts[-1]] == [
            ("user", None),
            ("assistant", None),
            ("tool", "get_weather"),
            ("assistant", None),
            ("tool", "calculator"),
        ]

    async def test_32_parallel_calls_are_all_run(self, streaming):
        llm, _ = scripted(lambda prompt: f"{WEATHER}\n{SUM}" if len(prompt) == 1 else "Both.")
        answer, events = await run(FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming), llm)
        assert str(answer) == "Both."
        assert {name for name, _, _ in results(events)} == {"get_weather", "calculator"}

    async def test_32_an_agent_may_make_one_call_at_a_time(self, streaming):
        llm, _ = scripted(taking_turns(f"{WEATHER}\n{SUM}", "One."))
        agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming, allow_parallel_tool_calls=False)
        answer, events = await run(agent, llm)
        assert str(answer) == "One."
        assert [name for name, _, _ in results(events)] == ["get_weather"]

    async def test_32_agents_hand_over(self, streaming):
        handoff = call("handoff", {"to_agent": "weather", "reason": "It knows."})
        first, _ = scripted(handoff)
        second, _ = scripted(lambda prompt: "17 degrees." if "17 degrees" in prompt[-1].content else WEATHER)
        options = {"streaming": streaming}
        workflow = AgentWorkflow(
            agents=[
                FunctionAgent(name="desk", description="Asks others.", llm=first, **options),
                FunctionAgent(name="weather", description="Knows.", tools=TOOLS, llm=second, **options),
            ],
            root_agent="desk",
        )
        answer, events = await run(workflow, first)
        assert str(answer) == "17 degrees."
        assert answer.current_agent_name == "weather"
        assert [name for name, _, _ in results(events)] == ["handoff", "get_weather"]

    async def test_32_context_and_messages_go_through_json(self, streaming):
        llm, member = scripted(taking_turns(WEATHER, "It is 17 degrees."))
        agent, kept = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming), memory(llm)
        context = Context(agent)
        json.loads((await agent.run(QUESTION, ctx=context, memory=kept)).model_dump_json())
        with pytest.warns(Warning, match="memory"):  # the one part that LlamaIndex leaves out
            stored = json.dumps(context.to_dict(serializer=JsonSerializer()))
        again = Context.from_dict(agent, json.loads(stored), serializer=JsonSerializer())
        messages = [ChatMessage.model_validate_json(message.model_dump_json()) for message in kept.get()]
        await agent.run("Really?", ctx=again, chat_history=messages, memory=memory(llm))
        turns = member.prompts[-1]
        assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant", "user"]
        assert turns[1].tool_calls[0].arguments == {"city": "Paris"}
        assert turns[2].tool_call_id == turns[1].tool_calls[0].id

    async def test_35_an_incomplete_call_is_reported_to_the_model(self, streaming):
        llm, member = scripted(
            taking_turns(call("get_weather", {"city": "Paris " * 30}), "Sorry."), llm={"max_new_tokens": 20}
        )
        answer, events = await run(FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming), llm)
        assert str(answer) == "Sorry."
        ((name, arguments, said),) = results(events)
        assert name.startswith("get_weather (not run: ")
        assert arguments == {}
        assert said in member.prompts[-1][-1].content

    async def test_a_tool_that_fails_is_reported_to_the_model(self, streaming):
        llm, member = scripted(taking_turns(call("calculator", {"expression": "?"}), "Sorry."))
        answer, _ = await run(FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming), llm)
        assert str(answer) == "Sorry."
        assert "unpack" in member.prompts[-1][-1].content


async def test_33_an_agent_streams_text_and_calls_without_markup():
    llm, _ = scripted(taking_turns(f"Let me see.\n{WEATHER}", "It is 17 degrees."))
    _, events = await run(FunctionAgent(tools=TOOLS, llm=llm), llm)
    stream = [event for event in events if isinstance(event, AgentStream)]
    assert "".join(event.delta for event in stream) == "Let me see.It is 17 degrees."
    assert [(c.tool_name, c.tool_kwargs) for event in stream for c in event.tool_calls][-1] == (
        "get_weather",
        {"city": "Paris"},
    )


async def test_24_cancelling_a_run_stops_within_a_word():
    llm, member = scripted("word " * 400, steps=3)
    handler = FunctionAgent(tools=TOOLS, llm=llm).run(QUESTION, memory=memory(llm))
    await until(lambda: member.drafts == 3)
    await handler.cancel_run()
    await stopped(*crew(llm))
    assert member.drafts == 3
    assert not llm._running_calls
    with pytest.raises(WorkflowCancelledByUser):
        await handler


class TestReAct:
    @pytest.mark.parametrize("flag", [True, False])
    @pytest.mark.parametrize("streaming", [True, False])
    async def test_38_a_react_agent_acts_and_answers(self, flag, streaming):
        llm, member = scripted(observing(ACTION, ANSWER), llm={"is_function_calling_model": flag})
        answer, events = await run(ReActAgent(tools=TOOLS, llm=llm, streaming=streaming), llm)
        assert str(answer) == "17 degrees."
        assert results(events) == [("get_weather", {"city": "Paris"}, "17 degrees in Paris")]
        assert [turn.role for turn in member.prompts[-1]] == ["system", "user", "assistant", "user"]

    async def test_38_an_unreadable_step_is_requested_again(self):
        replies = iter(["Thought: hm.\nAction: get_weather", ANSWER])
        llm, member = scripted(lambda _: next(replies), members=1)
        answer, _ = await run(ReActAgent(tools=TOOLS, llm=llm), llm)
        assert str(answer) == "17 degrees."
        assert "Error while parsing" in member.prompts[-1][-1].content

    @pytest.mark.parametrize("text", [ACTION, ANSWER])
    def test_the_grammar_allows_what_the_parser_reads(self, text):
        assert react_grammar(TOOLS).guide().after(text).may_end
        assert ReActOutputParser().parse(text)

    @pytest.mark.parametrize(
        ("choice", "text"),
        [("any", ANSWER), ("none", ACTION), ("get_time", ACTION), ("auto", "Fine."), ("auto", ACTION + " ok")],
    )
    def test_the_grammar_allows_nothing_else(self, choice, text):
        assert react_grammar(TOOLS, choice=choice).guide().after(text) is None

    def test_a_tool_that_is_not_there_is_named(self):
        with pytest.raises(ConfigError, match="get_moon"):
            react_grammar(TOOLS, choice="get_moon")


class TestPredictAndCall:
    @pytest.mark.parametrize(("flag", "reply"), [(True, WEATHER), (False, ACTION)])
    async def test_38_tools_are_run_with_and_without_function_calling(self, flag, reply):
        llm, _ = scripted(reply, llm={"is_function_calling_model": flag})
        for answer in (llm.predict_and_call(TOOLS, QUESTION), await llm.apredict_and_call(TOOLS, QUESTION)):
            assert answer.response == "17 degrees in Paris"
            assert [source.tool_name for source in answer.sources] == ["get_weather"]

    async def test_38_a_step_in_plain_text_may_answer(self):
        llm, _ = scripted(ANSWER, llm={"is_function_calling_model": False})
        for answer in (llm.predict_and_call(TOOLS, QUESTION), await llm.apredict_and_call(TOOLS, QUESTION)):
            assert (answer.response, answer.sources) == ("17 degrees.", [])

    @pytest.mark.parametrize("options", [{"tool_required": True}, {"tool_choice": "get_time"}])
    def test_38_a_step_in_plain_text_acts_if_a_call_is_required(self, options):
        llm = AdaFuseLLM(max_new_tokens=48, is_function_calling_model=False, complete_calls=True)
        formatter = ReActChatFormatter(system_header="Use the tools.")
        (ran,) = llm.predict_and_call(TOOLS, QUESTION, react_chat_formatter=formatter, **options).sources
        assert ran.tool_name == options.get("tool_choice", ran.tool_name)

    @pytest.mark.parametrize(
        ("flag", "reply"),
        [
            (True, call("calculator", {"expression": "?"})),
            (False, 'Thought: x\nAction: calculator\nAction Input: {"expression": "?"}'),
        ],
    )
    def test_errors_of_tools_are_results_unless_requested(self, flag, reply):
        llm, _ = scripted(reply, llm={"is_function_calling_model": flag})
        assert "unpack" in llm.predict_and_call(TOOLS, QUESTION).response
        with pytest.raises(ValueError, match="unpack"):
            llm.predict_and_call(TOOLS, QUESTION, error_on_tool_error=True)

    def test_an_unknown_option_raises(self):
        for flag in (True, False):
            llm, _ = scripted(ACTION, llm={"is_function_calling_model": flag})
            with pytest.raises(ConfigError, match="colour"):
                llm.predict_and_call(TOOLS, QUESTION, colour="red")

    def test_a_custom_formatter_and_parser_are_used(self):
        llm, member = scripted(ANSWER, llm={"is_function_calling_model": False})
        formatter = ReActChatFormatter(system_header="Tools: {tool_names}")
        llm.predict_and_call(TOOLS, QUESTION, react_chat_formatter=formatter, output_parser=ReActOutputParser())
        assert member.prompts[0][0].content == "Tools: get_weather, calculator, get_time"


class TestWorkflow:
    @pytest.mark.parametrize(
        ("flag", "kind", "reply"),
        [
            (True, FunctionAgent, taking_turns(WEATHER, "17 degrees.")),
            (False, ReActAgent, observing(ACTION, ANSWER)),
        ],
    )
    async def test_38_a_workflow_takes_the_agent_that_suits(self, flag, kind, reply):
        llm, _ = scripted(reply, llm={"is_function_calling_model": flag})
        workflow = AgentWorkflow.from_tools_or_functions(TOOLS, llm=llm)
        assert type(next(iter(workflow.agents.values()))) is kind
        answer, events = await run(workflow, llm)
        assert str(answer) == "17 degrees."
        assert [name for name, _, _ in results(events)] == ["get_weather"]


CHOSEN = {"index": 2, "reason": "It fits."}


def engines(llm):
    """Two query engines as tools."""
    for name in ("rivers", "towns"):
        retriever = BM25Retriever.from_defaults(nodes=[TextNode(text=f"All about {name}.")], similarity_top_k=1)
        engine = RetrieverQueryEngine.from_args(retriever, llm=llm)
        yield QueryEngineTool.from_defaults(engine, name=name, description=f"About {name}.")


class TestRouter:
    @pytest.mark.parametrize(
        ("flag", "choice"),
        [(True, call("SingleSelection", CHOSEN)), (False, json.dumps([{"choice": 2, "reason": "It fits."}]))],
    )
    async def test_38_a_router_chooses_with_and_without_function_calling(self, flag, choice):
        llm, _ = scripted(
            lambda prompt: "Paris." if "All about" in prompt[-1].content else choice,
            context_window=4096,
            llm={"is_function_calling_model": flag, "max_new_tokens": 64},
        )
        router = RouterQueryEngine.from_defaults(list(engines(llm)), llm=llm)
        for answer in (router.query("Which town?"), await router.aquery("Which town?")):
            assert str(answer) == "Paris."
            assert answer.metadata["selector_result"].ind == 1

    async def test_a_choice_by_tool_call_is_one_of_the_choices(self):
        llm, _ = scripted(call("towns", {}))
        choices = [ToolMetadata(name=name, description="x") for name in ("rivers", "towns")]
        selector = ToolCallSelector(llm)
        assert selector.select(choices, "Which town?").ind == 1
        assert (await selector.aselect(choices, "Which town?")).ind == 1

    def test_choices_without_a_name_get_one(self):
        llm, member = scripted(call("choice_2", {}))
        for name in (None, "query_engine_tool"):  # the name that LlamaIndex gives to tools without one
            choices = [ToolMetadata(name=name, description=text) for text in ("rivers", "towns")]
            assert ToolCallSelector(llm).select(choices, "Which town?").ind == 1
        assert len(member.prompts) == 2


@pytest.fixture(scope="module")
def llm():
    return AdaFuseLLM(max_new_tokens=64)


class TestSmallModels:
    """Agents with the two small models instead of scripted members."""

    @pytest.mark.parametrize("streaming", [True, False])
    async def test_32_a_function_agent_makes_two_calls_and_answers(self, llm, streaming):
        agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming)
        answer, events = await run(agent, llm, "What is the weather in Paris and what is 12 times 7?")
        assert [arguments for _, arguments, _ in results(events)] == [{"city": "Paris"}, {"expression": "12 * 7"}]
        assert "17 degrees" in str(answer)
        assert "84" in str(answer)

    @pytest.mark.parametrize("streaming", [True, False])
    async def test_32_the_first_tool_is_called_whatever_is_asked(self, llm, streaming):
        agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming, initial_tool_choice="get_time")
        _, events = await run(agent, llm, "What is the weather in Paris?")
        assert results(events) == [("get_time", {"city": "Paris"}, "14:05")]

    async def test_32_a_workflow_answers(self, llm):
        workflow = AgentWorkflow.from_tools_or_functions(TOOLS, llm=llm)
        answer, _ = await run(workflow, llm, "What time is it in Oslo?")
        assert str(answer) == "It is 14:05 in Oslo."

    async def test_38_the_grammar_enforces_the_form_of_react_steps(self, llm):
        tools = [FunctionTool.from_defaults(fn, return_direct=True) for fn in (get_weather, get_time)]
        steps = llm.model_copy(update={"grammar": react_grammar(tools, choice="any")})
        formatter = ReActChatFormatter(system_header="Use the tools when they help.")
        answer, events = await run(
            ReActAgent(tools=tools, llm=steps, formatter=formatter), llm, "What time is it in Oslo?"
        )
        assert str(answer) == "14:05"
        assert results(events) == [("get_time", {"city": "Oslo"}, "14:05")]

    @pytest.mark.parametrize(
        ("question", "chosen"),
        [
            ("What time is it in Rome?", "get_time"),
            ("How warm is it in Madrid?", "get_weather"),
            ("6 times 9?", "calculator"),
        ],
    )
    def test_38_a_router_is_right(self, llm, question, chosen):
        choices = [tool.metadata for tool in TOOLS]
        assert choices[ToolCallSelector(llm).select(choices, question).ind].name == chosen

    async def test_38_a_router_chooses_even_if_nothing_fits(self, llm):
        choices, selector = [tool.metadata for tool in TOOLS], ToolCallSelector(llm)
        assert selector.select(choices, "Hello!").ind == (await selector.aselect(choices, "Hello!")).ind


async def test_a_chat_engine_and_an_agent_share_one_llm():
    llm, _ = scripted(lambda prompt: "Fine." if prompt[-1].content == "How are you?" else WEATHER)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory(llm))
    assert str(engine.chat("How are you?")) == "Fine."
    assert llm.predict_and_call(TOOLS, QUESTION, chat_history=engine.chat_history).response == "17 degrees in Paris"
