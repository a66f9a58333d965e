"""LangChain in production: fallbacks, cache, timeouts, concurrent requests, usage and traces."""

import asyncio

from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.exceptions import ContextOverflowError

from adafuse_integrations.langchain import ChatAdaFuse

together = ChatAdaFuse(cache=InMemoryCache(), timeout=60)
narrow = ChatAdaFuse(members=[{"model": "small:aspen", "context_window": 64}, "small:birch"])

# The fallback answers prompts that are too long for a member of the first ensemble.
safe = narrow.with_fallbacks([together], exceptions_to_handle=(ContextOverflowError,))
print(safe.invoke("Please read this with care. " * 12 + "What is the capital of Peru?").text)


async def ask_all(questions):
    return await asyncio.gather(*(together.ainvoke(question) for question in questions))


questions = ["What is the capital of Peru?", "What is the currency of Japan?", "Who wrote Hamlet?"]
with get_usage_metadata_callback() as usage:
    for answer in asyncio.run(ask_all(questions)):
        print(answer.text)
    print(usage.usage_metadata)
    together.invoke(questions[0])  # from the cache


class Traces(BaseCallbackHandler):
    """Prints the metadata that LangSmith or another tracer receives."""

    def on_chat_model_start(self, serialized, messages, *, metadata, **kwargs):
        print({name: value for name, value in metadata.items() if name.startswith("ls_")})


together.invoke("Hello!", {"callbacks": [Traces()]}, max_tokens=8)
