"""Whether tickets reach this worker: when one seems to be lost, it sends itself a message as a bridge would send one.

It must not know what tickets are for. A broker that is out of reach is no verdict on the worker.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery

from cog_celery.celery import TURN, worker_queue

HEADER = "cog-celery-probe"
CONNECTING = 5.0
"""Seconds for a connection of the probe's own, by which the broker shows that it answers."""
ARRIVAL = 3.0
"""Seconds for the message to come, which takes a millisecond."""

log = logging.getLogger(__name__)


class Probe:
    """`consuming` is the last verdict. send() and passed() may be called from any thread."""

    def __init__(self, app: Celery, life: str, connected: Callable[[], bool]) -> None:
        self.consuming = True
        self._app = app
        self._queue = worker_queue(life)
        self._connected = connected
        self._nonce = secrets.token_hex(16)
        self._arrived = threading.Event()
        self._busy = threading.Lock()

    @property
    def on_its_way(self) -> bool:
        """Whether it is being found out."""
        return self._busy.locked()

    def send(self) -> None:
        """Find out, in a thread of its own, unless that is being done already."""
        if self._busy.acquire(blocking=False):
            threading.Thread(target=self._run, name="probe", daemon=True).start()

    def is_it(self, headers: Mapping[str, Any]) -> bool:
        """Whether a message with these headers is the probe; it has arrived then."""
        if headers.get(HEADER) != self._nonce:
            return False
        self._arrived.set()
        return True

    def passed(self) -> None:
        """A ticket has come: no probe says more."""
        if self.on_its_way:
            self._arrived.set()
        if not self.consuming:
            self.consuming = True
            log.warning("tickets come again: this worker consumes")

    def _run(self) -> None:
        try:
            self._arrived.clear()
            try:
                with self._app.connection_for_write() as connection:
                    connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECTING)
                    connection.Producer(auto_declare=False).publish(
                        b"", routing_key=self._queue.name, headers={"task": TURN, HEADER: self._nonce}, delivery_mode=1
                    )
            except (
                Exception
            ) as error:  # whatever a transport raises: the consumer has the same trouble, and tells of it
                log.debug("the probe was not sent: %s", error)
                return
            if self._arrived.wait(ARRIVAL):
                self.passed()
            elif self.consuming and self._connected():
                self.consuming = False
                log.error("this worker does not consume: what is sent to it through the broker does not come")
        finally:
            self._busy.release()
