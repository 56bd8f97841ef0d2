"""One row per prediction in Celery's events, so that Flower shows predictions: received, started, succeeded, failed,
revoked.

It must not know about slots or requests. Rows carry no input, no output and no URL. They are collected and published
every 0.1 s from a thread of this module: Celery's own dispatcher would publish each event by itself, at several times
the cost of a short prediction.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

import msgspec
from celery import Celery
from celery.utils.time import utcoffset

INTERVAL = 0.1
MOST = 20_000
"""Events kept while the broker is out of reach; later ones are dropped, and counted."""

log = logging.getLogger(__name__)


class Rows:
    """Started once. add() costs a microsecond and never waits; nothing here can hold a prediction up."""

    def __init__(self, app: Celery, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        self._events: list[tuple[str, float, dict[str, Any]]] = []
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="rows", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, kind: str, uuid: str, **fields: Any) -> None:
        """An event of the prediction `uuid`, as it is now."""
        if len(self._events) >= MOST:
            self._dropped += 1
            return
        fields["uuid"] = uuid
        self._events.append((kind, time.time(), fields))
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Publish what is there, if the broker takes it within a moment."""
        self._closing.set()
        self._wake.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with self._app.connection_for_write() as connection:
                    dispatcher = self._app.events.Dispatcher(connection, hostname=self._hostname)
                    while not self._closing.is_set():
                        self._wake.wait()
                        self._closing.wait(INTERVAL)
                        self._wake.clear()
                        self._publish(dispatcher)
            except Exception as error:  # whatever a transport raises: rows are for looking at, and must hold nothing up
                log.debug("rows are kept, the broker is out of reach: %s", error)
                self._closing.wait(1.0)

    def _publish(self, dispatcher: Any) -> None:
        events, self._events = self._events, []
        if not events:
            return
        head = {"hostname": self._hostname, "utcoffset": utcoffset(), "pid": os.getpid()}
        clock = dispatcher.clock
        rows = [
            {**head, "type": kind, "timestamp": when, "clock": clock.forward(), **fields}
            for kind, when, fields in events
        ]
        try:
            self._send(dispatcher, rows)
        except BaseException:
            self._events[:0] = events[: max(0, MOST - len(self._events))]
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
