"""The two classes for LangChain: this project's ChatAdaFuse, and ChatHuggingFace over its local pipeline."""

from __future__ import annotations

from typing import Any

from adafuse_core import small_models
from adafuse_integrations.langchain import ChatAdaFuse

MODEL = str(small_models.path("aspen"))
PACKAGE = "langchain-huggingface"


class Side:
    """The interface of the checks to one of the two classes."""

    name = "ChatAdaFuse"
    suite = """
from adafuse_integrations.langchain import ChatAdaFuse as Model
PARAMS = {"members": [MODEL], "max_tokens": 64}
"""

    def make(self, *, model: str = MODEL, max_tokens: int = 16, plain: bool = False) -> Any:
        """A chat model on the small model; with `plain`, all options keep their defaults.

        The small model writes endless arguments for tools that it does not know, so calls are completed.
        """
        return ChatAdaFuse(members=[model], **({} if plain else {"max_tokens": max_tokens, "complete_calls": True}))

    def module(self, llm: Any) -> Any:
        """The underlying PyTorch model."""
        return llm._get_ensemble().members[0].backend.model.module


class Peer(Side):
    """`ChatHuggingFace` over `HuggingFacePipeline`."""

    name = "ChatHuggingFace"
    suite = """
from langchain_huggingface import ChatHuggingFace as Model, HuggingFacePipeline
OPTIONS = {"max_new_tokens": 64, "do_sample": False, "return_full_text": False}
PARAMS = {"llm": HuggingFacePipeline.from_model_id(model_id=MODEL, task="text-generation", pipeline_kwargs=OPTIONS)}
"""

    def make(self, *, model: str = MODEL, max_tokens: int = 16, plain: bool = False) -> Any:
        from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

        options = {"max_new_tokens": max_tokens, "do_sample": False, "return_full_text": False}
        given = {} if plain else {"pipeline_kwargs": options}
        return ChatHuggingFace(llm=HuggingFacePipeline.from_model_id(model_id=model, task="text-generation", **given))

    def module(self, llm: Any) -> Any:
        return llm.llm.pipeline.model
