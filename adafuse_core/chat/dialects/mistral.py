"""A JSON list of calls after a control token: Mistral."""

from adafuse_core.chat.dialects.base import Dialect

DIALECT = Dialect(
    name="mistral",
    trigger='[{"name": "',
    begin='{"name": "',
    middle='", "arguments": ',
    other_middles=('", "parameters": ',),
    end="}",
    between=", ",
    head="[",
    tail="]",
    token="[TOOL_CALLS]",
    marks=("[TOOL_CALLS]",),
    unmarked=("[ARGS]", "[CALL_ID]"),
)
