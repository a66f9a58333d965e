"""A JSON list of calls, as of Mistral. Its control token `[TOOL_CALLS]` has no text, so the list begins the answer."""

from adafuse_core.chat.dialects.base import Dialect

DIALECT = Dialect(
    name="mistral",
    trigger='[{"name": "',
    begin='{"name": "',
    middle='", "arguments": ',
    end="}",
    between=", ",
    head="[",
    tail="]",
    marks=("[TOOL_CALLS]", '"arguments": '),
    unmarked=("[ARGS]", "[CALL_ID]"),
)
