"""Traces by OpenTelemetry: the tracer, Celery's spans, and those of deliveries, which are made when they are over.

It must not know how spans get to a collector. A span has no input, output, URL or secret in it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, NamedTuple

from msgspec import structs
from opentelemetry import context as contexts
from opentelemetry import trace as traces
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.celery.utils import CTX_KEY, retrieve_task_from_sender
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from cog_celery import __version__
from cog_celery.celery import TURN
from cog_celery.delivery.finished import FAULTS, Finished, Period
from cog_celery.delivery.requests import PredictionRequest
from cog_celery.errors import SetupError
from cog_celery.telemetry import otlp
from cog_celery.telemetry.collecting import Outbox, senders
from cog_celery.telemetry.traces import RunnerStart, Trace, producer

TRACER: Final = "cog"
SETUP: Final = "redis_queue.setup"
SPAWNING: Final = "spawning predictor process"
RUNNER_START: Final = "runner.start"
MODEL_SETUP: Final = "predictor.setup"
MESSAGE: Final = "redis_queue.process_message"
PREDICT: Final = "predictor.predict"
FETCH: Final = "redis_queue.fetch"
UPLOAD: Final = "redis_queue.upload"
COMMIT: Final = "redis_queue.commit"
FIRST_OUTPUT: Final = "received first output"
FINAL_OUTPUT: Final = "received final output"

MOST_UPLOADS: Final = 100
"""Files of one prediction that have a span of their own."""
NANO: Final = 1_000_000_000


class Tracing:
    """Of one process, as the OTEL_* variables say. All but close() may be called from any thread.

    Raises what the exporters raise.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer(TRACER, __version__)
        self._sampler = self._provider.sampler
        # Most do as the parent does, or all the same without one, and need not be asked each time.
        by_parent = isinstance(self._sampler, ParentBased)
        self._by_parent = {flag: self._ask(1, flag) for flag in (0, 1)} if by_parent else None
        by_root = self._sampler.get_description().startswith(("AlwaysO", "ParentBased{root:AlwaysO"))
        self._by_root = self._ask(1, None) if by_root else None
        resource, scope = self._head()
        self._outboxes = [Outbox(sender, resource, scope, environ) for sender in senders(environ)]
        for outbox in self._outboxes:
            self._provider.add_span_processor(outbox)
        self._setup: traces.Span = INVALID_SPAN
        self._turn = _Turn()
        self._celery = CeleryInstrumentor()  # type: ignore[no-untyped-call]
        self._celery.instrument(tracer_provider=self._provider, skip_dep_check=True)

    def _head(self) -> tuple[bytes, bytes]:
        """Resource and scope of our spans, as a collector reads them."""
        example = ReadableSpan(
            *(TRACER, SpanContext(1, 1, False)),
            resource=self._provider.resource,
            instrumentation_scope=InstrumentationScope(TRACER, __version__),
        )
        [resource] = encode_spans([example]).resource_spans
        return resource.resource.SerializeToString(), resource.scope_spans[0].scope.SerializeToString()

    def close(self, patience: float) -> None:
        """Send what is there, in `patience` seconds at most."""
        self._celery.uninstrument()
        until = time.monotonic() + patience
        for outbox in self._outboxes:
            outbox.close(until)

    # -- setup

    def setup(self, step: Callable[[], None]) -> Callable[[], None]:
        """The step in a span; the runners that are started meanwhile are its children."""

        def traced() -> None:
            span = self._setup = self._tracer.start_span(SETUP, context=Context())
            try:
                step()
            except BaseException as error:
                _fail(span, error)
                raise
            finally:
                self._setup = INVALID_SPAN
                span.end()

        return traced

    def runner_start(self) -> RunnerStart:
        self._setup.add_event(SPAWNING)
        return _RunnerStart(self._tracer, self._setup)

    # -- predictions

    def context(self, request: PredictionRequest) -> Context:
        """The producer's. One that cannot be read is none, as the standard has it."""
        found = producer(request.traceparent)
        if found is None:
            return Context()
        trace, span, flags = found
        state = TraceState.from_header([request.tracestate]) if request.tracestate else None
        remote = SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(flags), state)
        return traces.set_span_in_context(NonRecordingSpan(remote), Context())

    @contextmanager
    def within(self, context: Context) -> Iterator[None]:
        token = contexts.attach(context)
        try:
            yield
        except BaseException:
            self._forget_publishing()
            raise
        finally:
            contexts.detach(token)

    def _forget_publishing(self) -> None:
        """The span of a message that was not sent, which the instrumentation would keep for ever."""
        # With the task as the instrumentation finds it, which is not ours but that of Celery's default app.
        task = retrieve_task_from_sender({"sender": TURN})
        kept: dict[Any, tuple[traces.Span, Any, Any]] = getattr(task, CTX_KEY, {})
        for key in [key for key in kept if key[1]]:
            publishing = kept.pop(key)  # kept for a moment: it ends its span when it goes
            _fail(publishing[0], ConnectionError())
            publishing[0].end()

    def delivery(self, request: PredictionRequest) -> Trace:
        turn = self._turn
        first, turn.first = turn.first, False
        return _Delivery(self, request, turn.span, first)

    def turn(self) -> None:
        """In the turn's own span, in whose thread the deliveries of the turn are."""
        span = traces.get_current_span().get_span_context()
        self._turn.span, self._turn.first = span if span.is_valid else None, True

    def sampled(self, trace: int, parent: int | None) -> bool:
        """What the sampler says of a span in this trace, whose parent has these flags."""
        if parent is None:
            return self._ask(trace, None) if self._by_root is None else self._by_root
        parent &= TraceFlags.SAMPLED
        by_parent = self._by_parent
        return self._ask(trace, parent) if by_parent is None else by_parent[parent]

    def _ask(self, trace: int, parent: int | None) -> bool:
        return self._sampler.should_sample(_PARENTS[parent], trace, MESSAGE).decision is Decision.RECORD_AND_SAMPLE

    def put(self, delivery: _Delivery) -> None:
        for outbox in self._outboxes:
            outbox.put(delivery)


class _Turn(threading.local):
    """Of this thread: the turn that it is in, and whether nothing was taken in it yet."""

    span: SpanContext | None = None
    first = False


def _parent(flags: int) -> Context:
    return traces.set_span_in_context(NonRecordingSpan(SpanContext(1, 1, True, TraceFlags(flags))), Context())


_PARENTS: Final[Mapping[int | None, Context]] = {None: Context(), 0: _parent(0), 1: _parent(1)}


class _Place(NamedTuple):
    """Where a delivery is: its trace, its span, and that one's parent, if it has one."""

    trace: bytes
    id: bytes
    parent: bytes
    remote: bool
    sampled: bool
    state: str
    linked: bool


class _Delivery(Trace):
    """The first one of a turn is a child of the turn's own span, whose parents are the producer's; others come in the
    same turn by chance: they belong to their producers, with a link to the turn.

    Made in the middle of a prediction, which goes on at once: what can be done later, the outbox has done.
    """

    __slots__ = ("_finished", "_first", "_known", "_left_out", "_tracing", "_turn")

    def __init__(self, tracing: Tracing, request: PredictionRequest, turn: SpanContext | None, first: bool) -> None:
        super().__init__(request)
        self._tracing = tracing
        self._turn = turn
        self._first = first
        self._known: _Place | None = None
        self._finished: Finished | None = None
        self._left_out = 0

    @property
    def _place(self) -> _Place:
        if self._known is None:
            self._known = self._find()
        return self._known

    def _find(self) -> _Place:
        found, turn = producer(self._traceparent), self._turn
        id, state = random.randbytes(8), ""
        if found is not None and self._tracestate:
            state = TraceState.from_header([self._tracestate]).to_header()
        sampled = self._tracing.sampled
        if turn is not None and self._first and (found is None or int(found[0], 16) == turn.trace_id):
            trace, parent = turn.trace_id.to_bytes(16, "big"), turn.span_id.to_bytes(8, "big")
            return _Place(trace, id, parent, False, sampled(turn.trace_id, turn.trace_flags), state, False)
        if found is not None:
            trace, parent, flags = bytes.fromhex(found[0]), bytes.fromhex(found[1]), found[2]
            return _Place(trace, id, parent, True, sampled(int(found[0], 16), flags), state, turn is not None)
        trace = random.randbytes(16)
        return _Place(trace, id, b"", False, sampled(int.from_bytes(trace, "big"), None), state, turn is not None)

    def id(self) -> str:
        return self._place.trace.hex()

    def headers(self) -> dict[str, str]:
        place = self._place
        headers = {"traceparent": f"00-{place.trace.hex()}-{place.id.hex()}-{place.sampled:02x}"}
        return {**headers, "tracestate": place.state} if place.state else headers

    def end(self, finished: Finished) -> None:
        if finished.metrics or len(finished.uploads) > MOST_UPLOADS:  # it may have to wait for a collector
            self._left_out = max(0, len(finished.uploads) - MOST_UPLOADS)
            finished = structs.replace(finished, metrics=None, uploads=tuple(finished.uploads[:MOST_UPLOADS]))
        self._finished = finished
        self._tracing.put(self)

    def spans(self) -> list[bytes]:
        """Of a delivery that is over, if they are wanted; for the outbox."""
        place, finished = self._place, self._finished
        if not place.sampled or finished is None:
            return []
        failed = finished.outcome in ("failed", "refused")
        fault = FAULTS[finished.fault or "platform"] if failed else None
        spans: list[bytes] = []
        if finished.fetching is not None:
            spans.append(_child(place, FETCH, finished.fetching))
        if (period := finished.predicting) is not None:
            # What went wrong behind it is not its fault.
            its = fault is not None and all(upload.stored for upload in finished.uploads)
            wrong = {"events": [_error(finished, period[1])], "error": fault} if its else {}
            spans.append(_child(place, PREDICT, period, **wrong))
        for upload in finished.uploads:
            error = None if upload.stored else "UploadError"
            period = (upload.began, upload.ended)
            size = otlp.attributes({"bytes": upload.size})
            spans.append(_child(place, UPLOAD, period, attributes=size, error=error))
        if finished.committing is not None:
            spans.append(_child(place, COMMIT, finished.committing))
        often = _often(finished.queue, finished.attempt, finished.outcome, finished.slot)
        attributes = otlp.attributes(
            {"time_in_queue": finished.time_in_queue, "prediction_id": finished.id, "entry": finished.entry}
        )
        if self._left_out:
            often += otlp.attributes({"uploads_left_out": self._left_out})
        events: list[bytes] = []
        if finished.first_output is not None:
            events.append(otlp.event(FIRST_OUTPUT, int(finished.first_output * NANO)))
            if finished.last_output is not None:
                events.append(otlp.event(FINAL_OUTPUT, int(finished.last_output * NANO)))
        if failed:
            events.append(_error(finished, finished.ended))
        links: list[bytes] = []
        if place.linked and (turn := self._turn) is not None:
            links.append(otlp.link(turn.trace_id.to_bytes(16, "big"), turn.span_id.to_bytes(8, "big")))
        spans.append(
            otlp.span(
                *(MESSAGE, place.trace, place.id, place.parent),
                *_nanoseconds((finished.received, finished.ended)),
                remote=place.remote,
                state=place.state,
                attributes=attributes + often,
                events=events,
                links=links,
                error=fault,
            )
        )
        return spans


@lru_cache(256)
def _often(queue: str, attempt: int, outcome: str, slot: int | None) -> bytes:
    told: dict[str, otlp.Value] = {"queue": queue, "attempt": attempt, "outcome": outcome}
    return otlp.attributes(told if slot is None else {**told, "slot": slot})


def _child(place: _Place, name: str, period: Period, **more: Any) -> bytes:
    start, end = _nanoseconds(period)
    if not more and not place.state:
        return otlp.bare(name, place.trace, random.randbytes(8), place.id, start, end)
    return otlp.span(name, place.trace, random.randbytes(8), place.id, start, end, state=place.state, **more)


def _nanoseconds(period: Period) -> tuple[int, int]:
    start = int(period[0] * NANO)
    return start, max(start, int(period[1] * NANO))


def _error(finished: Finished, at: float) -> bytes:
    """An exception as the conventions have it, but for its text where that may quote an input."""
    attributes = {"exception.type": FAULTS[finished.fault or "platform"]}
    if finished.reason is not None:
        attributes["exception.message"] = finished.reason
    return otlp.event("exception", int(at * NANO), attributes)


def _fail(span: traces.Span, error: BaseException) -> None:
    name = type(error).__name__
    span.add_event("exception", {"exception.type": name})
    span.set_status(Status(StatusCode.ERROR, name))


class _RunnerStart(RunnerStart):
    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: traces.Tracer, parent: traces.Span) -> None:
        self._tracer = tracer
        self._span = tracer.start_span(RUNNER_START, context=traces.set_span_in_context(parent, Context()))

    def ready(self, in_setup: float) -> None:
        self._setup(in_setup, None)

    def _setup(self, in_setup: float, error: BaseException | None) -> None:
        now = time.time()
        context = traces.set_span_in_context(self._span, Context())
        span = self._tracer.start_span(MODEL_SETUP, context=context, start_time=int((now - in_setup) * NANO))
        if error is not None:
            _fail(span, error)
        span.end(int(now * NANO))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        if isinstance(error, SetupError) and error.in_setup is not None:
            self._setup(error.in_setup, error)
        if error is not None:
            _fail(self._span, error)
        self._span.end()
