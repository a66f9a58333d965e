"""GGUF files and PEFT adapters, loaded by both adapters and the command line."""

from __future__ import annotations

import pytest
from llama_index.core.llms import ChatMessage
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from adafuse_core import Ensemble
from adafuse_integrations.cli.main import main
from adafuse_integrations.langchain import ChatAdaFuse
from adafuse_integrations.llama_index import AdaFuseLLM
from tests import tiny
from tests.gguf_file import write_gguf


@pytest.fixture(scope="module", params=["gguf", "adapter"])
def model(request, tmp_path_factory):
    """A path as users write it."""
    folder = tmp_path_factory.mktemp("files")
    if request.param == "gguf":
        return str(write_gguf(folder / "tiny.gguf"))
    base = AutoModelForCausalLM.from_pretrained(tiny.save_tiny(folder / "base", tiny.byte_level()))
    base.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    base.save_pretrained(folder / "tiny")
    return str(folder / "tiny")


def test_all_entry_points_give_the_same_answer(model, capsys):
    messages = [{"role": "user", "content": "What is it?"}]
    text = Ensemble(members=[model]).generate(messages, max_new_tokens=8).text
    assert text
    chat = ChatAdaFuse(model=model, max_tokens=8)
    assert chat.invoke("What is it?").text == text
    assert chat.model_name == "tiny"
    llm = AdaFuseLLM(members=[{"model": model}], max_new_tokens=8)
    assert llm.chat([ChatMessage(content="What is it?")]).message.content == text
    assert main(["ask", "What is it?", "--models", model, "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()


def test_windows_and_templates_are_known_without_weights(model, monkeypatch):
    monkeypatch.setattr("adafuse_core.members.loader.load_member", None)
    assert ChatAdaFuse(model=model).profile["max_input_tokens"] == 512
    assert ChatAdaFuse(model=model).profile["reasoning_output"] is False
    llm = AdaFuseLLM(members=[model])
    assert llm.metadata.context_window == 512 - 64
    assert llm.metadata.model_name == "adafuse(tiny)"
    assert llm.ensemble.supports_chat()
    assert llm.tokenizer_fn("What is it?")
