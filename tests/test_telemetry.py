"""OpenTelemetry spans, with the in-memory exporter of the SDK."""

from __future__ import annotations

import sys

import pytest

from adafuse_core import AdaFuseError, CancelledError, Ensemble, ScriptedMember

trace = pytest.importorskip("opentelemetry.trace", reason="opentelemetry-sdk is not installed")
sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")


@pytest.fixture
def exporter(monkeypatch):
    """Finished spans of this test."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def ensemble(**options):
    return Ensemble(members=[ScriptedMember("left", "one two three", **options), ScriptedMember("right", "one two 3")])


def span_of(exporter):
    (span,) = exporter.get_finished_spans()
    return span


def test_a_request_is_one_span_with_the_conventional_attributes(exporter):
    messages = [{"role": "user", "content": "a secret"}]
    answer = ensemble().generate(messages, max_new_tokens=20, stop=["zzz"], seed=4)
    span = span_of(exporter)
    assert span.name == "chat left+right"
    assert span.status.is_unset
    values = dict(span.attributes)
    assert values.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert values == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "adafuse",
        "gen_ai.request.model": "left+right",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.seed": 4,
        "gen_ai.request.stop_sequences": ("zzz",),
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens["left"],
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens["left"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "adafuse.strategy": "beam",
        "adafuse.rounds": answer.usage.rounds,
    }
    assert "secret" not in span.to_json()


def test_the_parent_is_the_current_span_and_the_span_is_never_current(exporter):
    with trace.get_tracer("test").start_as_current_span("outer") as outer:
        stream = ensemble().stream("go")
        next(stream)
        assert trace.get_current_span() is outer
        list(stream)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["text_completion left+right"].parent.span_id == spans["outer"].context.span_id


def test_a_stream_that_is_closed_ends_its_span(exporter):
    stream = ensemble().stream("go")
    next(stream)
    assert not exporter.get_finished_spans()
    stream.close()
    assert span_of(exporter).status.is_unset


def test_a_failed_answer_has_its_error_and_its_tokens(exporter):
    with pytest.raises(AdaFuseError):
        ensemble(fail_after=1).generate("go")
    span = span_of(exporter)
    assert span.status.status_code.name == "ERROR"
    assert span.attributes["error.type"] == "MemberError"
    assert span.attributes["gen_ai.response.finish_reasons"] == ("error",)


def test_a_cancelled_answer_is_no_error(exporter):
    import threading

    cancel = threading.Event()
    stream = ensemble().stream("go", cancel=cancel)
    next(stream)
    cancel.set()
    with pytest.raises(CancelledError):
        list(stream)
    assert span_of(exporter).status.is_unset


def test_without_the_package_answers_are_the_same(monkeypatch, exporter):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    assert ensemble().generate("go").text == "one two three"
    assert not exporter.get_finished_spans()
