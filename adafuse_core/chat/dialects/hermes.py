"""Tags around JSON: Nous Hermes, Qwen and many others. Also the default for members without a common dialect."""

from adafuse_core.chat.dialects.base import Dialect

DIALECT = Dialect(
    name="hermes",
    trigger="<tool_call>",
    begin='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    other_middles=('", "parameters": ',),
    end="}\n</tool_call>",
    between="\n",
    after_text=True,
    marks=("<tool_call>",),
    unmarked=("<function=", "<arg_key>", "<tool_call_begin>"),
)
