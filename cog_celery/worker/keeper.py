"""The heartbeat of a worker: it is announced, its slots' entries are extended, their credits looked after.

It must not know how slots come up or go down. One thread, with a connection of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from cog_celery import failpoints
from cog_celery.delivery.link import LONGEST_PAUSE, Link
from cog_celery.delivery.stream import Queue
from cog_celery.errors import ServerError
from cog_celery.runners.guardian import Guardian
from cog_celery.slots.execution import Execution
from cog_celery.slots.slot import LONG, Slot

TICK = 0.25
"""Seconds between looks at cancel keys of predictions that run longer than that."""
LONGEST_PATIENCE = 16
"""Leases for which a slot that loses one credit after the other waits for a ticket before it asks for the next."""

log = logging.getLogger(__name__)


class Keeper:
    """Heartbeats every third of the lease; between them, cancel keys of predictions that take long."""

    def __init__(
        self,
        queue: Queue,
        link: Link,
        life: str,
        slots: Sequence[Slot],
        lease: float,
        guardian: Guardian,
        about: bytes,
        draining: threading.Event,
        on_lost_credit: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._link = link
        self._life = life
        self._slots = slots
        self._lease = lease
        self._guardian = guardian
        self._about = about
        self._draining = draining
        self._on_lost_credit = on_lost_credit
        self._heard = time.monotonic()
        self._lost: dict[str, int] = {}
        """How many credits of each slot were lost since the last turn of any."""
        self._turns = 0

    @property
    def reached(self) -> bool:
        """Whether Redis has answered within a lease."""
        return time.monotonic() - self._heard < self._lease

    def run(self, closed: threading.Event) -> None:
        """Until `closed`."""
        every = self._lease / 3
        due = time.monotonic() + every
        while not closed.wait(TICK):
            try:
                if time.monotonic() >= due:
                    self._guardian.check()
                    self.beat()
                    due = time.monotonic() + every
                self._look_for_cancels()
            except ServerError as error:
                due = time.monotonic() + min(every, LONGEST_PAUSE)
                if time.monotonic() - self._heard > 3 * self._lease:
                    self._give_up(error)

    def beat(self) -> None:
        """One heartbeat. Raises ServerError."""
        self._extend()
        if self._draining.is_set():
            return
        idle = [slot.name for slot in self._slots if slot.idle_since is not None and not slot.busy]
        self._queue.announce(self._link, self._life, self._about, self._lease, idle)
        self._heard = time.monotonic()
        failpoints.reach("worker.announced")
        if self._draining.is_set():
            self._queue.denounce(self._link, self._life)
        else:
            self._renew_credits()

    def _extend(self) -> None:
        """First of all: it keeps others off what runs here, and is done even by a server that is out of memory."""
        held = [(slot, current) for slot in self._slots for current in slot.held]
        if not held:
            return
        verdicts = self._queue.extend(self._link, [current.held for _, current in held])
        self._heard = time.monotonic()
        failpoints.reach("worker.extended")
        for (slot, current), verdict in zip(held, verdicts, strict=True):
            # A commit may have come between: then the slot has gone on, and the verdict is about nothing.
            if verdict != "held" and current in slot.held and current.execution is not None:
                current.execution.stop("canceled" if verdict == "deleted" else "lost")

    def _renew_credits(self) -> None:
        """Put lost credits down again: for a dead bridge at once, for tickets that never come at growing pauses, since
        each of them costs somebody's request a lease.
        """
        turns = sum(slot.turns for slot in self._slots)
        if turns != self._turns:
            self._turns = turns
            self._lost.clear()
        for slot in self._slots:
            slot.mend()
            lost = self._lost.get(slot.name, 0)
            patience = self._lease * min(2 ** max(0, lost - 1), LONGEST_PATIENCE)
            if slot.renew_credit(self._link, patience):
                self._lost[slot.name] = lost + 1
                self._on_lost_credit()

    def _look_for_cancels(self) -> None:
        """One question for all of them: of many predictions that run, none is canceled most of the time."""
        long_ago = time.monotonic() - LONG
        running: list[tuple[str, Execution]] = []
        for current in (current for slot in self._slots for current in slot.held):
            if current.since > long_ago:
                continue
            current.tell()
            if current.cancel_key is not None and current.execution is not None:
                running.append((current.cancel_key, current.execution))
        if not running or not self._link.call("EXISTS", *(key for key, _ in running)):
            return
        for key, execution in running:
            if self._link.call("EXISTS", key):
                execution.stop("canceled")

    def _give_up(self, error: Exception) -> None:
        """Nobody can tell whether we are still the owners: others may be at work on the same entries."""
        for current in (current for slot in self._slots for current in slot.held):
            if current.execution and current.execution.reason is None:
                log.error("prediction %s is given up, Redis was out of reach for too long: %s", current.id, error)
                current.execution.stop("lost")
