"""Every error AdaFuse raises on purpose, each with a hint that says what to do.

Messages say what was got, what was expected and which member it concerns. Nothing here knows how
an error is shown; the command line prints `str(error)`.
"""

from __future__ import annotations

from functools import partial as bound
from typing import Any


class AdaFuseError(Exception):
    """Base class of all errors raised by AdaFuse.

    Args:
        message: What was got and what was expected.
        member: Name of the member concerned, if one is.
        hint: What the user can do about it.
        retryable: Whether the same call may work a moment later. Default: as for most errors of its class.
        partial: The answer as far as it was written.

    Attributes:
        partial: A `Generation` with all that was written before the error, if an answer had begun; else None.
        partials: Of a batch, the `Generation`s of all its prompts, whole or as far as they were written, in the order
            of the prompts; None for those that were not begun.
    """

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        member: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
        partial: Any = None,
    ) -> None:
        self.message = message
        self.member = member
        self.hint = hint
        self.retryable = type(self).retryable if retryable is None else retryable
        self.partial = partial
        self.partials: tuple[Any, ...] = ()
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"member {self.member!r}: {self.message}" if self.member else self.message
        return f"{text}\nHint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        made = bound(type(self), member=self.member, hint=self.hint, retryable=self.retryable)
        return made, (self.message,), {"partial": self.partial, "partials": self.partials}


class ConfigError(AdaFuseError, ValueError):
    """An option is unknown, or its value is out of range."""


class ModelLoadError(AdaFuseError, RuntimeError):
    """A model or its tokenizer could not be loaded."""


class ModelNotFoundError(ModelLoadError):
    """There is no model of that name or at that path."""


class UnsupportedModelError(ModelLoadError):
    """The model is no causal language model, or lacks what the strategy needs."""


class TokenizerMismatchError(ModelLoadError):
    """The loaded tokenizer disagrees with the `tokenizer.json` saved beside the model."""


class PromptError(AdaFuseError, ValueError):
    """The prompt is empty or has the wrong form."""


class ContextOverflowError(PromptError):
    """The prompt leaves no room in a member's context window."""


class TemplateError(PromptError):
    """A member's chat template can't express these messages."""


class MemberError(AdaFuseError, RuntimeError):
    """A member failed while it was drafting, scoring or committing. Another try can help, unless it says otherwise."""

    retryable = True


class NonFiniteLogitsError(MemberError):
    """A member's model returned NaN or infinite logits, as it would again."""

    retryable = False


class CancelledError(AdaFuseError):
    """The generation was cancelled from outside while a member was at work."""


class DeadlineError(CancelledError, TimeoutError):
    """A generation took longer than its timeout, and was ended."""
