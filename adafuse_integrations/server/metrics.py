"""What the server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from adafuse_core.events import Event, Finished, ReasoningDelta, RoundDone, TextDelta, ToolCallDelta
from adafuse_core.rounds import Round
from adafuse_integrations.server.models import Models, ServedModel

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WORDS_PER_SECOND = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@runtime_checkable
class _HoldsTokens(Protocol):
    """A backend that knows the tokens in its KV memory."""

    def tokens_held(self) -> int: ...

    def tokens_cached(self) -> int: ...


class Metrics:
    """The counters of a server.

    Args:
        models: The models, whose KV memory is reported.
    """

    def __init__(self, models: Models) -> None:
        self.registry = registry = CollectorRegistry()
        self.running = Gauge("adafuse_requests_running", "Requests that are answered now", registry=registry)
        self.waiting = Gauge("adafuse_requests_waiting", "Requests in the queue", registry=registry)
        self.requests = Counter(
            "adafuse_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self._answers = Counter("adafuse_answers", "Answers by model and end", ["model", "reason"], registry=registry)
        self._words = Counter("adafuse_words", "Committed words", ["model"], registry=registry)
        self._first_word = Histogram(
            "adafuse_first_word_seconds", "Time to the first word", ["model"], buckets=_SECONDS, registry=registry
        )
        self._speed = Histogram(
            "adafuse_words_per_second",
            "Words per second of an answer, after its first one",
            ["model"],
            buckets=_WORDS_PER_SECOND,
            registry=registry,
        )

        def by_member(name: str, text: str) -> Counter:
            return Counter(name, text, ["model", "member"], registry=registry)

        self._prompt = by_member("adafuse_prompt_tokens", "Tokens of prompts")
        self._cached = by_member("adafuse_cached_prompt_tokens", "Tokens of prompts that were not read again")
        self._answer = by_member("adafuse_answer_tokens", "Tokens of answers")
        self._read = by_member("adafuse_read_tokens", "Tokens that the member has read")
        self._rounds = Counter("adafuse_rounds", "Rounds in which members proposed", ["model"], registry=registry)
        self._chosen = by_member(
            "adafuse_rounds_proposed", "Rounds of which the member had proposed the committed text"
        )
        self._dropped = by_member("adafuse_dropped_members", "Answers that went on without a member, which had failed")
        registry.register(_KvTokens(models))

    def observed(self, events: Iterable[Event], served: ServedModel, started: float) -> Iterator[Event]:
        """Yield the events of an answer and count them.

        Args:
            events: The events.
            served: The model that answers.
            started: When the request began to run, by `time.monotonic`.
        """
        name, first, words = served.name, 0.0, 0
        for event in events:
            match event:
                case TextDelta() | ReasoningDelta() | ToolCallDelta() if not first:
                    first = time.monotonic()
                    self._first_word.labels(name).observe(first - started)
                case RoundDone():
                    words += self._count_round(name, event.round)
                case Finished():
                    self._count_answer(name, event)
                    seconds = time.monotonic() - first
                    if first and words > 1 and seconds > 0:
                        self._speed.labels(name).observe((words - 1) / seconds)
                case _:
                    pass
            yield event

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _count_round(self, model: str, played: Round) -> int:
        words = len(played.span.text.split())
        self._words.labels(model).inc(words)
        if played.drafts:
            self._rounds.labels(model).inc()
            for member in played.proposers:
                self._chosen.labels(model, member).inc()
        return words

    def _count_answer(self, model: str, finished: Finished) -> None:
        usage = finished.usage
        self._answers.labels(model, finished.reason).inc()
        for dropped in finished.dropped_members:
            self._dropped.labels(model, dropped.member).inc()
        for counter, counts in (
            (self._prompt, usage.prompt_tokens),
            (self._cached, usage.cached_tokens),
            (self._answer, usage.completion_tokens),
            (self._read, usage.read_tokens),
        ):
            for member, count in counts.items():
                counter.labels(model, member).inc(count)


class _KvTokens(Collector):
    """Tokens in the KV memory of the loaded members, read when the metrics are."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        gauge = GaugeMetricFamily(
            "adafuse_kv_tokens",
            "Tokens in KV memory: of running requests, and cached",
            labels=["model", "member", "of"],
        )
        for name, ensemble in self._models.ensembles.items():
            for member in ensemble.members if ensemble.is_loaded else ():
                backend = getattr(member, "backend", None)
                if isinstance(backend, _HoldsTokens):
                    gauge.add_metric([name, member.name, "running"], backend.tokens_held())
                    gauge.add_metric([name, member.name, "cached"], backend.tokens_cached())
        yield gauge
