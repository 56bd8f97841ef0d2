"""The log's last line of each prediction, written a tenth of a second later, with those of others.

It must not know what is in the line. By itself, in the middle of everything else, it would cost a short prediction four
times as much.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from cog_celery import logs
from cog_celery.finished import Finished

INTERVAL: Final = 0.1

log = logging.getLogger("cog_celery.predictions")


class Telling:
    """Started once. add() costs a microsecond and never waits."""

    def __init__(self) -> None:
        self._ended: list[tuple[Finished, Callable[[], logs.About]]] = []
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telling", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, finished: Finished, about: Callable[[], logs.About]) -> None:
        """Have it told. What the platform failed at is a warning."""
        if log.isEnabledFor(logging.WARNING if finished.fault == "platform" else logging.INFO):
            self._ended.append((finished, about))
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

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        for level in (logging.WARNING, logging.INFO):
            chosen = [one for one in ended if (one[0].fault == "platform") is (level == logging.WARNING)]
            logs.many(log, level, [_event(finished, about()) for finished, about in chosen])


def _event(finished: Finished, about: logs.About) -> logs.Event:
    return logs.Event(finished.ended, "finished", str(finished), about, finished.fields())
