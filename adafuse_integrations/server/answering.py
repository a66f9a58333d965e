"""Runs ensembles for requests: the queue, the threads, the time limit, and the end of a request whose client left."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import Any

from adafuse_core.chat.grammar import Grammar
from adafuse_core.errors import ContextOverflowError
from adafuse_core.events import Event
from adafuse_core.request import PromptLike
from adafuse_integrations.common.running_calls import RunningCalls
from adafuse_integrations.server.admission import Admission, Slot
from adafuse_integrations.server.config import ServerConfig
from adafuse_integrations.server.errors import ApiError
from adafuse_integrations.server.metrics import Metrics
from adafuse_integrations.server.models import Models, ServedModel
from adafuse_integrations.server.requests import ChatBody, CompletionBody


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a request asks of an ensemble, read from its body.

    Args:
        prompts: Texts or conversations.
        options: Options of `Ensemble.stream`.
        tools: Tools in the core's format.
        grammar: Grammar of the answer.
    """

    prompts: Sequence[PromptLike]
    options: dict[str, Any]
    tools: list[dict[str, Any]] | None = None
    grammar: Grammar | None = None

    def choice(self, number: int) -> dict[str, Any]:
        """The options of one of several answers, each with a seed of its own."""
        seed = self.options.get("seed")
        seeded = {} if seed is None else {"seed": seed + number}
        return {**self.options, **seeded, "tools": self.tools, "grammar": self.grammar}


Read = Callable[[], Question]  # may compile grammars, so it runs on the thread of the request
Item = tuple[int, Event]  # index of the answer and its next event


class Answering:
    """Answers requests on threads.

    Args:
        config: Limits.
        models: The models.
    """

    def __init__(self, config: ServerConfig, models: Models) -> None:
        self.config, self.models = config, models
        self.metrics = Metrics(models)
        self.admission = Admission(config.max_running, config.max_queue)
        self.metrics.running.set_function(lambda: self.admission.running)
        self.metrics.waiting.set_function(lambda: self.admission.waiting)
        self._running = RunningCalls()

    def served(self, body: ChatBody | CompletionBody) -> ServedModel:
        """The model that a request names.

        Raises:
            ApiError: There is no such model, or the request exceeds a limit or asks for what is not supported.
        """
        body.check_neutral()
        served = self.models.find(body.model)
        tokens = body.max_new_tokens or 1
        _check_limit("n", body.choices, self.config.max_choices)
        _check_limit("max_tokens", tokens, self.config.max_output_tokens)
        return served

    async def events(self, served: ServedModel, read: Read, choices: int, namespace: str) -> AsyncGenerator[Item]:
        """Yield the events of all answers to a request, one answer after the other.

        Closing the generator, or cancelling the task that waits for it, ends the generation within one step.

        Args:
            served: The model.
            read: Reads the question.
            choices: Number of answers to each prompt.
            namespace: Requests share what was computed only within a namespace.
        """
        with self._running.track(self.config.max_seconds) as cancel:
            slot = await self.admission.enter(self.config.max_seconds)
            try:

                def start() -> Iterator[Item]:
                    return self._iterate(served, read, choices, namespace, cancel, slot)

                threads = self.config.max_running
                async with aclosing(self._running.on_thread(start, cancel, threads)) as items:
                    async for item in items:
                        yield item
            finally:
                slot.release()

    @property
    def is_answering(self) -> bool:
        """Whether any request is running, waiting, or sending its answer."""
        return len(self._running) > 0

    def cancel_all(self) -> None:
        """Cancel all running requests."""
        self._running.cancel()

    def _iterate(
        self, served: ServedModel, read: Read, choices: int, namespace: str, cancel: threading.Event, slot: Slot
    ) -> Iterator[Item]:
        """The events, on the thread of the request. The slot is free at the end, however slowly the client reads."""
        started = time.monotonic()
        try:
            question = read()
            seed = served.ensemble.config.generation.seed  # its answers differ, too, if there are several
            options = {"seed": seed, **self._limited(served, question.options), "cache_namespace": namespace}
            question = replace(question, options=options)
            for prompt in question.prompts:
                self._check_prompt(served, prompt, question.tools)
            for place, prompt in enumerate(question.prompts):
                for number in range(choices):
                    with closing(served.ensemble.stream(prompt, cancel=cancel, **question.choice(number))) as events:
                        for event in self.metrics.observed(events, served, started):
                            yield place * choices + number, event
        finally:
            slot.release()

    def _limited(self, served: ServedModel, options: dict[str, Any]) -> dict[str, Any]:
        """The options, with a length if the default of the ensemble exceeds the limit."""
        limit, default = self.config.max_output_tokens, served.ensemble.config.generation.max_new_tokens
        exceeded = limit is not None and (default is None or default > limit)
        return {"max_new_tokens": limit, **options} if exceeded else options

    def _check_prompt(self, served: ServedModel, prompt: PromptLike, tools: list[dict[str, Any]] | None) -> None:
        limit = self.config.max_prompt_tokens
        if limit is None:
            return
        for member, count in served.ensemble.count_tokens(prompt, tools).items():
            if count > limit:
                raise ContextOverflowError(
                    f"the prompt has {count} tokens, this server accepts {limit}", member=member, hint="shorten it"
                )


def _check_limit(name: str, value: int, limit: int | None) -> None:
    if limit is not None and value > limit:
        raise ApiError(400, f"got {name}={value}, this server accepts at most {limit}", param=name, code="above_limit")
