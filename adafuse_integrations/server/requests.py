"""The bodies of requests. A field that is unknown, or that the server can't honour, is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from adafuse_core.checks import option_hint
from adafuse_integrations.server.errors import ApiError

MAX_TOP_LOGPROBS = 20
Number = Annotated[float, BeforeValidator(lambda value: _number(value))]


def _number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"got {value!r}, expected a number")


def _neutral(*values: Any) -> Any:
    """A field of OpenAI's that only has values that change nothing."""
    return Field(default=None, description="Not supported: only values that change nothing.", examples=list(values))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: StrictBool = Field(default=False, description="Whether a last chunk counts the tokens.")
    include_obfuscation: StrictBool = Field(default=False, description="Only false is supported.")


class Extension(_Body):
    """What AdaFuse adds to OpenAI's format."""

    rounds: StrictBool = Field(
        default=False, description="Whether chunks and answers have the rounds: candidates, proposers, scores, margins."
    )


class GenerationBody(_Body):
    """The fields that requests for messages and for texts share."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "top_p": (1,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
    }

    model: StrictStr = Field(description="`ENSEMBLE`, or `ENSEMBLE:MEMBER` for one member alone.")
    stream: StrictBool | None = Field(default=None, description="Whether the answer is sent as server-sent events.")
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = Field(default=None, description="Number of answers, one by one.")
    stop: StrictStr | list[StrictStr] | None = None
    seed: StrictInt | None = Field(default=None, description="Answer i is sampled with seed + i.")
    temperature: Annotated[Number, Field(ge=0)] | None = None
    user: StrictStr | None = Field(
        default=None, description="Name of a user. Users do not share what was computed for common beginnings."
    )
    adafuse: Extension | None = None
    top_p: Any = _neutral(1)
    frequency_penalty: Any = _neutral(0)
    presence_penalty: Any = _neutral(0)
    logit_bias: Any = _neutral({})

    @model_validator(mode="after")
    def _check_streaming(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream=true")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise ValueError("stream_options.include_obfuscation=true is not supported")
        return self

    def check_neutral(self) -> None:
        """Refuse fields with values that the server can't honour.

        Raises:
            ApiError: A field has such a value.
        """
        for name, neutral in self.NEUTRAL.items():
            value = getattr(self, name)
            if value is not None and not any(
                value == each and isinstance(value, bool) is isinstance(each, bool) for each in neutral
            ):
                accepted = " or ".join(repr(each) for each in (None, *neutral))
                hint = option_hint(name, ())
                raise ApiError(
                    400,
                    f"got {name}={value!r}, expected {accepted}"
                    + ("" if hint.startswith("known") else f"\nHint: {hint}"),
                    code="unsupported_value",
                    param=name,
                )

    @property
    def choices(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    @property
    def wants_rounds(self) -> bool:
        """Whether the response has the rounds."""
        return self.adafuse is not None and self.adafuse.rounds

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def max_new_tokens(self) -> int | None:
        """The longest answer, if given."""
        return self.max_tokens

    def options(self) -> Iterator[tuple[str, Any]]:
        """The given generation options, with the core's names."""
        for name in ("stop", "seed", "temperature", "max_new_tokens"):
            if (value := getattr(self, name)) is not None:
                yield name, value


class ChatBody(GenerationBody):
    """The body of a request for the next message of a conversation."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationBody.NEUTRAL,
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    messages: list[dict[str, Any]] = Field(min_length=1, description="The conversation, in OpenAI's format.")
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, description="Functions, in OpenAI's format.")
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    response_format: dict[str, Any] | None = Field(
        default=None, description="Of type `text`, `json_object` or `json_schema`."
    )
    logprobs: StrictBool | None = Field(default=None, description="Log-probabilities of the words; one entry a word.")
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    modalities: Any = _neutral(["text"])
    service_tier: Any = _neutral("auto", "default")
    store: Any = _neutral(False)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs need logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same: use one of them")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """The longest answer, if given."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


class CompletionBody(GenerationBody):
    """The body of a request for the continuation of a text."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationBody.NEUTRAL,
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    }

    prompt: StrictStr | Annotated[list[StrictStr], Field(min_length=1)] = Field(
        description="A text, or several; each gets `n` answers."
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="Number of alternatives of each word; their log-probabilities are reported, too."
    )
    best_of: Any = _neutral(1)
    echo: Any = _neutral(False)
    suffix: Any = _neutral("")

    @property
    def prompts(self) -> list[str]:
        """The texts."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)
