"""Sees when a prediction holds up the event loop that others need too, and says where.

It must not know what a prediction is.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Optional

from .failures import is_models
from .functions import relative
from .loop import Loop
from .standard import import_standard

LIMIT = 1.0
"""Seconds without a turn of the loop that are told."""
BEAT = 0.25
"""Seconds between two signs of life, while there is something to watch."""

Report = Callable[[Any, float, str], object]
"""Gets the task that runs, or None; for how many seconds it has run; and where it is, `predict.py:12`."""


class Watch:
    """A thread that looks whether the loop turns. To be made in the loop's own thread."""

    def __init__(self, loop: Loop, report: Report) -> None:
        threading = import_standard("threading")
        self._loop = loop
        self._report = report
        self._main = threading.get_ident()
        self._wanted = threading.Event()
        self._beating = False
        self._turned = 0.0
        threading.Thread(target=self._look, name="cog-loop-watch", daemon=True).start()

    def start(self) -> None:
        """Something runs from now on."""
        if not self._wanted.is_set():
            self._turned = time.monotonic()
            self._wanted.set()
            if not self._beating:
                self._beat()

    def stop(self) -> None:
        """Nothing runs any more."""
        self._wanted.clear()

    def _beat(self) -> None:
        self._turned = time.monotonic()
        self._beating = self._wanted.is_set()
        if self._beating:
            self._loop.events.call_later(BEAT, self._beat)

    def _look(self) -> None:
        told: Optional[float] = None
        while True:
            self._wanted.wait()
            time.sleep(LIMIT / 2)
            turned = self._turned
            blocked = time.monotonic() - turned
            if blocked > LIMIT and turned != told and self._wanted.is_set():
                told = turned
                self._report(self._loop.asyncio.current_task(self._loop.events), blocked, self._place())

    def _place(self) -> str:
        """Where the main thread is: the innermost line of the model's folder, else of anything that it calls."""
        frame = sys._current_frames().get(self._main)
        innermost = ""
        while frame is not None:
            shown = f"{relative(frame.f_code.co_filename)}:{frame.f_lineno}"
            if is_models(frame):
                if not shown.startswith(("/", "<")):
                    return shown
                innermost = innermost or shown
            frame = frame.f_back
        return innermost
