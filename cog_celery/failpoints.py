"""Named places, one after each side effect of delivery, where a fault test can end, stop or delay the process.

It must not know what happens around a place. Without the variable, which no fleet sets, reach() does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "COGCELERY_FAILPOINT"
"""`place=action` or `place#3=action` for the third time it is reached; action: `kill`, `stop` or `sleep:SECONDS`."""

PLACES: Final = (
    "bridge.taken",
    "bridge.dispatched",
    "bridge.refused",
    "bridge.reclaimed",
    "bridge.buried",
    "bridge.released",
    "bridge.moved",
    "slot.claimed",
    "slot.started",
    "slot.shown",
    "slot.uploaded",
    "slot.predicted",
    "slot.committed",
    "slot.refused",
    "slot.released",
    "slot.credited",
    "worker.announced",
    "worker.extended",
    "worker.denounced",
)


class _Armed:
    def __init__(self, text: str) -> None:
        place, _, action = text.partition("=")
        self._place, _, nth = place.partition("#")
        if self._place not in PLACES or action.partition(":")[0] not in ("kill", "stop", "sleep"):
            raise ValueError(f"{VARIABLE}={text}: no such place or action")
        self._left = int(nth or 1)
        self._action, _, self._seconds = action.partition(":")
        self._lock = threading.Lock()

    def __call__(self, place: str) -> None:
        if place != self._place:
            return
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
        if self._action == "sleep":
            time.sleep(float(self._seconds))
        else:
            os.kill(os.getpid(), signal.SIGKILL if self._action == "kill" else signal.SIGSTOP)


def _nothing(place: str) -> None:
    """What reach() is in production."""


reach = _Armed(os.environ[VARIABLE]) if VARIABLE in os.environ else _nothing
