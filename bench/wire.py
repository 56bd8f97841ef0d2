"""A connection to the server that costs little and counts what it sends: the producer must not be what is measured.

It must not know what the commands mean.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import hiredis

from . import BenchError


class Wire:
    """One connection, used by one thread. `sent` is the number of bytes written so far, `calls` that of commands."""

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        """Connect; `timeout` in seconds holds for every reply. Raises OSError."""
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 6379
        self.sent = 0
        self.calls = 0
        self._timeout = timeout
        self._reader = hiredis.Reader()
        self._socket = socket.create_connection((self.host, self.port), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, *words: str | bytes | int) -> Any:
        """Send a command and return its reply. Raises BenchError."""
        self.send(*words)
        return self.receive()

    def send(self, *words: str | bytes | int) -> None:
        """Send a command, whose reply is to be taken by receive()."""
        data = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub means a tuple of exactly one
        self._socket.sendall(data)
        self.sent += len(data)
        self.calls += 1

    def receive(self) -> Any:
        """The next reply, or message of a subscription: bytes, int, list or None. Raises BenchError."""
        while (reply := self._reader.gets()) is False:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise BenchError(f"nothing came from the server for {self._timeout:g} s") from None
            if not data:
                raise BenchError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(reply, hiredis.HiredisError):
            raise BenchError(f"the server refused a command: {reply}")
        return reply

    def input_bytes(self) -> int:
        """What the server has received from all of its clients so far, this call included."""
        for line in self.call("INFO", "stats").decode().splitlines():
            name, _, value = line.partition(":")
            if name == "total_net_input_bytes":
                return int(value)
        raise BenchError("the server does not say how many bytes it has received")
