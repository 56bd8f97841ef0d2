"""The two pipes to the slot: lines in, lines out.

It must not know what the messages mean.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import EBADF
from os import read, write  # as they are now, whatever the model does to them
from typing import Callable, Optional

READ_SIZE = 1 << 16
_CLOSED = b"The model has closed the pipes to its worker: close no file descriptor that is not your own.\n"


class Channel:
    """One message a line, sent by one write. Only the process that made it can use it: a fork's copies are closed."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        os.set_inheritable(read_fd, False)
        os.set_inheritable(write_fd, False)
        self.read_fd = read_fd
        self._write_fd = write_fd
        self._lines: list[bytes] = []
        """Those that have come and were not asked for yet, the last one first."""
        self._begun: list[bytes] = []
        """The pieces of a line that has not ended yet."""
        self.send: Callable[[bytes], None] = self._send
        """Send a message, with its newline. Ends the process when nobody is there to read it."""
        os.register_at_fork(after_in_child=self._abandon)

    def receive(self) -> Optional[bytes]:
        """The next line, waited for; None when the worker has closed its side, or is gone."""
        while not self._lines:
            if not self._read():
                return None
        return self._lines.pop()

    def receive_all(self) -> Optional[list[bytes]]:
        """The lines that are there, when `read_fd` is readable or receive() was used before; None at the end."""
        ended = not self._lines and not self._read()
        lines, self._lines = self._lines[::-1], []
        return None if ended else lines

    @property
    def has_lines(self) -> bool:
        """Whether lines were read that nobody asked for yet."""
        return bool(self._lines)

    def share(self) -> None:
        """From now on several threads may send."""
        lock = allocate_lock()

        def send(line: bytes) -> None:
            with lock:
                self._send(line)

        self.send = send

    def _read(self) -> bool:
        """Read what is there, or wait for it; False at the end."""
        try:
            data = read(self.read_fd, READ_SIZE)
        except OSError:
            if self.read_fd >= 0:
                write(2, _CLOSED)
            os._exit(1)
        if not data:
            return False
        *ended, rest = data.split(b"\n")
        if ended:
            self._begun.append(ended[0])
            ended[0] = b"".join(self._begun)
            self._begun = []
            self._lines = ended[::-1]
        if rest:
            self._begun.append(rest)
        return True

    def _send(self, line: bytes) -> None:
        try:
            sent = write(self._write_fd, line)
            while sent < len(line):
                line = line[sent:]
                sent = write(self._write_fd, line)
        except OSError as error:
            if error.errno == EBADF and self._write_fd >= 0:  # not by the worker, nor in a fork
                write(2, _CLOSED)
            os._exit(1)

    def _abandon(self) -> None:
        # A child that lived on with them would hide our end from the worker, or speak in our name.
        for fd in (self.read_fd, self._write_fd):
            if fd >= 0:
                os.close(fd)
        self.read_fd = self._write_fd = -1
