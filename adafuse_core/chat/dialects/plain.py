"""A bare JSON object with `arguments`, one call per line: small models without a format of their own."""

from adafuse_core.chat.dialects.base import Dialect

DIALECT = Dialect(
    name="plain",
    trigger='{"name": "',
    begin='{"name": "',
    middle='", "arguments": ',
    other_middles=('", "parameters": ',),
    end="}",
    between="\n",
)
