"""`AdapterModel`: the common base of the model classes for LangChain and LlamaIndex."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, PrivateAttr

from adafuse_core.ensemble import Ensemble
from adafuse_integrations.common.fields import OptionFields
from adafuse_integrations.common.running_calls import RunningCalls
from adafuse_integrations.common.trace import TraceLevel

CALL_OPTIONS = ("timeout", "cancel")  # options of a call that are not generation options


class AdapterModel(OptionFields):
    """A framework's model on an ensemble: the options of all adapters, loading, and the running calls."""

    timeout: float | None = Field(
        default=None,
        gt=0,
        description="Time limit of a call in seconds, including the time that it waits. Also an option of a call.",
    )
    max_retries: int = Field(
        default=0, ge=0, description="How often a call is retried if a member fails before the first word."
    )
    max_async_requests: int = Field(
        default=128,
        ge=1,
        description="Maximum number of concurrent async requests, each on a thread; further requests wait. The memory "
        "for keys and values (`max_kv_tokens`) limits how many of them share forward passes.",
    )
    trace: TraceLevel = Field(
        default="summary",
        description="What an answer reports of each round: 'summary' (text and proposers), 'full' (all candidates "
        "with their scores), or False for nothing.",
    )

    _running_calls: RunningCalls = PrivateAttr(default_factory=RunningCalls)

    def model_post_init(self, context: Any, /) -> None:
        """Call the framework's hook of this name, which pydantic's own hook for private attributes would hide."""
        super().model_post_init(context)

    def load(self) -> Self:
        """Load all models now. The log reports each member at level INFO."""
        self._get_ensemble().load()
        return self

    def warm(self) -> Self:
        """Load all models and answer short prompts, so that the first request is as fast as later requests."""
        self._get_ensemble().warm()
        return self

    def close(self) -> None:
        """Free the models that no other ensemble uses. The next call loads them again."""
        self._get_ensemble().close()

    def _get_ensemble(self) -> Ensemble:
        """The ensemble that the fields describe."""
        raise NotImplementedError

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._running_calls = RunningCalls()
        return copied
