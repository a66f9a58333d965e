"""A bare JSON object with `arguments`, one call per line, as small models write it that know no other form."""

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
