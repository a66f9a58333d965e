"""Both adapters: conversations in any order, calls in any form, and token counts of any conversation."""

from __future__ import annotations

import json
from typing import Annotated, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import (
    ChatMessage as IndexMessage,
)
from llama_index.core.base.llms.types import ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer

from adafuse_core import Ensemble, PromptError, ToolCall
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.members.scripted import ScriptedMember
from adafuse_integrations.langchain import AdaFuseLLM as LangChainLLM
from adafuse_integrations.langchain import ChatAdaFuse
from adafuse_integrations.llama_index import AdaFuseLLM
from tests import tiny
from tests.chat.model_templates import MODELS
from tests.integrations.langchain.conftest import get_weather
from tests.integrations.llama_index.conftest import TOOLS

pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
ARGUMENTS = {"city": "Oslo"}
BARE = f'{{"name": "get_weather", "arguments": {json.dumps(ARGUMENTS)}}}'
FORMS = {
    "bare": BARE,
    "parameters": BARE.replace("arguments", "parameters"),
    "a list": f"[{BARE}]",
    "fenced": f"```json\n{BARE}\n```",
    "fenced, no language": f"```\n{BARE}\n```\n",
    "tool_call fence": f"```tool_call\n{BARE}\n```",
    "tagged": DIALECTS["hermes"].write([ToolCall(name="get_weather", arguments=ARGUMENTS)]),
    "Llama": f"<|python_tag|>{BARE.replace('arguments', 'parameters')}",
    "Llama, named": f"<function=get_weather>{json.dumps(ARGUMENTS)}</function>",
    "Mistral": f"[TOOL_CALLS][{BARE}]",
    "Mistral, named": f"[TOOL_CALLS]get_weather[ARGS]{json.dumps(ARGUMENTS)}",
}


def members(reply, **options):
    return Ensemble(members=[ScriptedMember(name, reply, **options) for name in ("left", "right")])


def after_a_result(first, then):
    return lambda prompt: then if any(turn.role == "tool" for turn in prompt) else first


# -- calls in any form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_an_agent_of_langchain_runs_calls_in_every_form(form):
    llm = ChatAdaFuse.from_ensemble(members(after_a_result(FORMS[form], "Rainy.")))
    messages = create_agent(llm, [get_weather]).invoke({"messages": [HumanMessage("Weather in Oslo?")]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert [(call["name"], call["args"]) for call in messages[1].tool_calls] == [("get_weather", ARGUMENTS)]
    assert (messages[1].text, messages[-1].text) == ("", "Rainy.")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("form", FORMS)
async def test_an_agent_of_llama_index_runs_calls_in_every_form(form, streaming):
    llm = AdaFuseLLM.from_ensemble(members(after_a_result(FORMS[form], "Rainy.")))
    handler = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming).run(
        "Weather in Oslo?", memory=ChatMemoryBuffer.from_defaults(llm=llm)
    )
    ran = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert [(event.tool_name, event.tool_kwargs) for event in ran] == [("get_weather", ARGUMENTS)]
    assert str(await handler) == "Rainy."


def test_streams_of_both_adapters_show_no_text_of_such_a_call():
    ensemble = members(FORMS["fenced"])
    bound = ChatAdaFuse.from_ensemble(ensemble).bind_tools([get_weather])
    chunks = list(bound.stream("Weather in Oslo?"))
    assert "".join(chunk.text for chunk in chunks) == ""
    assert sum(chunks[1:], chunks[0]).tool_calls[0]["args"] == ARGUMENTS
    llm = AdaFuseLLM.from_ensemble(ensemble)
    responses = list(llm.stream_chat_with_tools(TOOLS, "Weather in Oslo?"))
    assert "".join(response.delta or "" for response in responses) == ""
    assert llm.get_tool_calls_from_response(responses[-1])[0].tool_kwargs == ARGUMENTS


@pytest.mark.parametrize("where", ["the model", "the call"])
def test_without_lenient_tool_calls_such_an_answer_is_text(where):
    ensemble, off = members(BARE), {"lenient_tool_calls": False}
    own, of_the_call = (off, {}) if where == "the model" else ({}, off)
    bound = ChatAdaFuse.from_ensemble(ensemble, **own).bind_tools([get_weather])
    answer = bound.invoke("Weather?", **of_the_call)
    assert (answer.text, answer.tool_calls) == (BARE, [])
    llm = AdaFuseLLM.from_ensemble(ensemble, **own)
    response = llm.chat_with_tools(TOOLS, "Weather?", **of_the_call)
    assert response.message.content == BARE


def test_a_model_that_repeats_itself_calls_once_in_both_adapters():
    ensemble = members(FORMS["tagged"] + "\n", ends_answer=False)
    answer = ChatAdaFuse.from_ensemble(ensemble).bind_tools([get_weather], tool_choice="any").invoke("Weather?")
    assert [call["args"] for call in answer.tool_calls] == [ARGUMENTS]
    assert (answer.invalid_tool_calls, answer.response_metadata["finish_reason"]) == ([], "tool_calls")
    llm = AdaFuseLLM.from_ensemble(ensemble)
    response = llm.chat_with_tools(TOOLS, "Weather?", tool_required=True, allow_parallel_tool_calls=True)
    assert [call.tool_kwargs for call in llm.get_tool_calls_from_response(response)] == [ARGUMENTS]
    assert response.raw["finish_reason"] == "tool_calls"


# -- histories ---------------------------------------------------------------------------------------------------------


class State(TypedDict):
    messages: Annotated[list, add_messages]


def test_two_agents_of_a_graph_answer_one_after_the_other():
    ensemble = members(lambda prompt: f"I am number {sum(turn.role == 'assistant' for turn in prompt)}.")
    graph = StateGraph(State)
    for name in ("first", "second"):
        graph.add_node(name, create_agent(ChatAdaFuse.from_ensemble(ensemble), [get_weather], name=name))
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    graph.add_edge("second", END)
    messages = graph.compile().invoke({"messages": [HumanMessage("Who are you?")]})["messages"]
    assert [message.text for message in messages[1:]] == ["I am number 0.", "I am number 1."]


LANGCHAIN = {
    "the assistant last": [HumanMessage("u"), AIMessage("a")],
    "two assistants": [HumanMessage("u"), AIMessage("a", name="one"), AIMessage("b", name="two")],
    "only the assistant": [AIMessage("a")],
    "only a system": [SystemMessage("s")],
    "systems in the middle": [HumanMessage("u"), SystemMessage("s"), AIMessage("a"), SystemMessage("t")],
    "a result without a call": [HumanMessage("u"), ToolMessage("r", tool_call_id="x")],
    "a call without a result": [
        HumanMessage("u"),
        AIMessage("", tool_calls=[{"name": "f", "args": {"on": True}, "id": "call_1"}]),
        HumanMessage("v"),
    ],
    "empty messages": [HumanMessage("u"), AIMessage(""), HumanMessage(""), AIMessage("")],
    "old function calls": [
        HumanMessage("u"),
        AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}),
        FunctionMessage("r", name="f"),
    ],
    "other roles": [ChatMessage("d", role="developer"), ChatMessage("m", role="model")],
}
LLAMA_INDEX = {
    "the assistant last": [IndexMessage("u"), IndexMessage("a", role="assistant")],
    "only the assistant": [IndexMessage("a", role="assistant")],
    "only a system": [IndexMessage("s", role="system")],
    "systems in the middle": [IndexMessage("u"), IndexMessage("s", role="system"), IndexMessage("a", role="assistant")],
    "a result without a call": [
        IndexMessage("u"),
        IndexMessage("r", role="tool", additional_kwargs={"tool_call_id": "x"}),
    ],
    "a call without a result": [
        IndexMessage("u"),
        IndexMessage(
            role=MessageRole.ASSISTANT,
            blocks=[ToolCallBlock(tool_call_id="call_1", tool_name="f", tool_kwargs={"on": True})],
        ),
        IndexMessage("v"),
    ],
    "empty messages": [IndexMessage("u"), IndexMessage("", role="assistant"), IndexMessage("")],
    "other roles": [IndexMessage("d", role="developer"), IndexMessage("m", role="model")],
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """Real members whose chat templates differ most in the roles that they accept."""
    folder = tmp_path_factory.mktemp("templates")
    paths = []
    for name in ("mistral", "gemma", "hermes"):
        tokenizer = tiny.byte_level()
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.chat_template = MODELS[name]
        paths.append(str(tiny.save_tiny(folder / name, tokenizer)))
    return Ensemble({"members": paths, "generation": {"max_new_tokens": 2}})


@pytest.mark.parametrize("history", LANGCHAIN)
def test_langchain_answers_every_order_of_roles(history, templates):
    llm = ChatAdaFuse.from_ensemble(templates)
    answer = llm.invoke(LANGCHAIN[history])
    assert answer.usage_metadata["output_tokens"] > 0
    counted = llm.get_num_tokens_from_messages(LANGCHAIN[history])
    usage = answer.response_metadata["adafuse"]["usage"]
    assert counted == max(usage["prompt_tokens"].values())


@pytest.mark.parametrize("history", LLAMA_INDEX)
def test_llama_index_answers_every_order_of_roles(history, templates):
    response = AdaFuseLLM.from_ensemble(templates).chat(LLAMA_INDEX[history])
    assert response.raw["usage"]["completion_tokens"] > 0


def test_both_adapters_can_continue_the_last_message():
    seen = []
    ensemble = members(lambda prompt: seen.append(prompt[-1].content) or "and so on")
    on = {"continue_final_message": True}
    turns = [HumanMessage("Tell."), AIMessage("Once upon")]
    assert ChatAdaFuse.from_ensemble(ensemble).invoke(turns, **on).text == "and so on"
    assert AdaFuseLLM.from_ensemble(ensemble).chat(LLAMA_INDEX["the assistant last"], **on).message.content
    assert set(seen) == {"Once upon", "a"}
    with pytest.raises(PromptError, match="continue_final_message"):
        ChatAdaFuse.from_ensemble(ensemble, **on).invoke("Tell.")
    with pytest.raises(PromptError, match="continue_final_message"):
        AdaFuseLLM.from_ensemble(ensemble).chat([IndexMessage("Tell.")], **on)


# -- counting ----------------------------------------------------------------------------------------------------------

UNANSWERABLE = {
    "empty": [HumanMessage("")],
    "empty assistant": [AIMessage("")],
    "image": [HumanMessage([{"type": "text", "text": "What is it?"}, IMAGE])],
    "only an image": [HumanMessage([IMAGE])],
    "image of a tool": [ToolMessage([{"type": "text", "text": "a map"}, IMAGE], tool_call_id="x")],
    "data": [HumanMessage([{"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}])],
    "unknown role": [ChatMessage("hm", role="critic")],
    "half a character": [HumanMessage("half \ud83d")],
    "a result in a system message": [SystemMessage([{"type": "tool_result", "content": "r", "tool_use_id": "x"}])],
}


@pytest.mark.parametrize("history", [*LANGCHAIN, *UNANSWERABLE])
@pytest.mark.parametrize("kind", [ChatAdaFuse, LangChainLLM])
def test_langchain_counts_conversations_that_it_could_not_answer(history, kind):
    messages = LANGCHAIN.get(history) or UNANSWERABLE[history]
    llm = kind()
    assert llm.get_num_tokens_from_messages(messages) > 0
    assert llm.get_num_tokens_from_messages([]) == 0
    for strategy in ("first", "last"):
        assert trim_messages(messages, max_tokens=10_000, strategy=strategy, token_counter=llm) == messages


@pytest.mark.parametrize("template", MODELS)
def test_counting_works_with_every_template(template, tmp_path):
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = MODELS[template]
    tiny.save_tiny(tmp_path / "m", tokenizer)
    llm = ChatAdaFuse(members=[str(tmp_path / "m")])
    assert all(llm.get_num_tokens_from_messages(messages) > 0 for messages in {**LANGCHAIN, **UNANSWERABLE}.values())


def test_more_text_is_more_tokens_beside_an_image():
    llm = ChatAdaFuse()
    counts = [
        llm.get_num_tokens_from_messages([HumanMessage([{"type": "text", "text": "word " * size}, IMAGE])])
        for size in (1, 5, 50)
    ]
    assert counts == sorted(counts)
    plain = llm.get_num_tokens_from_messages([HumanMessage("word " * 50)])
    assert counts[-1] == plain


def test_members_without_a_template_count_messages_as_text(tmp_path):
    tiny.save_tiny(tmp_path / "bare", tiny.byte_level(chat=False))
    llm = ChatAdaFuse(members=[str(tmp_path / "bare")])
    short, long = (llm.get_num_tokens_from_messages([HumanMessage(text)]) for text in ("one", "one two three"))
    assert 0 < short < long


def test_trimming_keeps_what_fits():
    llm = ChatAdaFuse()
    messages = [HumanMessage("Hello there, how are you?"), AIMessage("")]
    assert trim_messages(messages, max_tokens=10, strategy="last", token_counter=llm) == messages[1:]


def test_memories_of_llama_index_count_any_message():
    llm = AdaFuseLLM.from_ensemble(members("A summary."))
    odd = [
        IndexMessage(""),
        IndexMessage("a", role="assistant"),
        IndexMessage(
            role=MessageRole.USER, blocks=[TextBlock(text="see"), ImageBlock(url="https://example.org/x.png")]
        ),
        IndexMessage("r", role="tool", additional_kwargs={"tool_call_id": "x"}),
        *LLAMA_INDEX["a call without a result"],
        IndexMessage("half \ud83d"),
    ]
    for memory in (
        ChatMemoryBuffer.from_defaults(token_limit=100, tokenizer_fn=llm.tokenizer_fn),
        ChatSummaryMemoryBuffer.from_defaults(llm=llm, token_limit=100, tokenizer_fn=llm.tokenizer_fn),
    ):
        for message in odd:
            memory.put(message)
            assert isinstance(memory.get(), list)
    assert llm.tokenizer_fn("") == []


def test_the_core_counts_conversations_that_it_could_not_answer():
    ensemble = Ensemble()
    for messages in (
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}],
        [{"role": "critic", "content": "x"}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "tool", "content": "x"}],
    ):
        assert all(count > 0 for count in ensemble.count_tokens(messages).values())
    assert set(ensemble.count_tokens([]).values()) == {0}
    assert all(count > 0 for count in ensemble.count_tokens("half \ud83d").values())
    with pytest.raises(PromptError, match="expected a dict"):
        ensemble.count_tokens([3])
