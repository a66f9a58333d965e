"""Errors that both worlds can catch: by AdaFuse's class and by LangChain's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions as langchain

from adafuse_core import errors as core


class ContextOverflowError(core.ContextOverflowError, langchain.ContextOverflowError):
    """The prompt leaves no room in a member's context window."""


class ModelNotFoundError(core.ModelNotFoundError, langchain.ModelNotFoundError):
    """There is no model of that name or at that path."""


class ModelTimeoutError(core.DeadlineError, langchain.ModelTimeoutError):
    """A call took longer than its `timeout`, and was ended."""


_KINDS: dict[type[core.AdaFuseError], type[core.AdaFuseError]] = {
    core.ContextOverflowError: ContextOverflowError,
    core.ModelNotFoundError: ModelNotFoundError,
    core.DeadlineError: ModelTimeoutError,
}


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise the core's errors as those above, where LangChain has a class for them."""
    try:
        yield
    except tuple(_KINDS) as error:
        kind = _KINDS.get(type(error))
        if kind is None:
            raise
        raise kind(
            error.message, member=error.member, hint=error.hint, retryable=error.retryable, partial=error.partial
        ) from error
