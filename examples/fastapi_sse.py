"""A chat service of your own: FastAPI, server-sent events, and a conversation for each user.

    python examples/fastapi_sse.py
    curl -N http://127.0.0.1:8001/chats/ana -H "Content-Type: application/json" -d '{"text": "Who wrote Hamlet?"}'

A client that disconnects ends its generation within one step. Needs `adafuse[langchain,serve]`, FastAPI 0.135 or later.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterable
from contextlib import aclosing, asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from adafuse_core import AdaFuseError
from adafuse_integrations.langchain import ChatAdaFuse

# The two small models of the package. For other models, give their names:
# ChatAdaFuse(members=["meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"])
llm = ChatAdaFuse(timeout=120)


class Conversation:
    """The messages of one user, whose questions are answered one after the other."""

    def __init__(self):
        self.messages = []
        self.turn = asyncio.Lock()


class Question(BaseModel):
    text: str


conversations = defaultdict(Conversation)  # in memory, by user; a real service has a database and logins


@asynccontextmanager
async def lifespan(app: FastAPI):
    await asyncio.to_thread(llm.warm)  # loading blocks, so it runs on a thread
    yield
    llm.close()


app = FastAPI(lifespan=lifespan)


@app.post("/chats/{user}", response_class=EventSourceResponse)
async def chat(user: str, question: Question) -> AsyncIterable[ServerSentEvent]:
    """Answer a user: an event for each piece of text, with the members that proposed it, and one for the end."""
    conversation = conversations[user]
    async with conversation.turn:
        messages = [*conversation.messages, ("human", question.text)]
        answer, members = "", []
        try:
            # A disconnect cancels this function where it waits; `aclosing` then ends the generation.
            async with aclosing(llm.astream(messages, cache_namespace=user)) as chunks:
                async for chunk in chunks:
                    answer += chunk.text
                    trace = chunk.response_metadata.get("adafuse", {})
                    members += trace.get("members", ())  # each is named when it first proposes a word
                    words = [(word["text"], [members[i] for i in word["by"]]) for word in trace.get("words", ())]
                    if chunk.text:
                        yield ServerSentEvent(event="text", data={"text": chunk.text, "words": words})
        except AdaFuseError as error:
            yield ServerSentEvent(event="error", data=str(error))
            return
        conversation.messages = [*messages, ("ai", answer)]  # a client that left leaves it as it was
        yield ServerSentEvent(event="end", data={"reason": chunk.response_metadata["finish_reason"]})


if __name__ == "__main__":
    uvicorn.run(app, port=8001)
