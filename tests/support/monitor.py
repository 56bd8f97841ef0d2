"""Records every command that a server runs, as its MONITOR tells it, with the server's own times.

It must not know who sends them, nor judge them.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis

_LINE = re.compile(rb"(\d+\.\d+) \[\d+ ([^\]]+)\] (.*)", re.DOTALL)
_ARGUMENT = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)

LONGEST_KEPT = 2000
"""Bytes of an argument that a recording with a limit keeps."""
CONNECT_AGAIN = 0.01
"""Seconds between attempts to reach a server that is gone: the recording is to be there before anybody else."""


def _unescape(arg: bytes) -> bytes:
    # MONITOR writes printable ASCII, and the rest as C and Python do: \n, \", \\, \xe9.
    return arg.decode("unicode_escape").encode("latin-1") if b"\\" in arg else arg


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
class Gap:
    """A time (seconds) of which the recording knows nothing: the server, or the connection to it, was gone."""

    time: float
    until: float

    def __str__(self) -> str:
        return f"{self.time:.6f} the recording breaks off for {self.until - self.time:.3f} s"


@dataclass(frozen=True)
class Snapshot:
    """One SET of a response key: when (seconds), how many bytes, and the JSON it holds."""

    time: float
    size: int
    value: dict[str, Any]


class Monitor:
    """A recording from its start to its stop. Use it as a context manager.

    `keep`: how many commands are kept, the latest ones, with long arguments cut; all of them as they are by default.
    A listener is told of all in either case. When the server goes away the recording goes on when it is back, with a
    Gap in between.
    """

    def __init__(self, client: redis.Redis, *, keep: int | None = None) -> None:
        self.client = client
        self.gaps: list[Gap] = []
        self._keep = keep
        self._socket = self._connect()
        self._seen: deque[Command | Gap] = deque(maxlen=keep)
        self._count = 0
        self._listener: Callable[[Command | Gap], None] | None = None
        self._failure: Exception | None = None
        self._echoed: bytes = b""
        self._stopped = threading.Event()
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def _connect(self) -> socket.socket:
        options = self.client.connection_pool.connection_kwargs
        if "path" in options:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(1)
            sock.connect(options["path"])
        else:
            sock = socket.create_connection((options["host"], options["port"]), timeout=1)
        try:
            if options.get("password"):
                _ask(sock, f"AUTH {options.get('username') or 'default'} {options['password']}")
            _ask(sock, "MONITOR")
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return sock

    def _run(self) -> None:
        while True:
            try:
                self._read()
            except OSError:
                pass
            except Exception as error:
                # A listener that fails must fail the test, not fall silent.
                with self._grown:
                    self._failure = error
                    self._grown.notify_all()
                return
            if not self._reconnect():
                return

    def _reconnect(self) -> bool:
        since = time.time()
        while not self._stopped.is_set():
            try:
                sock = self._connect()
            except OSError:
                self._stopped.wait(CONNECT_AGAIN)
                continue
            with self._grown:
                self._socket.close()
                self._socket = sock
                if self._stopped.is_set():
                    return False
                gap = Gap(since, time.time())
                self.gaps.append(gap)
                self._note(gap)
                self._grown.notify_all()
            return True
        return False

    def _read(self) -> None:
        # A reply is one line: MONITOR escapes line ends within arguments.
        with self._socket.makefile("rb", buffering=1 << 20) as stream:
            while line := stream.readline():
                match = _LINE.match(line, 1)
                if match is None or not line.endswith(b"\r\n"):
                    continue
                args = tuple(_unescape(arg) for arg in _ARGUMENT.findall(match[3]))
                if not args:
                    continue
                with self._grown:
                    if args[0].upper() == b"ECHO":
                        self._echoed = args[1]
                        self._grown.notify_all()
                    else:
                        self._note(Command(float(match[1]), match[2].decode(), args))

    def _note(self, seen: Command | Gap) -> None:
        if self._listener is not None:
            self._listener(seen)
        if self._keep is not None and isinstance(seen, Command) and seen.size > LONGEST_KEPT:
            seen = Command(seen.time, seen.client, tuple(arg[:LONGEST_KEPT] for arg in seen.args))
        self._seen.append(seen)
        self._count += 1

    def listen(self, listener: Callable[[Command | Gap], None]) -> None:
        """Tell one listener, from the recording's own thread, of all there was so far and of all that comes."""
        with self._grown:
            assert self._listener is None, "there is a listener"
            assert self._count == len(self._seen), "the recording has forgotten its beginning: listen earlier"
            for seen in self._seen:
                listener(seen)
            self._listener = listener

    def catch_up(self, timeout: float = 30.0) -> None:
        """Return when all commands that the server ran before this call are recorded."""
        token = uuid.uuid4().hex.encode()
        deadline = time.monotonic() + timeout
        while True:
            gaps = len(self.gaps)
            self.client.echo(token)
            with self._grown:
                # A gap may have swallowed the question: then it is asked again.
                while self._echoed != token and len(self.gaps) == gaps:
                    if self._failure is not None:
                        raise self._failure
                    assert self._grown.wait(deadline - time.monotonic()), "MONITOR fell silent"
                if self._echoed == token:
                    return

    def commands(self) -> list[Command]:
        """All commands that the server ran before this call, or the latest ones of them with a limit."""
        self.catch_up()
        with self._grown:
            return [seen for seen in self._seen if isinstance(seen, Command)]

    def sets(self, key: str) -> list[Snapshot]:
        """Every SET of `key`, in order."""
        assert self._keep is None, "a recording with a limit cuts what it keeps"
        name = key.encode()
        return [
            Snapshot(command.time, len(command.args[2]), json.loads(command.args[2]))
            for command in self.commands()
            if command.name == "SET" and command.args[1] == name
        ]

    def timeline(self, last: int = 400) -> str:
        """The end of the recording as text, for the report of a failed test."""
        with self._grown:
            return "\n".join(str(seen) for seen in list(self._seen)[-last:])

    def stop(self) -> None:
        self._stopped.set()
        # shutdown wakes the reader; closing a file that another thread reads would wait for it.
        with self._grown, suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _ask(sock: socket.socket, command: str) -> None:
    """Send a command that is to be answered with OK."""
    sock.sendall(command.encode() + b"\r\n")
    answer = b""
    # Byte by byte: nothing of what follows may be taken from the reader.
    while not answer.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionResetError("the server closed the connection")
        answer += byte
    if answer != b"+OK\r\n":
        raise ConnectionRefusedError(f"{command.split()[0]} was answered with {answer!r}")
