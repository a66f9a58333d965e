"""Errors of calls to the server of a model: which ones are worth a retry, and what users are told."""

from __future__ import annotations

from dataclasses import dataclass

from adafuse_core.errors import AdaFuseError, ContextOverflowError, MemberError, NonFiniteLogitsError

_LONGEST_TEXT = 300  # characters of a server's message that are shown
# Parts of messages with which servers refuse a prompt that is too long; they have no code of their own for it.
_TOO_LONG = ("context length", "max_model_len", "maximum length", "too long", "longer than")
_HINTS = {
    401: "set backend_options={'api_key': ...}",
    403: "set backend_options={'api_key': ...} to a key that may use this model",
    404: "check base_url and model in backend_options, and that the server still runs this model",
    429: "raise the server's limits, or send fewer requests at the same time",
}


@dataclass(eq=False)
class Refused(Exception):
    """The server answered with a status 4xx, or with something else than the expected JSON. A retry is useless."""

    status: int
    text: str

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.text}"


@dataclass(eq=False)
class Unanswered(Exception):
    """The server can't be reached, did not answer in time, or answered with a status 5xx."""

    text: str
    reached: bool = False  # whether there was an answer

    def __str__(self) -> str:
        return self.text


def shown(text: str, secret: str | None) -> str:
    """A server's message in one line, without the API key."""
    line = " ".join(text.split())
    if secret:
        line = line.replace(secret, "***")
    return line if len(line) <= _LONGEST_TEXT else line[:_LONGEST_TEXT] + "…"


def failure(error: Refused, address: str) -> AdaFuseError:
    """The error for a request that a server has refused."""
    if error.status in (400, 413, 422) and any(part in error.text.lower() for part in _TOO_LONG):
        return ContextOverflowError(
            f"the server at {address} says that the prompt is too long: {error.text}",
            hint="shorten the prompt, start the server with a larger --max-model-len, or leave this member out",
        )
    if "out of range float" in error.text.lower():  # NaN can't be written as JSON
        return NonFiniteLogitsError(
            f"the server at {address} can't write its log-probabilities: {error.text}",
            hint="start it with another --dtype, or check the model's weights",
        )
    return MemberError(
        f"the server at {address} refused a request: {error}",
        hint=_HINTS.get(error.status, "see the server's log"),
        retryable=error.status == 429,
    )


def given_up(error: Unanswered, address: str, attempts: int, seconds: float) -> MemberError:
    """The error for a request that a server has not answered, however often it was sent."""
    return MemberError(
        f"the server at {address} did not answer: {attempts} attempts in {seconds:.0f} seconds, the last one: {error}",
        hint="start the server again, or raise deadline in backend_options if it needs longer to load its model",
    )
