"""A flag that is set once, from any thread, and wakes at once whoever waits for something else.

It must not know what is canceled, nor why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cog_celery.errors import Canceled


class Cancel:
    """One prediction's cancellation: set by whoever learns of it, watched by whoever blocks on its behalf."""

    def __init__(self) -> None:
        # Reentrant: a callback may set another Cancel whose callback comes back here.
        self._lock = threading.RLock()
        self._event = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def set(self) -> None:
        """Cancel. Callbacks run here and now; a second call does nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            for callback in self._callbacks:
                callback()

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise Canceled if it is set."""
        if self._event.is_set():
            raise Canceled("The prediction was canceled.")

    def sleep(self, seconds: float) -> None:
        """Sleep. Raises Canceled as soon as it is set."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """While inside, `set` calls `callback`, which must not block; at once when it is set already.

        Outside, `callback` is neither called nor still running.
        """
        with self._lock:
            self._callbacks.append(callback)
            if self._event.is_set():
                callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
