"""Traces without a fleet: what is imported, how spans are written, what is taken of a producer's context."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace as api
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cog_celery.delivery.finished import Finished, Upload
from cog_celery.delivery.requests import PredictionRequest, parse
from cog_celery.errors import UsageError
from cog_celery.telemetry import otlp, traces
from cog_celery.telemetry.collecting import Outbox, Sender, senders
from cog_celery.telemetry.traces import NO_REQUEST
from cog_celery.telemetry.tracing import Tracing

TRACE, SPAN, PARENT = bytes(range(16)), bytes(range(8)), bytes(range(8, 16))


def test_nothing_is_imported_for_those_who_want_no_traces() -> None:
    # redis-py imports what OpenTelemetry has for metrics by itself, where it is installed.
    ours = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.instrumentation", "google", "grpc")
    code = (
        "import sys, cog_celery.worker.process, cog_celery.bridge.process\n"
        "import cog_celery.telemetry.traces as t; t.start({}); t.stop();"
        f"print(*[name for name in sys.modules if name.startswith({ours})])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SERVICE_NAME": ""}, False),
        ({"OTEL_SERVICE_NAME": "x"}, True),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_SDK_DISABLED": "False"}, True),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_the_variables_say_whether_there_are_traces(environ: dict[str, str], wanted: bool) -> None:
    assert traces.wanted(environ) is wanted


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "canary", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_an_exporter_that_is_not_known_is_said_and_costs_the_traces_alone(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match="are known"):
        senders(environ)
    traces.start({"OTEL_SERVICE_NAME": "x", **environ})
    assert traces.delivery(PredictionRequest()).id() is None
    assert "there are no traces" in caplog.text and "canary" not in caplog.text


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_what_an_exporter_complains_of_is_not_in_the_log(
    protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "canary;with,no=form\x01")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:canary@127.0.0.1:1/x?sig=canary")
    [sender] = senders({**os.environ, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    try:
        assert "canary" not in caplog.text + sender.where
    finally:
        sender.close()


@given(
    st.text(max_size=80)
    | st.from_regex(r"(00|01|cc|ff)-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?", fullmatch=True)
    | st.sampled_from([f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01"])
)
@example(f"00-{'A' * 32}-{'1' * 16}-01")
def test_a_producer_s_context_is_read_as_the_standard_s_own_reader_does(traceparent: str) -> None:
    found = traces.producer(traceparent)
    theirs = api.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": traceparent}))
    context = theirs.get_span_context()
    if traceparent != traceparent.strip(" \t\n"):
        return  # white space around it, of which headers know; a message has none
    assert (found is not None) is context.is_valid
    if found is not None:
        assert (int(found[0], 16), int(found[1], 16), found[2]) == (
            context.trace_id,
            context.span_id,
            context.trace_flags,
        )


def test_without_traces_the_producer_s_own_context_goes_along() -> None:
    trace = f"00-{'1' * 32}-{'2' * 16}-01"
    delivery = traces.delivery(PredictionRequest(traceparent=trace, tracestate="a=b"))
    assert delivery.headers() == {"traceparent": trace, "tracestate": "a=b"}
    assert delivery.id() == "1" * 32
    assert traces.delivery(PredictionRequest()).headers() == {}


@given(
    name=st.text(max_size=300),
    attributes=st.dictionaries(
        st.text(max_size=20),
        st.text(max_size=300) | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
        max_size=5,
    ),
    error=st.none() | st.text(max_size=200),
    parent=st.sampled_from([b"", PARENT]),
    start=st.integers(0, 2**64 - 1),
    remote=st.booleans(),
    state=st.sampled_from(["", "vendor=x"]),
)
def test_a_span_is_read_as_it_was_written(
    name: str,
    attributes: dict[str, Any],
    error: str | None,
    parent: bytes,
    start: int,
    remote: bool,
    state: str,
) -> None:
    written = otlp.span(
        *(name, TRACE, SPAN, parent, start, start),
        remote=remote,
        state=state,
        attributes=otlp.attributes(attributes),
        events=[otlp.event(name, start, {"x": name})],
        links=[otlp.link(TRACE, PARENT)],
        error=error,
    )
    scope = InstrumentationScope(name="cog", version="1").SerializeToString()
    body = otlp.resource_spans(Resource().SerializeToString(), scope, [written])
    [resource] = ExportTraceServiceRequest.FromString(body + body).resource_spans[1:]
    [scoped] = resource.scope_spans
    [read] = scoped.spans
    assert (scoped.scope.name, scoped.scope.version) == ("cog", "1")
    assert (read.name, read.trace_id, read.span_id, read.parent_span_id) == (name, TRACE, SPAN, parent)
    assert (read.start_time_unix_nano, read.end_time_unix_nano, read.kind) == (start, start, 1)
    assert (read.flags, read.trace_state) == (0x300 if remote else 0x100, state)
    values = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in read.attributes}
    assert values == attributes
    assert [type(value) for value in values.values()] == [type(value) for value in attributes.values()]
    assert [(event.name, event.time_unix_nano, event.attributes[0].value.string_value) for event in read.events] == [
        (name, start, name)
    ]
    assert [(link.trace_id, link.span_id, link.flags) for link in read.links] == [(TRACE, PARENT, 0x100)]
    assert (read.status.code, read.status.message) == ((2, error) if error is not None else (0, ""))


class Delivery:
    def spans(self) -> list[bytes]:
        return [otlp.span("x", TRACE, SPAN, b"", 1, 2)]


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def outbox(send: Any, **environ: str) -> Outbox:
    return Outbox(Sender("http://collector", send, lambda: None), b"", b"", environ)


def test_a_slow_collector_costs_no_memory_no_time_and_one_line(
    released: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[bytes] = []

    def send(body: bytes) -> bool:
        sent.append(body)
        return released.wait(10)

    slow = outbox(
        send, OTEL_BSP_MAX_QUEUE_SIZE="50", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10", OTEL_BSP_SCHEDULE_DELAY="60000"
    )
    for _ in range(10_000):
        slow.put(Delivery())
    assert len(slow._waiting) <= 50
    began = time.monotonic()
    slow.close(began + 0.2)
    assert time.monotonic() - began < 5
    released.set()
    slow._thread.join(5)
    assert len(sent) <= 7
    assert [record.getMessage() for record in caplog.records] == [
        "the collector at http://collector is too slow for our traces: they are lost meanwhile, predictions are not",
        f"the collector at http://collector takes our traces again: those of {10_000 - 10 * len(sent)} were lost",
    ]


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch, released: threading.Event) -> Iterator[tuple[Tracing, list[bytes]]]:
    """Traces for a collector that takes nothing before it is released; and what it was sent."""
    sent: list[bytes] = []

    def send(body: bytes) -> bool:
        sent.append(body)
        return released.wait(10)

    monkeypatch.setattr("cog_celery.telemetry.tracing.senders", lambda environ: [Sender("x", send, lambda: None)])
    tracing = Tracing({"OTEL_BSP_SCHEDULE_DELAY": "1", "OTEL_BSP_MAX_QUEUE_SIZE": "500"})
    yield tracing, sent
    released.set()
    tracing.close(5)


def ended(**more: Any) -> Finished:
    given: dict[str, Any] = {"received": 1.0, "ended": 2.0, "predicting": (1.0, 2.0), **more}
    return Finished(queue="q", slot=0, id="x", entry="1-1", attempt=1, outcome="succeeded", **given)


def test_what_waits_for_a_collector_keeps_neither_inputs_nor_a_model_s_own_metrics(
    tracing: tuple[Tracing, list[bytes]],
) -> None:
    def deliver(number: int) -> None:
        message = b'{"response_queue": "r", "input": {"text": "%s"}, "id": %d}' % (b"x" * 1_000_000, number)
        delivery = tracing[0].delivery(parse(message, "q", 1 << 24))
        delivery.end(ended(metrics=msgspec.Raw(b'{"n": "%s"}' % (b"y" * 1_000_000))))

    tracemalloc.start()
    try:
        for number in range(50):
            deliver(number)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 4_000_000, "of a hundred"


def test_a_prediction_with_thousands_of_files_has_spans_of_some(
    tracing: tuple[Tracing, list[bytes]], released: threading.Event
) -> None:
    ours, sent = tracing
    files = [Upload(1.0, 2.0, number, True) for number in range(10_000)]
    for _ in range(200):
        ours.delivery(NO_REQUEST).end(ended(uploads=files))
    released.set()
    ours.close(5)
    assert max(map(len, sent)) < 3 << 20, "a collector refuses more than 4 MiB"
    spans = [span for body in sent for span in spans_of(body)]
    messages = [span for span in spans if span.name == "redis_queue.process_message"]
    assert len(messages) == 200
    assert sum(span.name == "redis_queue.upload" for span in spans) == 200 * 100
    [left_out] = [pair.value.int_value for pair in messages[0].attributes if pair.key == "uploads_left_out"]
    assert left_out == 9_900


def spans_of(body: bytes) -> list[Any]:
    resources = ExportTraceServiceRequest.FromString(body).resource_spans
    return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


def test_a_collector_that_comes_back_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([False, False, True, True])

    def send(body: bytes) -> bool:
        answer = next(answers)
        if not answer:
            raise ConnectionError("canary, in an exporter's error")
        return answer

    down = outbox(send, OTEL_BSP_SCHEDULE_DELAY="9999")
    for _ in range(4):
        down.put(Delivery())
        down._send(1)
    down.close(time.monotonic() + 1)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            "the collector at http://collector does not take our traces (ConnectionError): they are lost meanwhile, "
            "predictions are not",
        ),
        (logging.WARNING, "the collector at http://collector takes our traces again: those of 2 were lost"),
    ]


def test_a_ticket_that_is_not_sent_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.instrumentation.celery.utils import CTX_KEY, retrieve_task_from_sender

    from cog_celery.celery import app, turn

    def broken(*arguments: Any, **options: Any) -> None:
        raise ConnectionError

    ended: list[Any] = []
    producer = app.connection_for_write("memory://").Producer(auto_declare=False)
    monkeypatch.setattr(producer, "publish", broken)
    monkeypatch.setattr("cog_celery.telemetry.tracing.senders", lambda environ: [])
    ours = Tracing({})
    monkeypatch.setattr(ours._provider._active_span_processor, "on_end", ended.append)
    try:
        for _ in range(3):
            with pytest.raises(OSError), ours.within(ours.context(PredictionRequest())):
                turn.apply_async(("x",), producer=producer, queue="q", declare=[], retry=False)
        assert getattr(retrieve_task_from_sender({"sender": turn.name}), CTX_KEY) == {}
        assert [span.status.status_code.name for span in ended] == ["ERROR"] * 3
        assert not api.get_current_span().get_span_context().is_valid
    finally:
        ours.close(0.1)
