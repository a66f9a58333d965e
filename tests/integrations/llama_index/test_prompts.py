"""The members' prompts: chat templates, system prompts and custom prompt functions, each applied once."""

from __future__ import annotations

import contextlib

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from transformers import AutoTokenizer

from adafuse_core import ConfigError, Ensemble, Message, PromptError, ScriptedMember, TemplateError, ToolCall
from adafuse_integrations.llama_index import AdaFuseLLM
from adafuse_integrations.llama_index.messages import to_message, to_messages
from tests.integrations.llama_index.conftest import ENDPOINTS, memory, respond, scripted

COMPLETIONS = [name for name in ENDPOINTS if "complete" in name]
CHATS = [name for name in ENDPOINTS if "chat" in name]


def said(prompt):
    """A prompt as pairs of role and content, or as text."""
    return prompt if isinstance(prompt, str) else [(turn.role, turn.content) for turn in prompt]


@pytest.mark.parametrize("endpoint", COMPLETIONS)
class TestCompletions:
    @pytest.mark.parametrize("formatted", [True, False])
    async def test_content_other_than_text_is_refused(self, endpoint, formatted):
        llm, member = scripted("yes")
        with pytest.raises(PromptError, match="got 3 as a prompt, expected text"):
            await respond(llm, endpoint, 3, formatted=formatted)
        assert member.prompts == []

    async def test_13_a_prompt_is_one_user_turn(self, endpoint):
        llm, member = scripted("yes")
        await respond(llm, endpoint, "Which?")
        assert said(member.prompts[0]) == [("user", "Which?")]

    async def test_13_a_formatted_prompt_is_sent_unchanged(self, endpoint):
        llm, member = scripted("yes", llm={"system_prompt": "S"})
        await respond(llm, endpoint, "[INST] Which? [/INST]", formatted=True)
        assert member.prompts == ["[INST] Which? [/INST]"]

    async def test_without_chat_templates_a_prompt_is_plain_text(self, endpoint):
        llm, member = scripted("yes", chat=False)
        await respond(llm, endpoint, "Once upon")
        assert member.prompts == ["Once upon"]

    async def test_a_prompt_is_plain_text_if_any_member_lacks_a_template(self, endpoint):
        cast = [ScriptedMember(name="a", reply="yes"), ScriptedMember(name="b", reply="yes", chat=False)]
        await respond(AdaFuseLLM.from_ensemble(Ensemble(members=cast)), endpoint, "Once upon")
        assert [member.prompts for member in cast] == [["Once upon"]] * 2

    async def test_a_prompt_is_plain_text_if_the_llm_is_not_a_chat_model(self, endpoint):
        llm, member = scripted("yes", llm={"is_chat_model": False, "system_prompt": "S"})
        await respond(llm, endpoint, "Once upon")
        assert member.prompts == ["S\n\nOnce upon"]

    async def test_a_wrapper_of_queries_is_applied_once(self, endpoint):
        wrapper = PromptTemplate("<{query_str}>")
        for chat, expected in ((True, [("user", "<Which?>")]), (False, "<Which?>")):
            llm, member = scripted("yes", llm={"query_wrapper_prompt": wrapper, "is_chat_model": chat})
            await respond(llm, endpoint, "Which?")
            assert said(member.prompts[0]) == expected
        llm, _ = scripted("yes", llm={"query_wrapper_prompt": wrapper, "completion_to_prompt": lambda text: text})
        with pytest.raises(ConfigError, match="leave one of them out"):
            await respond(llm, endpoint, "Which?")

    async def test_15_a_custom_completion_to_prompt_writes_the_whole_prompt_once(self, endpoint):
        llm, member = scripted("yes", llm={"completion_to_prompt": lambda text: f"<{text}>", "system_prompt": "S"})
        await respond(llm, endpoint, "Which?")
        await respond(llm, endpoint, "<done>", formatted=True)
        assert member.prompts == ["<Which?>", "<done>"]

    async def test_15_a_custom_messages_to_prompt_writes_the_turn(self, endpoint):
        llm, member = scripted("yes", llm={"messages_to_prompt": lambda messages: f"<{messages[0].content}>"})
        await respond(llm, endpoint, "Which?")
        assert member.prompts == ["<Which?>"]


@pytest.mark.parametrize("endpoint", CHATS)
class TestChats:
    async def test_11_members_get_messages(self, endpoint):
        llm, member = scripted("yes")
        await respond(llm, endpoint, [ChatMessage(role="system", content="S"), ChatMessage(content="U")])
        assert said(member.prompts[0]) == [("system", "S"), ("user", "U")]

    async def test_15_a_custom_messages_to_prompt_is_used_once(self, endpoint):
        def write(messages):
            return "|".join(f"{message.role.value}={message.content}" for message in messages)

        llm, member = scripted("yes", llm={"messages_to_prompt": write, "system_prompt": "S"})
        await respond(llm, endpoint, "Which?")
        assert member.prompts == ["system=S|user=Which?"]

    async def test_an_llm_that_is_not_a_chat_model_converts_messages_to_text(self, endpoint):
        llm, member = scripted("yes", chat=False, llm={"is_chat_model": False})
        await respond(llm, endpoint, "Which?")
        assert member.prompts == ["user: Which?\nassistant: "]

    async def test_members_without_templates_are_an_error_that_says_what_to_do(self, endpoint):
        llm, _ = scripted("yes", chat=False)
        with pytest.raises(TemplateError, match="is_chat_model=False"):
            await respond(llm, endpoint)

    async def test_17_the_system_prompt_opens_a_conversation_once(self, endpoint):
        llm, member = scripted("yes", llm={"system_prompt": "S"})
        await respond(llm, endpoint, "U")
        await respond(llm, endpoint, [ChatMessage(role="system", content="S"), ChatMessage(content="U")])
        await respond(llm, endpoint, [ChatMessage(role="system", content="T"), ChatMessage(content="U")])
        assert [said(prompt) for prompt in member.prompts] == [
            [("system", "S"), ("user", "U")],
            [("system", "S"), ("user", "U")],
            [("system", "S"), ("system", "T"), ("user", "U")],
        ]

    async def test_an_empty_conversation_is_refused(self, endpoint):
        llm, _ = scripted("yes")
        with pytest.raises(PromptError, match="empty"):
            await respond(llm, endpoint, [])


def test_17_predict_and_engines_do_not_double_the_system_prompt():
    llm, member = scripted("yes", llm={"system_prompt": "S"})
    llm.predict(PromptTemplate("Ask {it}"), it="this")
    "".join(llm.stream(PromptTemplate("Ask {it}"), it="this"))
    SimpleChatEngine.from_defaults(llm=llm, memory=memory(llm)).chat("Ask this")
    SimpleChatEngine.from_defaults(llm=llm, system_prompt="S", memory=memory(llm)).chat("Ask this")
    llm.complete("Ask this")
    assert [said(prompt) for prompt in member.prompts] == [[("system", "S"), ("user", "Ask this")]] * 5


def test_15_predict_without_chat_writes_each_custom_prompt_once():
    options = {"is_chat_model": False, "completion_to_prompt": lambda text: f"<{text}>"}
    llm, member = scripted("yes", llm=options)
    llm.predict(PromptTemplate("Ask {it}"), it="this")
    "".join(llm.stream(PromptTemplate("Ask {it}"), it="this"))
    assert member.prompts == ["<Ask this>"] * 2


ROLES = {
    "two systems": [("system", "S1"), ("system", "S2"), ("user", "U")],
    "trailing system": [("user", "U"), ("system", "S1")],
    "developer": [("developer", "S1"), ("user", "U")],
    "retry": [("system", "S1"), ("user", "U"), ("user", "V"), ("assistant", "A"), ("user", "W")],
    "empty assistant": [("user", "U"), ("assistant", ""), ("user", "V")],
    "assistant first": [("assistant", "A"), ("user", "U")],
    "tool": [("user", "U"), ("assistant", "A"), ("tool", "result"), ("user", "V")],
    "chatbot": [("user", "U"), ("chatbot", "A"), ("user", "V")],
}


@pytest.mark.parametrize("roles", ROLES.values(), ids=ROLES)
def test_16_every_order_of_roles_renders_whole_on_templates_that_alternate(pair, roles):
    llm = AdaFuseLLM(members=pair, max_new_tokens=2)
    messages = [ChatMessage(role=role, content=content) for role, content in roles]
    for folder, ids in zip(pair, prompt_ids(llm, lambda llm: llm.chat(messages)), strict=True):
        shown = AutoTokenizer.from_pretrained(folder).decode(ids)
        assert all(content in shown for _, content in roles)


def test_11_each_member_reads_its_own_template(pair):
    llm = AdaFuseLLM(members=pair, max_new_tokens=2)
    ids = prompt_ids(llm, lambda llm: llm.chat([ChatMessage(content="Which?")]))
    shown = [AutoTokenizer.from_pretrained(folder).decode(each) for folder, each in zip(pair, ids, strict=True)]
    assert shown == ["<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n", "<s>[INST] Which? [/INST]"]


def prompt_ids(llm, ask):
    """The prompt's token ids that each member's model reads in a call."""
    seen = []

    def spying(plain):
        return lambda ids, **options: seen.append(ids) or plain(ids, **options)

    with contextlib.ExitStack() as undone:
        for member in llm.ensemble.members:
            undone.callback(setattr, member.backend, "open", member.backend.open)
            member.backend.open = spying(member.backend.open)
        ask(llm)
    return seen


def ask_with_own_template(llm):
    llm.messages_to_prompt = lambda messages: f"<s>[INST] {messages[-1].content} [/INST]"
    llm.chat([ChatMessage(content="Which?")])


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.chat([ChatMessage(content="Which?")]),
        lambda llm: llm.complete("Which?"),
        lambda llm: llm.complete("Once upon", formatted=True),
        pytest.param(
            ask_with_own_template,
            id="own template",
        ),
    ],
)
def test_12_the_start_token_occurs_once_if_a_member_has_one(pair, ask):
    llm = AdaFuseLLM(members=pair, max_new_tokens=2)
    pieces = prompt_ids(llm, ask)[1]
    start = AutoTokenizer.from_pretrained(pair[1]).bos_token_id
    assert pieces.count(start) == 1
    assert pieces[0] == start


def test_14_complete_and_stream_complete_have_the_same_prompt(pair):
    llm = AdaFuseLLM(members=pair, max_new_tokens=2, system_prompt="S")
    first = prompt_ids(llm, lambda llm: llm.complete("Which?"))
    assert prompt_ids(llm, lambda llm: list(llm.stream_complete("Which?"))) == first


class TestMessages:
    def test_text_blocks_are_joined_as_llama_index_does(self):
        message = ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text="b")])
        assert to_message(message).content == message.content == "a\nb"

    def test_tool_calls_come_from_blocks(self):
        call = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"a": 1})
        message = ChatMessage(role="assistant", blocks=[TextBlock(text="Wait."), call])
        assert to_message(message) == Message(
            role="assistant", content="Wait.", tool_calls=(ToolCall(name="add", arguments={"a": 1}, id="1"),)
        )

    def test_tool_calls_come_from_additional_kwargs_in_older_code(self):
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        message = ChatMessage(role="assistant", content=None, additional_kwargs={"tool_calls": [call]})
        assert to_message(message).tool_calls == (ToolCall(name="add", arguments={"a": 1}, id="1"),)

    def test_calls_in_both_places_count_once(self):
        block = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={})
        call = {"id": "1", "function": {"name": "add", "arguments": {}}}
        message = ChatMessage(role="assistant", blocks=[block], additional_kwargs={"tool_calls": [call]})
        assert len(to_message(message).tool_calls) == 1

    def test_tool_results_keep_their_call(self):
        message = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "1", "name": "add"})
        assert to_message(message) == Message(role="tool", content="3", tool_call_id="1", name="add")

    def test_tool_results_are_named_after_the_call_that_they_answer(self):
        call = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={})
        result = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "1"})
        turns = to_messages([ChatMessage(role="assistant", blocks=[call]), result])
        assert turns[1] == Message(role="tool", content="3", tool_call_id="1", name="add")

    @pytest.mark.parametrize(
        ("written", "read"),
        [('{"a": 1}', {"a": 1}), ('{"a": ', {"unfinished": '{"a": '}), ("[1]", {"unfinished": "[1]"})],
    )
    def test_incomplete_arguments_are_kept_as_text(self, written, read):
        call = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs=written)
        turn = to_message(ChatMessage(role="assistant", blocks=[call]))
        assert turn.tool_calls == (ToolCall(name="add", arguments=read, id="1"),)

    def test_other_additional_kwargs_are_not_in_the_prompt(self):
        assert to_message(ChatMessage(content="a", additional_kwargs={"trace": 1})) == Message(role="user", content="a")

    def test_citation_blocks_become_text_and_thinking_is_dropped(self):
        blocks = [
            ThinkingBlock(content="hm"),
            CitableBlock(title="t", source="s", content="quoted"),
            CachePoint(cache_control={"type": "ephemeral"}),
        ]
        assert to_message(ChatMessage(blocks=blocks)).content == "quoted"

    @pytest.mark.parametrize(
        "block", [ImageBlock(image=b"x"), AudioBlock(audio=b"x"), DocumentBlock(data=b"x", title="t")]
    )
    @pytest.mark.parametrize("chat", [True, False])
    def test_content_other_than_text_is_refused(self, block, chat):
        llm, _ = scripted("yes", llm={"is_chat_model": chat})
        with pytest.raises(ValueError, match=rf"type '{block.block_type}', expected text"):
            llm.chat([ChatMessage(blocks=[TextBlock(text="What is this?"), block])])

    def test_values_other_than_messages_are_refused(self):
        with pytest.raises(PromptError, match="expected a ChatMessage"):
            to_message({"role": "user", "content": "a"})
