"""Behaviour of LlamaIndex that AdaFuse works around. If a test here fails, a workaround may be unnecessary."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.program.utils import process_streaming_objects
from pydantic import BaseModel, ValidationError

from tests.integrations.llama_index.conftest import TOOLS, begin, scripted


class Bare(CustomLLM):
    """An LLM that implements only what LlamaIndex requires."""

    @property
    def metadata(self):
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text="Fine.")

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        yield CompletionResponse(text="Fine.", delta="Fine.")


@pytest.mark.parametrize(("endpoint", "events"), [("chat", 2), ("acomplete", 2), ("achat", 3)])
def test_canary_02_inherited_endpoints_count_a_call_several_times(endpoint, events):
    counter = TokenCountingHandler(tokenizer=str.split)
    result = begin(Bare(callback_manager=CallbackManager([counter])), endpoint)
    if endpoint.startswith("a"):
        asyncio.run(result)
    assert len(counter.llm_token_counts) == events


def test_canary_33_streamed_objects_are_read_only_from_additional_kwargs():
    class City(BaseModel):
        """A city."""

        name: str | None = None

    llm, _ = scripted()
    block = ToolCallBlock(tool_call_id="1", tool_name="City", tool_kwargs={"name": "Paris"})
    blocks = [TextBlock(text=""), block]
    message = ChatMessage(role="assistant", blocks=blocks)
    assert process_streaming_objects(ChatResponse(message=message), City, llm=llm).name is None
    message.additional_kwargs["tool_calls"] = [{}]
    assert process_streaming_objects(ChatResponse(message=message), City, llm=llm).name == "Paris"


def test_canary_38_predict_and_call_without_function_calling_fails():
    with pytest.raises(ValidationError, match="formatter"):
        Bare().predict_and_call(TOOLS, "What is the weather in Paris?")
