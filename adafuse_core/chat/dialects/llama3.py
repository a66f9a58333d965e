"""A bare JSON object with `parameters`, one call per answer: Llama 3.1 and later."""

from adafuse_core.chat.dialects.base import Dialect

DIALECT = Dialect(
    name="llama3",
    trigger='{"name": "',
    begin='{"name": "',
    middle='", "parameters": ',
    other_middles=('", "arguments": ',),
    end="}",
    between=None,
    marks=('{"name": "', '"parameters": '),
)
