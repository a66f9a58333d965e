"""`/v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from adafuse_core.chat import openai
from adafuse_integrations.server.answering import Answering, Item, Question
from adafuse_integrations.server.answers import Part, answer_details, finish_details, rounds_dict, usage
from adafuse_integrations.server.logprobs import WordLogprobs
from adafuse_integrations.server.models import ServedModel
from adafuse_integrations.server.requests import ChatBody
from adafuse_integrations.server.responding import respond


class ChatFormat:
    """Answers in the format of chat completions.

    Args:
        body: The request.
        served: The model that answers.
    """

    def __init__(self, body: ChatBody, served: ServedModel) -> None:
        self._body = body
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        self._words = WordLogprobs(served.ensemble, body.top_logprobs or 0) if body.logprobs else None

    def read(self) -> Question:
        """What the request asks."""
        body = self._body
        options = dict(body.options())
        if body.logprobs:
            options["logprobs"] = True
        if (choice := openai.tool_choice(body.tool_choice)) is not None:
            options["tool_choice"] = choice
        if body.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = body.parallel_tool_calls
        return Question(
            prompts=[openai.messages(body.messages)],
            options=options,
            tools=[openai.function_tool(tool) for tool in body.tools] if body.tools else None,
            grammar=openai.response_grammar(body.response_format),
        )

    async def whole(self, items: AsyncIterator[Item]) -> dict[str, Any]:
        """The response with all answers."""
        parts = [Part() for _ in range(self._body.choices)]
        async for index, event in items:
            parts[index].add(event)
        ends = [part.finished for part in parts if part.finished is not None]
        choices = [self._choice(index, part) for index, part in enumerate(parts)]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(ends, self._body.choices),
        }

    async def chunks(self, items: AsyncIterator[Item]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a stream: one for each round with new text, one for each end, and one for the token counts."""
        parts = [Part() for _ in range(self._body.choices)]
        started = [False] * self._body.choices
        ends = []
        async for index, event in items:
            part = parts[index]
            part.add(event)
            if not part.rounds and part.finished is None:
                continue
            told = self._words is not None and part.has_words
            if told or (self._body.wants_rounds and part.rounds) or not part.is_empty or not started[index]:
                role = {} if started[index] else {"role": "assistant", "content": ""}
                started[index] = True
                yield self._chunk(index, {**role, **part.message()}, part)
            if part.finished is not None:
                ends.append(part.finished)
                yield self._last_chunk(index, part)
            parts[index] = Part()
        if self._body.wants_usage_chunk:
            yield {**self._head, **_CHUNK, "choices": [], "usage": usage(ends, self._body.choices)}

    def _choice(self, index: int, part: Part) -> dict[str, Any]:
        assert part.finished is not None, "an answer ends with a Finished event"
        message = part.message()
        for call in message.get("tool_calls", ()):
            del call["index"]
        content = None if part.calls else ""
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None, **message},
            "logprobs": self._logprobs(part),
            "finish_reason": part.finished.reason,
        }
        if self._body.adafuse is None:
            return choice
        return {**choice, "adafuse": answer_details(part, with_rounds=self._body.wants_rounds)}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if self._words is None:
            return None
        return {"content": [entry for played in part.rounds for entry in self._words.chat(played)], "refusal": None}

    def _chunk(self, index: int, delta: dict[str, Any], part: Part) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(part), "finish_reason": None}
        chunk = {**self._head, **_CHUNK, "choices": [choice]}
        rounds = rounds_dict(part.rounds) if self._body.wants_rounds else []
        return {**chunk, "adafuse": {"round": rounds[0]}} if rounds else chunk

    def _last_chunk(self, index: int, part: Part) -> dict[str, Any]:
        assert part.finished is not None, "the last chunk follows the Finished event"
        choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": part.finished.reason}
        chunk = {**self._head, **_CHUNK, "choices": [choice]}
        return chunk if self._body.adafuse is None else {**chunk, "adafuse": finish_details(part.finished)}


_CHUNK = {"object": "chat.completion.chunk"}


def router(answering: Answering) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", response_class=JSONResponse)
    async def chat(request: Request, body: ChatBody) -> Response:
        """Answer a conversation."""
        served = answering.served(body)
        return await respond(request, body, answering, served, ChatFormat(body, served))

    return routes
