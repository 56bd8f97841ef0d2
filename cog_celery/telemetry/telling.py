"""What is told of deliveries that are over, a tenth of a second later, many at a time: the log's line, and metrics.

It must not know what they say. By itself, in the middle of everything else, each would cost a short prediction several
times as much.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from cog_celery.delivery.finished import Finished
from cog_celery.telemetry import logs
from cog_celery.telemetry.traces import Trace

INTERVAL: Final = 0.1

log = logging.getLogger("cog_celery.predictions")


class Telling:
    """Started once. add() costs a microsecond or two and never waits. `heed` is called with each, by one thread."""

    def __init__(self, heed: Callable[[Finished], None] | None = None) -> None:
        self._heed = heed
        self._ended: list[tuple[Finished, Trace | None]] = []
        """Without a trace, no line is wanted. Nothing else of the delivery is kept alive: it would cost more than the
        line."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telling", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, finished: Finished, trace: Trace) -> None:
        """Have it told. What the platform failed at is a warning; what was not answered has had a line of its own."""
        line = finished.answered and log.isEnabledFor(_level(finished))
        if line or self._heed is not None:
            self._ended.append((finished, trace if line else None))
            if not self._wake.is_set():
                self._wake.set()

    def close(self) -> None:
        """Tell what is there."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(INTERVAL)
            self._wake.clear()
            self._tell()
        self._tell()  # what came since, or before the first wait

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        try:
            if self._heed is not None:
                for finished, _ in ended:
                    self._heed(finished)
            for level in (logging.WARNING, logging.INFO):
                logs.many(
                    log,
                    level,
                    [_event(one, trace) for one, trace in ended if trace is not None and _level(one) == level],
                )
        except Exception:
            log.exception("a bug of ours: %d predictions are not told of", len(ended))


def _level(finished: Finished) -> int:
    return logging.WARNING if finished.fault == "platform" else logging.INFO


def _event(finished: Finished, trace: Trace) -> logs.Event:
    about = logs.About(finished.id, finished.queue, finished.entry, finished.attempt, finished.slot, trace.id())
    return logs.Event(finished.ended, "finished", str(finished), about, finished.fields())
