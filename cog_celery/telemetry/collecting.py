"""Spans on their way to a collector: a queue with an end, and a thread that sends what is in it.

It must not hold anything up: a collector that is down, slow or full costs the spans that find no place, and a line in
the log, which says neither what the exporters were told nor what they say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from google.protobuf.json_format import MessageToJson  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExportResult

from cog_celery.errors import UsageError
from cog_celery.files.urls import redact
from cog_celery.telemetry import otlp

LARGEST_MESSAGE = 1 << 20
"""Bytes of spans, about: collectors refuse messages above 4 MiB by default."""

log = logging.getLogger(__name__)


class Spans(Protocol):
    """What has spans once it is over."""

    def spans(self) -> list[bytes]:
        """Them, written, if they are wanted."""
        ...


class Sender(NamedTuple):
    """An exporter: whether the collector took a message, and the end, which also ends a send that waits."""

    where: str
    send: Callable[[bytes], bool]
    close: Callable[[], object]


class Outbox(SpanProcessor):
    """What the SDK's batch processor is, under the same OTEL_BSP_* variables; but it takes what is written later, it
    can be closed within a time, and what finds no place costs nothing but a count.

    A delivery counts as one, whatever its spans.
    """

    def __init__(self, sender: Sender, resource: bytes, scope: bytes, environ: Mapping[str, str]) -> None:
        self._sender = sender
        self._resource = resource
        self._scope = scope
        self._most = _number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        self._batch = min(_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), self._most)
        self._pause = _number(environ, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000
        self._waiting: deque[ReadableSpan | Spans] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._lost = 0
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """From the SDK."""
        if span.context is not None and span.context.trace_flags.sampled:
            self.put(span)

    def put(self, what: ReadableSpan | Spans) -> None:
        """Have it sent, if there is room. From any thread; it never waits."""
        if len(self._waiting) >= self._most:
            self._lost += 1
            return
        self._waiting.append(what)
        if len(self._waiting) >= self._batch and not self._wake.is_set():
            self._wake.set()

    def close(self, until: float) -> None:
        """Send what is there until then (monotonic), and no longer."""
        self._closing = True
        self._wake.set()
        self._thread.join(max(0.0, until - time.monotonic()))
        # A thread that waits for a collector stops at this, which may take its time itself.
        closer = threading.Thread(target=self._close, name="close traces", daemon=True)
        closer.start()
        closer.join(max(0.1, until - time.monotonic()))

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # whatever an exporter raises: we are done with it
            self._sender.close()

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing
            if not closing:
                self._wake.wait(self._pause)
            self._wake.clear()
            while self._waiting:
                self._send(min(len(self._waiting), self._batch))

    def _send(self, most: int) -> None:
        """Send the first of what waits: as many as that, and as a collector takes in one message."""
        taken, why, count = False, "", 0
        try:
            theirs: list[ReadableSpan] = []
            ours: list[bytes] = []
            size = 0
            while count < most and size < LARGEST_MESSAGE:
                what = self._waiting.popleft()
                count += 1
                if isinstance(what, ReadableSpan):
                    theirs.append(what)
                else:
                    written = what.spans()
                    size += sum(map(len, written))
                    ours += written
            # Protocol buffers that follow each other are one.
            body = encode_spans(theirs).SerializeToString() if theirs else b""
            if ours:
                body += otlp.resource_spans(self._resource, self._scope, ours)
            taken = not body or self._sender.send(body)
        except Exception as error:  # whatever an exporter raises; its text may quote a header
            why = f" ({type(error).__name__})"
        if not taken:
            self._lost += count
        self._say(taken, why)

    def _say(self, taken: bool, why: str) -> None:
        """Once when spans begin to be lost, and once when that is over."""
        where = self._sender.where
        if self._lost and not self._complained:
            self._complained = True
            what = "is too slow for our traces" if taken else f"does not take our traces{why}"
            log.warning("the collector at %s %s: they are lost meanwhile, predictions are not", where, what)
        elif taken and self._complained and len(self._waiting) <= self._most // 2:
            log.warning("the collector at %s takes our traces again: those of %d were lost", where, self._lost)
            self._complained, self._lost = False, 0


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    with contextlib.suppress(ValueError):
        return max(1, int(environ.get(name, default)))
    log.warning("%s is no number: it is %d", name, default)
    return default


def senders(environ: Mapping[str, str]) -> list[Sender]:
    """To where OTEL_TRACES_EXPORTER and the OTEL_EXPORTER_OTLP_* variables say. Raises UsageError for what is not
    known, and what the exporters raise.
    """
    # What exporters complain of is ours to tell: they say it for each batch, and quote headers and URLs. So does what
    # sends their requests, of each of them.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    names = [name for name in map(str.strip, environ.get("OTEL_TRACES_EXPORTER", "otlp").lower().split(",")) if name]
    return [_sender(name, environ) for name in names or ["otlp"] if name != "none"]


def _sender(name: str, environ: Mapping[str, str]) -> Sender:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    match name, protocol.strip().lower():
        case "console", _:
            return Sender("standard output", _print, lambda: None)
        case ("otlp", "grpc") | ("otlp_proto_grpc", _):
            # We fork to exec alone; gRPC would write a line of its own to standard error each time.
            with _variable("GRPC_ENABLE_FORK_SUPPORT", "false"):
                return _grpc(redact(endpoint or "http://localhost:4317"))
        case ("otlp", "http/protobuf") | ("otlp_proto_http", _):
            return _http(redact(endpoint or "http://localhost:4318"))
        case "otlp", _:
            raise UsageError("OTEL_EXPORTER_OTLP_PROTOCOL: grpc and http/protobuf are known")
        case _:
            raise UsageError("OTEL_TRACES_EXPORTER: otlp, console and none are known")


def _print(body: bytes) -> bool:
    sys.stdout.write(MessageToJson(ExportTraceServiceRequest.FromString(body), indent=None) + os.linesep)
    sys.stdout.flush()
    return True


def _grpc(where: str) -> Sender:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    class Exporter(OTLPSpanExporter):
        """One that is given what the stock one would make of spans."""

        def _translate_data(self, data: Sequence[Any]) -> ExportTraceServiceRequest:
            request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(data[0])
            return request

    exporter = Exporter()
    return Sender(where, lambda body: exporter.export([body]) is SpanExportResult.SUCCESS, exporter.shutdown)  # type: ignore[list-item]


def _http(where: str) -> Sender:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter()
    client = exporter._client  # what sends what the exporter has made of spans
    return Sender(where, lambda body: client.export(body).success, exporter.shutdown)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set, if it is not, while a library is loaded; the model's process does not get it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
