"""A primary, a replica, and three sentinels of which two must agree, on free ports.

It must not know what the tests keep in them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import redis

from tests.support.processes import Child, wait_until
from tests.support.servers import RedisServer, binary, free_port

NAME = "mymaster"
DOWN_AFTER = 0.5
"""Seconds of silence after which a sentinel takes a server for dead."""


class Sentinels:
    """`url` is what processes are given; `client` is one of the primary that was there at first."""

    def __init__(self, folder: Path, *, login: str = "", options: Sequence[str] = ()) -> None:
        self._cleanup = ExitStack()
        try:
            self.primary = self._server(folder / "primary", *options)
            self.replica = self._server(
                folder / "replica", "--replicaof", "127.0.0.1", str(self.primary.port), *options
            )
            self.port, self.client = self.primary.port, self.primary.client
            wait_until(lambda: self.role(self.replica, "master_link_status") == "up", "the replica to follow")
            self.ports = [free_port() for _ in range(3)]
            hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
            self.url = f"redis+sentinel://{login}{hosts}/{NAME}/0"
            self._sentinels = [self._sentinel(folder / f"sentinel-{port}", port) for port in self.ports]
            wait_until(self._ready, "the sentinels to know one another")
        except BaseException:
            self.stop()
            raise

    def _server(self, folder: Path, *options: str) -> RedisServer:
        folder.mkdir(parents=True)
        server = RedisServer("valkey", folder, "--repl-diskless-sync-delay", "0", *options)
        self._cleanup.callback(server.stop)
        return server

    def _sentinel(self, folder: Path, port: int) -> Child:
        folder.mkdir()
        file = folder / "sentinel.conf"  # which it writes to
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.primary.port} 2\n"
            f"sentinel down-after-milliseconds {NAME} {round(DOWN_AFTER * 1000)}\n"
            f"sentinel failover-timeout {NAME} 5000\n"
        )
        command = [str(binary("valkey")), str(file), "--sentinel"]
        child = Child(f"sentinel {port}", command, log=folder / "log", env=os.environ)
        self._cleanup.callback(child.discard)
        return child

    def _ready(self) -> bool:
        for child in self._sentinels:
            child.check_running()
        states = [self.state(port) for port in self.ports]
        return all(state.get("num-other-sentinels") == "2" and state.get("num-slaves") == "1" for state in states)

    def state(self, port: int) -> dict[str, str]:
        """What that sentinel knows of the primary."""
        try:
            with redis.Redis(port=port, protocol=2, decode_responses=True) as client:
                words = cast("list[str]", client.execute_command("SENTINEL", "MASTER", NAME))
        except redis.RedisError:
            return {}
        return dict(zip(words[::2], words[1::2], strict=True))

    def primary_port(self) -> int:
        """Where the first sentinel says that the primary is."""
        return int(self.state(self.ports[0]).get("port", 0))

    def role(self, server: RedisServer, field: str = "role") -> str:
        """A line of INFO replication; nothing when a sentinel cut the connection, as it does in a failover."""
        try:
            return str(cast("dict[str, object]", server.client.info("replication")).get(field, ""))
        except redis.ConnectionError:
            return ""

    def stop(self) -> None:
        self._cleanup.close()
