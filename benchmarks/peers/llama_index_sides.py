"""The two classes for LlamaIndex: this project's AdaFuseLLM, and HuggingFaceLLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adafuse_core import small_models
from adafuse_integrations.llama_index import AdaFuseLLM

MODEL = str(small_models.path("birch"))
PACKAGE = "llama-index-llms-huggingface"


class Side:
    """The interface of the checks to one of the two classes."""

    name = "AdaFuseLLM"

    def make(self, *, model: str = MODEL, template: str | None = None, **options: Any) -> Any:
        """A chat LLM on the small model."""
        member = {"model": model, "chat_template": template} if template else model
        return AdaFuseLLM(members=[member], **{"max_new_tokens": 16, **options})

    def module(self, llm: Any) -> Any:
        """The underlying PyTorch model."""
        return llm.ensemble.members[0].backend.model.module

    @contextmanager
    def prompts(self, llm: Any) -> Iterator[list[list[int]]]:
        """Records the token ids of the prompts that reach the model."""
        seen: list[list[int]] = []
        backend = llm.ensemble.members[0].backend
        plain = backend.open
        backend.open = lambda ids, **options: seen.append(list(ids)) or plain(ids, **options)
        try:
            yield seen
        finally:
            del backend.open


class Peer(Side):
    """`HuggingFaceLLM`."""

    name = "HuggingFaceLLM"

    def make(self, *, model: str = MODEL, template: str | None = None, **options: Any) -> Any:
        from llama_index.llms.huggingface import HuggingFaceLLM

        options = {"max_new_tokens": 16, "is_chat_model": True, "device_map": "cpu", **options}
        llm = HuggingFaceLLM(
            model_name=model, tokenizer_name=model, generate_kwargs={"do_sample": False, "pad_token_id": 0}, **options
        )
        if template:
            llm._tokenizer.chat_template = template
        return llm

    def module(self, llm: Any) -> Any:
        return llm._model

    @contextmanager
    def prompts(self, llm: Any) -> Iterator[list[list[int]]]:
        seen: list[list[int]] = []
        plain = llm._model.generate
        llm._model.generate = lambda **given: seen.append(given["input_ids"][0].tolist()) or plain(**given)
        try:
            yield seen
        finally:
            del llm._model.generate
