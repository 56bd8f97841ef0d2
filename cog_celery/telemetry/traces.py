"""Traces, as the rest of the fleet sees them: on where OTEL_SERVICE_NAME is set, and nothing at all where it is not.

It must not import OpenTelemetry, which costs a quarter of a second and 20 MiB: tracing.py does, when it is needed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from cog_celery.delivery.requests import PredictionRequest
from cog_celery.errors import UsageError

if TYPE_CHECKING:
    from cog_celery.delivery.finished import Finished
    from cog_celery.telemetry.tracing import Tracing

FLUSH: Final = 2.0
"""Seconds that a process may stay for a collector that is slow to take its last spans."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

log = logging.getLogger(__name__)

_tracing: Tracing | None = None


def start(environ: Mapping[str, str]) -> None:
    """Begin to trace, if that is wanted. Whatever is wrong with how is said in the log, and there are no traces."""
    global _tracing
    if _tracing is not None or not wanted(environ):
        return
    try:
        from cog_celery.telemetry.tracing import Tracing

        _tracing = Tracing(environ)
    except UsageError as error:
        log.error("there are no traces: %s", error)
    except Exception as error:  # an exporter may raise anything, and its text may quote what it was given
        log.error("there are no traces: the OTEL_* variables cannot be used (%s)", type(error).__name__)


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces."""
    return (
        bool(environ.get("OTEL_SERVICE_NAME"))
        and environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none"
    )


def stop() -> None:
    """Send what is there, and trace no more."""
    global _tracing
    tracing, _tracing = _tracing, None
    if tracing is not None:
        tracing.close(FLUSH)


# -- predictions


class Trace:
    """The spans of one delivery; this one has none. Of its request it keeps no more than these: it may have to wait for
    a collector, and inputs may be large.
    """

    __slots__ = ("_traceparent", "_tracestate")

    def __init__(self, request: PredictionRequest) -> None:
        self._traceparent, self._tracestate = request.traceparent, request.tracestate

    def id(self) -> str | None:
        """The trace it belongs to, 32 hexadecimal digits."""
        found = producer(self._traceparent)
        return found and found[0]

    def headers(self) -> dict[str, str]:
        """What goes along with its uploads."""
        given = {"traceparent": self._traceparent, "tracestate": self._tracestate}
        return {name: value for name, value in given.items() if value}

    def end(self, finished: Finished) -> None:
        """It is over: its spans have their times from this."""


def producer(traceparent: str | None) -> tuple[str, str, int] | None:
    """What a request says of its trace: trace and parent, in hexadecimal, and flags. None if it cannot be read."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    if found is None:
        return None
    version, trace, parent, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not trace.strip("0") or not parent.strip("0"):
        return None
    return trace, parent, int(flags, 16)


def trace_id(request: PredictionRequest) -> str | None:
    """The trace that a request says it belongs to."""
    found = producer(request.traceparent)
    return found and found[0]


NO_REQUEST: Final = PredictionRequest()
"""For a message that is none."""
NO_TRACE: Final = Trace(NO_REQUEST)


def delivery(request: PredictionRequest) -> Trace:
    """A slot has this request: its trace begins, in the trace that the request or the ticket names."""
    return Trace(request) if _tracing is None else _tracing.delivery(request)


def turn() -> None:
    """A turn begins, in this thread, in which deliveries of it will be."""
    if _tracing is not None:
        _tracing.turn()


def context(request: PredictionRequest) -> Any:
    """What a request says of its trace, for within()."""
    return None if _tracing is None else _tracing.context(request)


_NOTHING: Final = nullcontext()


def within(context: Any) -> AbstractContextManager[None]:
    """What is sent in here belongs to that trace."""
    return _NOTHING if _tracing is None else _tracing.within(context)


# -- setup


class RunnerStart:
    """The start of one runner; this one has no spans."""

    __slots__ = ()

    def __enter__(self) -> RunnerStart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        """It is over; an error is recorded."""

    def ready(self, in_setup: float) -> None:
        """setup() is done, and took this many seconds."""


_NO_START: Final = RunnerStart()


def runner_start() -> RunnerStart:
    """A runner is about to be started: part of a worker's setup, or a trace of its own."""
    return _NO_START if _tracing is None else _tracing.runner_start()


def setup(step: Callable[[], None]) -> Callable[[], None]:
    """The step, with a span around it: a worker's setup."""
    return step if _tracing is None else _tracing.setup(step)
