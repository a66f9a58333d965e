"""Chat models whose streams know the run that they belong to: LangChain tells `_generate` of it, but not `_stream`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.utils.uuid import uuid7

from adafuse_core.checks import several
from adafuse_core.errors import PromptError

_NAMES = "_run_names"  # the option of a call that carries them; not part of traces and cache keys
_HANDLES = (_NAMES, "cancel")


class NamedRuns(BaseChatModel):
    """Passes the id and the tags of each run on as an option of the call."""

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As in `BaseChatModel`."""
        config = _with_id(config)
        return super().invoke(input, config, stop=stop, **self._named(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As in `BaseChatModel`."""
        config = _with_id(config)
        return await super().ainvoke(input, config, stop=stop, **self._named(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As in `BaseChatModel`."""
        config = _with_id(config)
        return super().stream(input, config, stop=stop, **self._named(config, kwargs))

    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As in `BaseChatModel`."""
        config = _with_id(config)
        return super().astream(input, config, stop=stop, **self._named(config, kwargs))

    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`."""
        return super().generate(_conversations(messages), *args, **kwargs)

    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`."""
        return await super().agenerate(_conversations(messages), *args, **kwargs)

    def _named(self, config: RunnableConfig, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**options, _NAMES: [config["run_id"], *(config.get("tags") or ()), *(self.tags or ())]}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop, **_without_handles(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return super()._get_llm_string(stop, **_without_handles(kwargs))


def taken_names(options: dict[str, Any], manager: BaseRunManager | None) -> list[Any]:
    """The names of a call's run, taken out of its options, or from LangChain's manager of the run."""
    names: list[Any] | None = options.pop(_NAMES, None)
    return names_of(manager) if names is None else names


def names_of(manager: BaseRunManager | None) -> list[Any]:
    """By what a run is known that LangChain has begun: its id and tags."""
    return [] if manager is None else [manager.run_id, *manager.tags]


def _with_id(config: RunnableConfig | None) -> RunnableConfig:
    config = ensure_config(config)
    config["run_id"] = config.get("run_id") or uuid7()
    return config


def _without_handles(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _HANDLES}


def _conversations(messages: Any) -> list[list[BaseMessage]]:
    """Several conversations; a text or a message in place of a list would be taken apart."""
    hint = "write [[message]]; invoke() answers a single conversation"
    return [
        several("conversation", turns, hint, PromptError) for turns in several("messages", messages, hint, PromptError)
    ]
