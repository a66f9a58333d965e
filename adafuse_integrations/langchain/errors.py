"""Errors that derive both from a class of AdaFuse and from a class of LangChain, so that either catches them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions as langchain

from adafuse_core import errors as core


class ContextOverflowError(core.ContextOverflowError, langchain.ContextOverflowError):
    """The prompt does not fit into a member's context window."""


class ModelNotFoundError(core.ModelNotFoundError, langchain.ModelNotFoundError):
    """No model exists under the given name or path."""


class ModelTimeoutError(core.DeadlineError, langchain.ModelTimeoutError):
    """A call exceeded its `timeout` and was cancelled."""


_KINDS: dict[type[core.AdaFuseError], type[core.AdaFuseError]] = {
    core.ContextOverflowError: ContextOverflowError,
    core.ModelNotFoundError: ModelNotFoundError,
    core.DeadlineError: ModelTimeoutError,
}


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Convert the core's errors to the classes above, where LangChain has a matching class."""
    try:
        yield
    except tuple(_KINDS) as error:
        kind = _KINDS.get(type(error))
        if kind is None:
            raise
        raise kind(
            error.message, member=error.member, hint=error.hint, retryable=error.retryable, partial=error.partial
        ) from error
