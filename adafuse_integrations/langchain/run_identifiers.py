"""Run ids and tags of chat calls, by which `cancel` finds a call. LangChain does not pass them to `_stream`."""

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

_IDENTIFIERS = "_run_identifiers"  # internal call option that carries the run id and tags
_UNTRACED = (_IDENTIFIERS, "cancel")  # call options that are kept out of traces and cache keys


class RunAwareChatModel(BaseChatModel):
    """A chat model that passes the id and tags of each run to its own methods, as an internal call option."""

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As in `BaseChatModel`."""
        config, options = self._identified(config, kwargs)
        return super().invoke(input, config, stop=stop, **options)

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As in `BaseChatModel`."""
        config, options = self._identified(config, kwargs)
        return await super().ainvoke(input, config, stop=stop, **options)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As in `BaseChatModel`."""
        config, options = self._identified(config, kwargs)
        return super().stream(input, config, stop=stop, **options)

    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As in `BaseChatModel`."""
        config, options = self._identified(config, kwargs)
        return super().astream(input, config, stop=stop, **options)

    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`."""
        return super().generate(_conversations(messages), *args, **kwargs)

    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """As in `BaseChatModel`."""
        return await super().agenerate(_conversations(messages), *args, **kwargs)

    def _identified(
        self, config: RunnableConfig | None, options: Mapping[str, Any]
    ) -> tuple[RunnableConfig, dict[str, Any]]:
        """A config with a run id, and the options with the id and tags of the run."""
        config = ensure_config(config)
        config["run_id"] = config.get("run_id") or uuid7()
        return config, {**options, _IDENTIFIERS: [config["run_id"], *(config.get("tags") or ()), *(self.tags or ())]}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop, **_traced(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return super()._get_llm_string(stop, **_traced(kwargs))


def take_run_identifiers(options: dict[str, Any], manager: BaseRunManager | None) -> list[Any]:
    """Remove a call's run id and tags from its options; without the option, read them from the run manager."""
    identifiers: list[Any] | None = options.pop(_IDENTIFIERS, None)
    return run_identifiers(manager) if identifiers is None else identifiers


def run_identifiers(manager: BaseRunManager | None) -> list[Any]:
    """The id and tags of a run that LangChain manages."""
    return [] if manager is None else [manager.run_id, *manager.tags]


def _traced(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _UNTRACED}


def _conversations(messages: Any) -> list[list[BaseMessage]]:
    """Several conversations; a single text or message instead of a list is an error."""
    hint = "write [[message]]; invoke() answers a single conversation"
    return [
        several("conversation", turns, hint, PromptError) for turns in several("messages", messages, hint, PromptError)
    ]
