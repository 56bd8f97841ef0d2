"""What a slot holds: the entry whose prediction runs, and one whose files are still being uploaded behind it.

It must not know how an entry is answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from cog_celery.delivery.link import Link
from cog_celery.delivery.stream import Delivery, Held
from cog_celery.errors import ServerError
from cog_celery.slots.execution import Execution
from cog_celery.telemetry import logs
from cog_celery.telemetry.traces import NO_TRACE

log = logging.getLogger(__name__)


class Desk(NamedTuple):
    """What a slot owns an entry with: a consumer's name, and a connection. It has two, one for what is behind."""

    link: Link
    owner: str


class Current:
    """What a slot works on; read by the keeper, which extends its lease and looks at its cancel key."""

    __slots__ = ("cancel_key", "delivery", "desk", "execution", "id", "queue", "since", "slot", "told", "trace")

    def __init__(self, delivery: Delivery, desk: Desk) -> None:
        self.delivery = delivery
        self.desk = desk
        self.id = delivery.name
        self.execution: Execution | None = None
        self.cancel_key: str | None = None
        self.since = time.monotonic()
        self.queue: str | None = None
        self.slot: int | None = None
        self.trace = NO_TRACE
        self.told = False

    def about(self) -> logs.About:
        """What lines about it say."""
        delivery = self.delivery
        return logs.About(self.id, self.queue, delivery.entry, delivery.attempt, self.slot, self.trace.id())

    def tell(self) -> None:
        """From the keeper, once it has run for a while: short ones have one line in all, and its end may never come."""
        if not self.told and self.execution is not None:
            self.told = True
            with logs.about(self.about):
                log.info("prediction %s runs", self.id, extra={"event": "running"})

    @property
    def held(self) -> Held:
        """What the fence knows it by."""
        return Held(self.delivery.at, self.desk.owner, self.delivery.attempt)


class Behind:
    """Ends what a slot has begun, in a thread of its own, while the slot goes on: one at a time.

    start() is called by the slot, with nothing behind it; `on_end` from the thread.
    """

    def __init__(self, name: str, on_end: Callable[[], None]) -> None:
        self._name = name
        self._on_end = on_end
        self.current: Current | None = None

    def start(self, current: Current, end: Callable[[], None]) -> None:
        """Have `end` done; `current` is there until it is."""
        thread = threading.Thread(target=self._run, args=(current, end), name=f"behind {self._name}", daemon=True)
        self.current = current
        try:
            thread.start()
        except BaseException:  # no thread to be had: what nobody ends must not be extended for ever
            self.current = None
            raise

    def _run(self, current: Current, end: Callable[[], None]) -> None:
        try:
            with logs.about(current.about):
                end()
        except ServerError as error:
            log.error("%s could not end prediction %s: %s", self._name, current.id, error)
        except Exception:
            log.exception("a bug of ours, in the end of prediction %s", current.id)
        finally:
            self.current = None
            self._on_end()
