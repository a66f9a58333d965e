"""Errors in OpenAI's format, with the status code that tells a client what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from adafuse_core.errors import (
    AdaFuseError,
    CancelledError,
    ConfigError,
    ContextOverflowError,
    DeadlineError,
    MemberError,
    PromptError,
)

logger = logging.getLogger(__name__)

INVALID, SERVER, RATE = "invalid_request_error", "server_error", "rate_limit_error"
_MOST_CHARACTERS = 2000  # of a message, which can quote the request
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients obey it


class ApiError(Exception):
    """An error with the status and the fields of OpenAI's error format.

    Args:
        status: HTTP status.
        message: What was got and what was expected.
        kind: Kind of the error, `type` in the format.
        code: Name of the error for programs.
        param: Field of the request that is wrong.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = message if len(message) <= _MOST_CHARACTERS else message[:_MOST_CHARACTERS] + " ..."
        self.status, self.kind, self.code = status, kind, code
        self.message, self.param = _encodable(message), None if param is None else _encodable(param)
        self.headers = dict(headers or {})
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.to_dict(), self.status, self.headers)


def _encodable(text: str) -> str:
    """The text with lone surrogates, which JSON can write but UTF-8 can't, as escapes."""
    return text.encode(errors="backslashreplace").decode()


def api_error(error: BaseException) -> ApiError:
    """The error that a client gets. Errors that are not AdaFuse's own are not described."""
    text = str(error)
    match error:
        case ApiError():
            return error
        case ContextOverflowError():
            message = f"prompt is too long: {text}"  # words by which LiteLLM knows this error
            return ApiError(400, message, code="context_length_exceeded", param="messages")
        case ConfigError() | PromptError():
            return ApiError(400, text, code="invalid_value")
        case DeadlineError():
            return ApiError(504, text, kind=SERVER, code="timeout", headers=_NO_RETRY)
        case CancelledError():
            return ApiError(503, "the server is stopping", kind=SERVER, code="shutting_down")
        case MemberError(retryable=True):
            return ApiError(503, text, kind=SERVER, code="member_failed")
        case RecursionError():
            return ApiError(400, "the request is nested too deeply", code="invalid_value")
        case UnicodeEncodeError():
            return ApiError(400, "the request has a lone surrogate, which is no character", code="invalid_value")
        case AdaFuseError():
            return ApiError(500, text, kind=SERVER, code="member_failed", headers=_NO_RETRY)
        case _:
            return ApiError(500, "internal error; the server's log has the details", kind=SERVER, headers=_NO_RETRY)


def log_failure(error: BaseException, told: ApiError) -> None:
    """Log an error that is not the client's: in full, unless it is a time limit or the end of the server."""
    if told.status >= 500:
        expected = isinstance(error, ApiError | CancelledError)
        logger.error("a request failed: %s", told.message, exc_info=None if expected else error)


def unreadable_request(error: RequestValidationError) -> ApiError:
    """The error for a body that is not a valid request."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    path = [str(part) for part in first["loc"] if part != "body"]
    if not path and isinstance(first.get("input"), bytes):
        return ApiError(
            400, "the body has no JSON type: send the header 'Content-Type: application/json'", code="invalid_value"
        )
    # Further parts name the alternatives of a type, except where an object has an unknown field.
    field = ".".join(path if first["type"] == "extra_forbidden" else path[:1]) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {field!r}", param=field, code="unknown_field")
    return ApiError(400, f"{field or 'body'}: {first['msg']}", param=field, code="invalid_value")
