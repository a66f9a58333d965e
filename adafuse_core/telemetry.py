"""OpenTelemetry: one span per request, by the conventions for generative AI, where `opentelemetry-api` is installed.

Spans have options, token counts and the reason of the end, but neither prompts nor answers. Without a tracer provider
in the application they cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.errors import CancelledError
from adafuse_core.events import Event, Finished
from adafuse_core.members.base import Prompt

if TYPE_CHECKING:
    from opentelemetry.trace import Span


@contextmanager
def request_span(prompt: Prompt, params: GenerationParams, config: EnsembleConfig) -> Iterator[Callable[[Event], None]]:
    """A span around one request; its parent is the current span.

    The span is not made the current one, since the consumer of a stream may continue on another thread, or never.

    Yields:
        A function that records an event of the answer.
    """
    try:
        from opentelemetry.trace import SpanKind, StatusCode, get_tracer
    except ImportError:
        yield _ignore
        return
    attributes = _attributes(prompt, params, config)
    name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
    span = get_tracer("adafuse").start_span(name, kind=SpanKind.INTERNAL, attributes=attributes)
    try:
        yield _recorder(span)
    except CancelledError:
        raise
    except Exception as error:
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()


def _ignore(event: Event) -> None:
    """Record nothing."""


def _attributes(prompt: Prompt, params: GenerationParams, config: EnsembleConfig) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": "text_completion" if isinstance(prompt, str) else "chat",
        "gen_ai.provider.name": "adafuse",
        "gen_ai.request.model": "+".join(member.label for member in config.members),
        "gen_ai.request.max_tokens": params.max_new_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.stop_sequences": params.stop or None,
        "adafuse.strategy": config.strategy.name,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _recorder(span: Span) -> Callable[[Event], None]:
    """A function that sets attributes of the span at the first and the last event."""
    start: float | None = time.monotonic()

    def record(event: Event) -> None:
        nonlocal start
        if start is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", time.monotonic() - start)
            start = None
        if isinstance(event, Finished):
            span.set_attributes(_result(event))

    return record


def _result(finished: Finished) -> dict[str, Any]:
    """Token counts are those of the first member, as budgets are."""
    name, prompt_tokens, completion_tokens = finished.usage.first()
    dropped = [each.member for each in finished.dropped_members]
    return {
        "gen_ai.response.finish_reasons": [finished.reason],
        "gen_ai.usage.input_tokens": prompt_tokens,
        "gen_ai.usage.output_tokens": completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": finished.usage.cached_tokens.get(name, 0),
        "adafuse.rounds": finished.usage.rounds,
        **({"adafuse.dropped_members": dropped} if dropped else {}),
    }
