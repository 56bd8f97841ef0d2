"""One row per prediction in Celery's events, so that Flower shows predictions: received, started, succeeded, failed,
revoked, retried.

It must not know what a request asks for. Rows carry no input, no output and no URL. They are collected and published
every 0.1 s from a thread of this module: Celery's own dispatcher would publish each event by itself, at several times
the cost of a short prediction.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from typing import Any

import msgspec
from celery import Celery
from celery.utils.time import utcoffset

from cog_celery.delivery.finished import FAULTS, Finished

INTERVAL = 0.1
MOST = 20_000
"""Events kept while the broker is out of reach; later ones are dropped, and counted."""

log = logging.getLogger(__name__)


class Rows:
    """Publishes from its first event on. A call costs a microsecond or two, never waits, and holds nothing up."""

    def __init__(self, app: Celery, hostname: str = "", model: str = "") -> None:
        self.begun = 0
        """Predictions so far; two threads that count at the same time may lose one."""
        self._app = app
        self._hostname = hostname
        self._model = model
        self._events: deque[dict[str, Any]] = deque()
        self._wake = threading.Event()
        self._at_once = threading.Event()
        self._closing = threading.Event()
        self._dropped = 0
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, id: str, *, queue: str, slot: int, gpu: str | None, attempt: int) -> None:
        """A slot has it."""
        self.begun += 1
        where = described(queue, slot, gpu, attempt)
        self._add("task-received", id, name=self._model, args="()", kwargs=where, retries=attempt - 1)
        self._add("task-started", id)

    def end(self, finished: Finished) -> None:
        """It is over, or another attempt is to be made. Without a word of one whose answer came too late: the row is
        the other attempt's by then; nor of a message that was no prediction.
        """
        id, runtime = finished.id, finished.duration
        match finished.outcome:
            case "succeeded":
                self._add("task-succeeded", id, result="succeeded", runtime=runtime)
            case "canceled":
                fields = {"terminated": True, "signum": None, "expired": False}
                self._add("task-revoked", id, result="canceled", runtime=runtime, **fields)
            case "failed" | "refused" if finished.outcome == "failed" or finished.ran:
                fault = FAULTS[finished.fault or "platform"]
                self._add("task-failed", id, exception=fault, traceback="", result=f"failed: {fault}", runtime=runtime)
            case "released":
                self._again(id, "it was given back")

    def lost(self, id: str, hostname: str, since: float) -> None:
        """An attempt is lost with its worker, of that node name, which was last heard of at `since` (seconds since
        1970).
        """
        self._again(id, "it was lost with its worker", hostname=hostname, timestamp=since)

    def given_up(self, id: str, hostname: str, since: float) -> None:
        """As lost(), and no other attempt is made."""
        fault = FAULTS["platform"]
        fields = {"exception": fault, "traceback": "", "result": f"failed: {fault}"}
        self._add("task-failed", id, hostname=hostname, timestamp=since, **fields)

    def close(self) -> None:
        """Publish what is there, if the broker takes it within a moment."""
        self._closing.set()
        self._at_once.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2.0)

    # -- inside

    def _again(self, id: str, why: str, **fields: Any) -> None:
        # At once, to be there before the next attempt's first word, which comes from elsewhere: behind it, this would
        # be what the row shows until the end.
        self._add("task-retried", id, exception=why, traceback="", **fields)
        self._at_once.set()

    def _add(self, kind: str, uuid: str, **fields: Any) -> None:
        if len(self._events) >= MOST:
            self._dropped += 1
            return
        self._events.append({"type": kind, "uuid": uuid, "timestamp": time.time(), **fields})
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="rows", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with self._app.connection_for_write() as connection:
                    dispatcher = self._app.events.Dispatcher(connection, hostname=self._hostname)
                    while not self._closing.is_set():
                        self._wake.wait()
                        self._at_once.wait(INTERVAL)
                        self._at_once.clear()
                        self._wake.clear()
                        self._publish(dispatcher)
                    self._publish(dispatcher)
            except Exception as error:  # whatever a transport raises: rows are for looking at, and must hold nothing up
                log.debug("rows are kept, the broker is out of reach: %s", error)
                self._closing.wait(1.0)

    def _publish(self, dispatcher: Any) -> None:
        events = [self._events.popleft() for _ in range(len(self._events))]
        if not events:
            return
        # One tick for all: whoever sorts them goes by their times then.
        clock = dispatcher.clock.forward()
        head = {"hostname": self._hostname, "utcoffset": utcoffset(), "pid": os.getpid(), "clock": clock}
        try:
            self._send(dispatcher, [{**head, **event} for event in events])
        except BaseException:
            self._events.extendleft(reversed(events))
            raise
        if self._dropped:
            log.warning("%d events of predictions were not shown: the broker was out of reach", self._dropped)
            self._dropped = 0

    @staticmethod
    def _send(dispatcher: Any, rows: list[dict[str, Any]]) -> None:
        # One message for all, as Celery's dispatcher sends its buffer, but encoded at a tenth of the cost.
        dispatcher.producer.publish(
            msgspec.json.encode(rows),
            content_type="application/json",
            content_encoding="utf-8",
            exchange=dispatcher.exchange,
            routing_key="task.multi",
            headers=dispatcher.headers,
            delivery_mode=1,
            declare=[dispatcher.exchange],
        )


def described(queue: str, slot: int, gpu: str | None, attempt: int) -> str:
    """Where a prediction runs, in the place of a task's arguments."""
    on = "" if gpu is None else f", gpu={gpu}"
    return f"queue={queue}, slot={slot}{on}, attempt={attempt}"


def node_name(queue: str, name: str) -> str:
    """A worker's name in Celery, the same for each of its lives."""
    return f"{_safe(queue)}@{_safe(name)}"


def _safe(name: str) -> str:
    """A name as part of a Celery node name, which ends at an @ and goes into routing keys."""
    return re.sub(r"[^\w.-]+", "-", name)
