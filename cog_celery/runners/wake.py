"""Wakes a thread that waits in poll(), from any other thread or a signal handler.

It must not know what for.
"""

from __future__ import annotations

import os
import select
import threading


class Wake:
    """Wakes a thread that waits in poll()."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._is_set = False
        self._lock = threading.RLock()  # reentrant: a signal handler may come in between

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        with self._lock:
            if not self._is_set:
                self._is_set = True
                os.write(self._write, b"\0")

    def clear(self) -> None:
        if self._is_set:
            with self._lock:
                self._is_set = False
                os.read(self._read, 1)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Attentive:
    """Waits in a poll() that another file descriptor, a Wake's say, can be made to end."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._extra: int | None = None

    def attend(self, fd: int | None) -> None:
        """Have wait() return also when there is something to read on another file descriptor; None: no longer."""
        if self._extra is not None:
            self._poll.unregister(self._extra)
        if fd is not None:
            self._poll.register(fd, select.POLLIN)
        self._extra = fd
