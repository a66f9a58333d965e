"""The exceptions of AdaFuse. Messages say what was got, what was expected and which member is concerned."""

from __future__ import annotations

from functools import partial as bound
from typing import Any


class AdaFuseError(Exception):
    """Base class of all exceptions of AdaFuse.

    Args:
        message: What was got and what was expected.
        member: Name of the member concerned, if any.
        hint: How the caller can solve the problem.
        retryable: Whether the same call may succeed if it is repeated. Default: the attribute of the class.
        partial: The answer that was generated before the error.

    Attributes:
        partial: A `Generation` with the answer that was generated before the error; None if generation had not started.
        partials: For `Ensemble.batch`: one `Generation` per prompt, complete or partial, in the order of the prompts;
            None for prompts whose generation had not started.
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
    """An option is unknown or has an invalid value."""


class ModelLoadError(AdaFuseError, RuntimeError):
    """A model or its tokenizer could not be loaded."""


class ModelNotFoundError(ModelLoadError):
    """No model has this name, or no model is at this path."""


class UnsupportedModelError(ModelLoadError):
    """The model is not a causal language model, or lacks a feature that the strategy needs."""


class TokenizerMismatchError(ModelLoadError):
    """The loaded tokenizer disagrees with the `tokenizer.json` saved beside the model."""


class PromptError(AdaFuseError, ValueError):
    """The prompt is empty or malformed."""


class ContextOverflowError(PromptError):
    """The prompt, alone or with the required answer, exceeds a member's context window."""


class TemplateError(PromptError):
    """A member's chat template can't render these messages."""


class MemberError(AdaFuseError, RuntimeError):
    """A member failed while drafting, scoring or committing. A retry may succeed unless `retryable` is False."""

    retryable = True


class NonFiniteLogitsError(MemberError):
    """A member's model returned NaN or infinite logits. Retries fail in the same way."""

    retryable = False


class VocabularyError(MemberError):
    """A grammar allows no token of a member's vocabulary. Retries fail in the same way."""

    retryable = False


class CancelledError(AdaFuseError):
    """The caller cancelled the request."""


class DeadlineError(CancelledError, TimeoutError):
    """Generation was stopped because it exceeded its timeout."""
