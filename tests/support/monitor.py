"""Records every command that a server runs, as its MONITOR tells it, with the server's own times.

It must not know who sends them, nor judge them.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis

_LINE = re.compile(rb"(\d+\.\d+) \[\d+ ([^\]]+)\] (.*)", re.DOTALL)
_ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _NAMED.get(code, code)


@dataclass(frozen=True)
class Command:
    """One command: when the server ran it (seconds), for whom (`lua`: a script), and its arguments."""

    time: float
    client: str
    args: tuple[bytes, ...]

    @property
    def name(self) -> str:
        return self.args[0].decode(errors="replace").upper()

    @property
    def size(self) -> int:
        return sum(len(arg) for arg in self.args)

    def __str__(self) -> str:
        words = (arg if len(arg) <= 300 else arg[:300] + b"..." for arg in self.args)
        return f"{self.time:.6f} {self.client}: " + " ".join(word.decode(errors="backslashreplace") for word in words)


@dataclass(frozen=True)
class Snapshot:
    """One SET of a response key: when (seconds), how many bytes, and the JSON it holds."""

    time: float
    size: int
    value: dict[str, Any]


class Monitor:
    """A recording from its start to its stop. Use it as a context manager."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        options = client.connection_pool.connection_kwargs
        self._socket = socket.create_connection((options["host"], options["port"]))
        self._socket.sendall(b"MONITOR\r\n")
        self._stream = self._socket.makefile("rb")
        answer = self._stream.readline()
        assert answer == b"+OK\r\n", answer
        self._commands: list[Command] = []
        self._echoed: bytes = b""
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="monitor", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        # A reply is one line: MONITOR escapes line ends within arguments.
        while True:
            try:
                line = self._stream.readline()
            except (OSError, ValueError):
                return
            match = _LINE.match(line[1:].rstrip(b"\r\n"))
            if not line:
                return
            if match is None:
                continue
            args = tuple(_ESCAPE.sub(_unescape, arg) for arg in _ARGUMENT.findall(match[3]))
            with self._grown:
                if args[0].upper() == b"ECHO":
                    self._echoed = args[1]
                    self._grown.notify_all()
                else:
                    self._commands.append(Command(float(match[1]), match[2].decode(), args))

    def commands(self) -> list[Command]:
        """All commands that the server ran before this call."""
        token = uuid.uuid4().hex.encode()
        self._client.echo(token)
        with self._grown:
            assert self._grown.wait_for(lambda: self._echoed == token, timeout=10), "MONITOR fell silent"
            return list(self._commands)

    def sets(self, key: str) -> list[Snapshot]:
        """Every SET of `key`, in order."""
        name = key.encode()
        return [
            Snapshot(command.time, len(command.args[2]), json.loads(command.args[2]))
            for command in self.commands()
            if command.name == "SET" and command.args[1] == name
        ]

    def timeline(self, last: int = 400) -> str:
        """The end of the recording as text, for the report of a failed test."""
        with self._grown:
            return "\n".join(str(command) for command in self._commands[-last:])

    def stop(self) -> None:
        # shutdown wakes the reader; closing a file that another thread reads would wait for it.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
