"""`/v1/completions`: the continuation of texts."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from adafuse_integrations.server.answering import Answering, Item, Question
from adafuse_integrations.server.answers import Part, answer_details, finish_details, rounds_dict, usage
from adafuse_integrations.server.logprobs import WordLogprobs
from adafuse_integrations.server.models import ServedModel
from adafuse_integrations.server.requests import CompletionBody
from adafuse_integrations.server.responding import respond


class CompletionFormat:
    """Answers in the format of completions.

    Args:
        body: The request.
        served: The model that answers.
    """

    def __init__(self, body: CompletionBody, served: ServedModel) -> None:
        self._body = body
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        count = body.choices * len(body.prompts) if body.logprobs is not None else 0
        self._words = [WordLogprobs(served.ensemble, body.logprobs or 0) for _ in range(count)]

    def read(self) -> Question:
        """What the request asks."""
        options = dict(self._body.options())
        if self._words:
            options["logprobs"] = True
        return Question(prompts=self._body.prompts, options=options)

    async def whole(self, items: AsyncIterator[Item]) -> dict[str, Any]:
        """The response with all answers."""
        parts = self._parts()
        async for index, event in items:
            parts[index].add(event)
        ends = [part.finished for part in parts if part.finished is not None]
        choices = [self._choice(index, part) for index, part in enumerate(parts)]
        if self._body.adafuse is not None:
            for choice, part in zip(choices, parts, strict=True):
                choice["adafuse"] = answer_details(part, with_rounds=self._body.wants_rounds)
        return {**self._head, "choices": choices, "usage": usage(ends, self._body.choices)}

    async def chunks(self, items: AsyncIterator[Item]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a stream: one for each round with new text, one for each end, and one for the token counts."""
        parts, ends = self._parts(), []
        async for index, event in items:
            part = parts[index]
            part.add(event)
            if part.finished is not None:
                ends.append(part.finished)
            elif not part.rounds or not (part.text or self._body.wants_rounds or (self._words and part.has_words)):
                continue
            yield self._chunk(index, part)
            parts[index] = Part()
        if self._body.wants_usage_chunk:
            yield {**self._head, "choices": [], "usage": usage(ends, self._body.choices)}

    def _parts(self) -> list[Part]:
        return [Part() for _ in range(self._body.choices * len(self._body.prompts))]

    def _choice(self, index: int, part: Part) -> dict[str, Any]:
        reason = None if part.finished is None else part.finished.reason
        words = self._words[index].completion(part.rounds) if self._words else None
        return {"index": index, "text": part.text, "logprobs": words, "finish_reason": reason}

    def _chunk(self, index: int, part: Part) -> dict[str, Any]:
        chunk = {**self._head, "choices": [self._choice(index, part)]}
        if self._body.adafuse is None:
            return chunk
        rounds = rounds_dict(part.rounds) if self._body.wants_rounds else []
        details = {} if part.finished is None else finish_details(part.finished)
        return {**chunk, "adafuse": {**({"round": rounds[0]} if rounds else {}), **details}}


def router(answering: Answering) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/v1/completions", response_class=JSONResponse)
    async def complete(request: Request, body: CompletionBody) -> Response:
        """Continue texts as they stand, without chat templates."""
        served = answering.served(body)
        return await respond(request, body, answering, served, CompletionFormat(body, served))

    return routes
