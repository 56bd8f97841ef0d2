"""Which predictions were canceled through Celery before they came to this worker.

It must not know how they are canceled, nor whether they will ever come: a revoke is told to all workers of a broker.
"""

from __future__ import annotations

import threading
import time

from cog_celery.delivery.requests import OLDEST_ENTRY

MOST = 10_000
"""Ids that are remembered; most belong to predictions of other workers."""
SKEW = 1.0
"""Seconds by which this machine's clock may be behind that of Redis, which dates requests."""


class Revoked:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._when: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, id: str) -> None:
        """Remember the id of a prediction, or of its entry."""
        with self._lock:
            self._when.pop(id, None)
            self._when[id] = time.time()
            if len(self._when) > MOST:
                del self._when[next(iter(self._when))]

    def take(self, id: str, entry: str) -> bool:
        """Whether this prediction is to be canceled; forgets it. One that was sent later, under the id of one that was
        canceled elsewhere, is another.
        """
        if not self._when:
            return False
        added = int(entry.partition("-")[0])
        sent = added / 1000 if added >= OLDEST_ENTRY else 0.0  # its producer may have chosen the entry's id
        with self._lock:
            when = [when for name in (id, entry) if (when := self._when.pop(name, None)) is not None]
        return any(sent <= one + SKEW for one in when)
