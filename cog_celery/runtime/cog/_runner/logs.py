"""Whose log a line belongs to, where several predictions run at once: that of the context in which it is printed.

It must not know where logs go. What is printed outside a prediction, by a thread that has no context, or below Python,
is the runner's: it goes to file descriptors 1 and 2, as everything does where one prediction runs at a time.
"""

from __future__ import annotations

import io
import os
import sys
from _thread import allocate_lock
from contextvars import ContextVar
from typing import Any, Callable, Optional

MAX_HELD = 8192
"""Characters of a line that has not ended, after which it is passed on in pieces."""

_current: ContextVar[Optional[Log]] = ContextVar("cog_log", default=None)


class Log:
    """One prediction's. `send` gets its text in pieces that end with a line, as far as there are lines."""

    def __init__(self, send: Callable[[str], object]) -> None:
        self._send = send
        self._held: dict[int, str] = {}
        self._lock = allocate_lock()
        self.closed = False

    def enter(self) -> None:
        """Take what is printed in this context, and in those that are copied from it."""
        _current.set(self)

    def write(self, text: str, stream: int = 2) -> None:
        """Take text of a stream, by its file descriptor."""
        with self._lock:
            text = self._held.get(stream, "") + text
            cut = max(text.rfind("\n"), text.rfind("\r")) + 1
            if len(text) - cut > MAX_HELD:
                cut = len(text)
            self._held[stream] = text[cut:]
            if cut:
                self._send(text[:cut])

    def flush(self) -> None:
        """Pass on what is held."""
        with self._lock:
            for stream, text in self._held.items():
                if text:
                    self._send(text)
                    self._held[stream] = ""

    def close(self) -> None:
        """Pass on what is held; what a thread prints later is the runner's."""
        self.closed = True
        self.flush()


class _Stream(io.TextIOBase):
    """In the place of sys.stdout or sys.stderr."""

    def __init__(self, real: Any, number: int) -> None:
        self.real = real
        self._number = number
        self.routes = True

    def write(self, text: str) -> int:
        log = _current.get() if self.routes else None
        if log is None or log.closed:
            return int(self.real.write(text))
        log.write(text, self._number)
        return len(text)

    def flush(self) -> None:
        log = _current.get() if self.routes else None
        if log is not None and not log.closed:
            log.flush()
        self.real.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.real.fileno())

    def isatty(self) -> bool:
        return False

    @property
    def buffer(self) -> Any:
        return self.real.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self.real.encoding)

    @property
    def errors(self) -> Optional[str]:  # type: ignore[override]
        return str(self.real.errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def tell_apart() -> Callable[[], None]:
    """Put streams in the place of sys.stdout and sys.stderr that know the prediction, but for child processes.

    Returns what undoes it.
    """
    streams = [_Stream(sys.stdout, 1), _Stream(sys.stderr, 2)]
    sys.stdout, sys.stderr = streams

    def stop() -> None:
        for stream in streams:
            stream.routes = False

    def undo() -> None:
        if sys.stdout is streams[0]:
            sys.stdout = streams[0].real
        if sys.stderr is streams[1]:
            sys.stderr = streams[1].real

    os.register_at_fork(after_in_child=stop)
    return undo
