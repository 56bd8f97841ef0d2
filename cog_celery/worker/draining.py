"""The end of a worker's slots: denounce, end turns, let what runs finish, stop and release the rest at the limit.

It must not know why the worker ends. Redis may be out of reach all the while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from cog_celery import failpoints
from cog_celery.delivery.link import Link
from cog_celery.delivery.stream import Queue
from cog_celery.errors import ServerError, ServerLost
from cog_celery.slots.slot import Slot

LOOK = 0.02
"""Seconds between looks at whether slots are done."""
FIRST_PATIENCE = 0.5
"""Seconds for what was stopped at the limit to end, uploads too, before it is released whether it has ended or not."""
LAST_PATIENCE = 2.0
"""Seconds for slots whose runners were killed to let go."""

log = logging.getLogger(__name__)


def drain(
    queue: Queue,
    link: Link,
    life: str,
    slots: Sequence[Slot],
    lease: float,
    *,
    limit: float,
    now: threading.Event,
    giving_up: threading.Event,
) -> None:
    """Drain until `limit` (monotonic), or until `now`; then `giving_up` is set, and nothing is waited for any more."""
    steps: list[partial[Any]] = [partial(_denounce, queue, link, life)]
    steps += [partial(queue.withdraw_credit, link, slot.name) for slot in slots]
    while any(slot.busy or slot.held for slot in slots) and time.monotonic() < limit and not now.is_set():
        for slot in slots:
            if slot.waiting and slot.link.client_id and not steps:
                steps.append(partial(link.call, "CLIENT", "UNBLOCK", slot.link.client_id))
            elif slot.busy and not slot.waiting and (slot.current is None or slot.current.execution is None):
                slot.interrupt()  # in a setup(), or about to begin what is not to begin any more
        steps = _try(steps)
        now.wait(LOOK)
    for current in (current for slot in slots for current in slot.held):
        log.warning("prediction %s is released: it did not end before the drain did", current.id)
        steps.append(partial(queue.release, link, current.held, lease, ran=True))
    for slot in slots:
        slot.abandon()  # nothing of this attempt should go on, an upload say, when the next one begins
    _wait_for(slots, FIRST_PATIENCE)
    steps = _try(steps)
    giving_up.set()
    _wait_for(slots, LAST_PATIENCE)
    steps.append(partial(queue.denounce, link, life))  # a heartbeat may have crossed the first one
    steps += [partial(queue.forget, link, owner) for slot in slots for owner in slot.owners]
    if left := _try(steps):
        log.warning("stopped without Redis: %d steps of the drain were left out", len(left))


def _denounce(queue: Queue, link: Link, life: str) -> None:
    queue.denounce(link, life)
    failpoints.reach("worker.denounced")


def _wait_for(slots: Sequence[Slot], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(slot.busy or slot.held for slot in slots) and time.monotonic() < until:
        time.sleep(LOOK)


def _try(steps: list[partial[Any]]) -> list[partial[Any]]:
    """Do the steps; those that Redis was out of reach for."""
    for index, step in enumerate(steps):
        try:
            step()
        except ServerLost:
            return steps[index:]
        except ServerError as error:
            log.warning("a step of the drain was refused: %s", error)
    return []
