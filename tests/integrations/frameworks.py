"""LangChain and LlamaIndex behind one face, so that one test can ask both adapters the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import StructuredTool
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool

from adafuse_core import Ensemble
from adafuse_integrations.langchain import ChatAdaFuse
from adafuse_integrations.llama_index import AdaFuseLLM


@dataclass(frozen=True)
class Answer:
    """What both frameworks tell of an answer."""

    text: str
    thought: str
    calls: list[tuple[str, dict]]
    invalid: list[str]
    usage: tuple[int, int]  # tokens read and written, of the first member
    by_member: dict[str, tuple[int, int]]
    reason: str
    stop: str | None
    rounds: Any
    metadata: dict[str, Any] = field(repr=False)


class Framework:
    """What both adapters can do. A conversation is a list of roles and texts, or one question."""

    def on(self, *members, **options):
        """A model on ready-made members."""
        return self.kind.from_ensemble(Ensemble(members=members), **{"max_new_tokens": None, **options})

    def ask(self, llm, conversation="Which city?", **options):
        """The whole answer of a call that blocks."""
        return self.read(self.whole(llm, self.messages(conversation), self.options(options)))

    async def aask(self, llm, conversation="Which city?", **options):
        """The whole answer of a call that is awaited."""
        return self.read(await self.awhole(llm, self.messages(conversation), self.options(options)))

    def stream(self, llm, conversation="Which city?", **options):
        """Pieces of text, as they come."""
        return self.deltas(llm, self.messages(conversation), self.options(options))

    def astream(self, llm, conversation="Which city?", **options):
        """The same on an event loop."""
        return self.adeltas(llm, self.messages(conversation), self.options(options))

    def options(self, options):
        """Options of a call; functions among the tools become what the framework calls tools."""
        if "tools" not in options:
            return options
        return {**options, "tools": [self.tool(tool) if callable(tool) else tool for tool in options["tools"]]}

    async def answers(self, llm, conversation="Which city?", **options):
        """The texts of all four ways to ask."""
        return [
            self.ask(llm, conversation, **options).text,
            (await self.aask(llm, conversation, **options)).text,
            "".join(self.stream(llm, conversation, **options)),
            "".join([piece async for piece in self.astream(llm, conversation, **options)]),
        ]


class LangChain(Framework):
    """`ChatAdaFuse`."""

    kind = ChatAdaFuse
    name = "langchain"

    def messages(self, conversation):
        if isinstance(conversation, str):
            return [HumanMessage(conversation)]
        kinds = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
        made = []
        for role, *content in conversation:
            if role == "call":
                call, name, arguments = content
                made.append(AIMessage("", tool_calls=[{"id": call, "name": name, "args": arguments}]))
            elif role == "result":
                made.append(ToolMessage(content[1], tool_call_id=content[0]))
            else:
                made.append(kinds[role](content[0]))
        return made

    def tool(self, function):
        return StructuredTool.from_function(function)

    def _bound(self, llm, options):
        names = ("tools", "tool_choice", "parallel_tool_calls")
        bound = {name: options.pop(name) for name in names if name in options}
        return llm.bind_tools(bound.pop("tools"), **bound) if bound else llm

    def whole(self, llm, messages, options):
        return self._bound(llm, options).invoke(messages, **options)

    async def awhole(self, llm, messages, options):
        return await self._bound(llm, options).ainvoke(messages, **options)

    def deltas(self, llm, messages, options):
        for chunk in self._bound(llm, options).stream(messages, **options):
            if chunk.text:
                yield chunk.text

    async def adeltas(self, llm, messages, options):
        async for chunk in self._bound(llm, options).astream(messages, **options):
            if chunk.text:
                yield chunk.text

    def read(self, message):
        told = message.response_metadata
        usage, by_member = message.usage_metadata, told["adafuse"]["usage"]
        return Answer(
            text=message.text,
            thought=message.additional_kwargs.get("reasoning_content", ""),
            calls=[(call["name"], call["args"]) for call in message.tool_calls],
            invalid=[call["error"] for call in message.invalid_tool_calls],
            usage=(usage["input_tokens"], usage["output_tokens"]),
            by_member={
                name: (read, by_member["completion_tokens"][name]) for name, read in by_member["prompt_tokens"].items()
            },
            reason=told["finish_reason"],
            stop=told["stop"],
            rounds=told["adafuse"].get("rounds"),
            metadata=told["adafuse"],
        )

    def objects(self, llm, schema, question="Which city?"):
        return llm.with_structured_output(schema).invoke(question)

    async def aobjects(self, llm, schema, question="Which city?"):
        return await llm.with_structured_output(schema).ainvoke(question)

    def count(self, llm, conversation):
        return llm.get_num_tokens_from_messages(self.messages(conversation))


class LlamaIndex(Framework):
    """`AdaFuseLLM` of LlamaIndex."""

    kind = AdaFuseLLM
    name = "llama_index"

    def messages(self, conversation):
        if isinstance(conversation, str):
            return [ChatMessage(content=conversation)]
        made = []
        for role, *content in conversation:
            if role == "call":
                call, name, arguments = content
                calls = [{"id": call, "function": {"name": name, "arguments": json.dumps(arguments)}}]
                made.append(ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": calls}))
            elif role == "result":
                kwargs = {"tool_call_id": content[0]}
                made.append(ChatMessage(role="tool", content=content[1], additional_kwargs=kwargs))
            else:
                made.append(ChatMessage(role=MessageRole(role), content=content[0]))
        return made

    def tool(self, function):
        return FunctionTool.from_defaults(function)

    def _prepared(self, llm, messages, options):
        if "tools" not in options:
            return {"messages": messages, **options}
        options = {"allow_parallel_tool_calls": options.pop("parallel_tool_calls", True), **options}
        return llm._prepare_chat_with_tools(options.pop("tools"), chat_history=messages, **options)

    def whole(self, llm, messages, options):
        return llm.chat(**self._prepared(llm, messages, options))

    async def awhole(self, llm, messages, options):
        return await llm.achat(**self._prepared(llm, messages, options))

    def deltas(self, llm, messages, options):
        for response in llm.stream_chat(**self._prepared(llm, messages, options)):
            if response.delta:
                yield response.delta

    async def adeltas(self, llm, messages, options):
        async for response in await llm.astream_chat(**self._prepared(llm, messages, options)):
            if response.delta:
                yield response.delta

    def read(self, response):
        told, blocks = response.raw, response.message.blocks
        calls = response.message.additional_kwargs.get("tool_calls", [])
        return Answer(
            text="".join(block.text for block in blocks if isinstance(block, TextBlock)),
            thought="".join(block.content for block in blocks if isinstance(block, ThinkingBlock)),
            calls=[
                (call["function"]["name"], json.loads(call["function"]["arguments"]))
                for call in calls
                if "error" not in call
            ],
            invalid=[call["error"] for call in calls if "error" in call],
            usage=(told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]),
            by_member={
                name: (counts["prompt_tokens"], counts["completion_tokens"])
                for name, counts in told["usage_by_member"].items()
            },
            reason=told["finish_reason"],
            stop=told["stop"],
            rounds=told.get("rounds"),
            metadata=told,
        )

    def objects(self, llm, schema, question="Which city?"):
        return llm.structured_predict(schema, PromptTemplate("{question}"), question=question)

    async def aobjects(self, llm, schema, question="Which city?"):
        return await llm.astructured_predict(schema, PromptTemplate("{question}"), question=question)

    def count(self, llm, conversation):
        return len(llm.tokenizer_fn("\n".join(content[-1] for _, *content in conversation)))


FRAMEWORKS = (LangChain(), LlamaIndex())
