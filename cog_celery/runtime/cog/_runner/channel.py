"""The two pipes to the slot: lines in, lines out.

It must not know what the messages mean.
"""

from __future__ import annotations

import os
from typing import Optional

READ_SIZE = 1 << 16


class Channel:
    """One message a line, sent by one write. Only the process that made it can use it: a fork's copies are closed."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        os.set_inheritable(read_fd, False)
        os.set_inheritable(write_fd, False)
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._reader = open(read_fd, "rb", buffering=READ_SIZE, closefd=False)  # noqa: SIM115
        os.register_at_fork(after_in_child=self._abandon)

    def receive(self) -> Optional[bytes]:
        """The next line; None when the worker has closed its side, or is gone."""
        line = self._reader.readline()
        return line if line.endswith(b"\n") else None

    def send(self, line: bytes) -> None:
        """Send a message, with its newline. Ends the process when nobody is there to read it."""
        try:
            sent = os.write(self._write_fd, line)
            while sent < len(line):
                line = line[sent:]
                sent = os.write(self._write_fd, line)
        except OSError:
            os._exit(1)

    def _abandon(self) -> None:
        # A child that lived on with them would hide our end from the worker, or speak in our name.
        os.close(self._read_fd)
        os.close(self._write_fd)
        self._read_fd = self._write_fd = -1
