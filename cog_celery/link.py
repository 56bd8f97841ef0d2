"""One connection to Redis, used by one thread at a time, with no retries of its own: a lost reply is its owner's to
sort out.

It must not know what the commands mean.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import redis
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.retry import Retry

from cog_celery.errors import Forbidden, GroupMissing, ServerError, ServerLost
from cog_celery.scripts import SCRIPTS, Script

REPLY_TIMEOUT = 5.0
"""Seconds to wait for a reply, on top of the time for which a command blocks by itself."""
CONNECT_TIMEOUT = 3.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds to wait after a server was out of reach; doubled each time."""

# Errors that pass by themselves, or when somebody mends the server: to be tried again, as after a lost connection.
TRANSIENT = ("READONLY ", "LOADING ", "MASTERDOWN ", "OOM ", "MISCONF ", "BUSY ", "NOREPLICAS ", "UNBLOCKED ")

T = TypeVar("T")

log = logging.getLogger(__name__)


class Outage:
    """Says once that a server is gone, and once that it is back; shared by all connections of a process to it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None
        self._lock = threading.Lock()

    def begin(self, error: BaseException) -> None:
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                log.warning("%s is out of reach, waiting for it: %s", self._what, error)

    def end(self) -> None:
        if self._since is None:
            return
        with self._lock:
            if self._since is not None:
                log.warning("%s is back after %.1f s", self._what, time.monotonic() - self._since)
                self._since = None


def insist(step: Callable[[], T], giving_up: threading.Event) -> T:
    """Do a step that must happen, through any outage: every step of a queue may be repeated after a lost reply.

    Raises ServerLost once `giving_up` is set.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return step()
        except ServerLost:
            if giving_up.wait(pause):
                raise
            pause = min(LONGEST_PAUSE, pause * 2)


class Link:
    """Connects at the first command.

    Raises ServerLost for a connection that broke and for errors that pass by themselves, GroupMissing, and ServerError
    for whatever else the server refuses.
    """

    def __init__(self, url: str, name: str, outage: Outage | None = None) -> None:
        pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            client_name=name,
            socket_timeout=REPLY_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_keepalive=True,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 0),
        )
        self._connection = cast(AbstractConnection, pool.make_connection())
        self._outage = outage
        self._connected = False
        self._owed = 0
        self.client_id = 0

    def call(self, *command: Any, wait: float = 0.0) -> Any:
        """One command and its reply; `wait`: seconds for which the command itself may block."""
        self._settle()
        self.post(*command)
        return self.reply(wait)

    def script(self, script: Script, keys: Sequence[Any], *arguments: Any) -> Any:
        """Run a script and return its reply."""
        self._settle()
        self.post_script(script, keys, *arguments)
        try:
            return self.reply()
        except ScriptMissing:
            # The server lost its scripts (SCRIPT FLUSH, a failover), and did nothing: a fresh connection loads them.
            self.post_script(script, keys, *arguments)
            return self.reply()

    def post(self, *command: Any) -> None:
        """Send a command; its reply is to be taken by reply(), before anything else is asked."""
        try:
            if not self._connected:
                self._connect()
            self._owed += 1
            self._connection.send_packed_command([pack_command(command)], check_health=False)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise self._lost(error) from error

    def post_script(self, script: Script, keys: Sequence[Any], *arguments: Any) -> None:
        """As post(), for a script."""
        self.post("EVALSHA", script.sha, len(keys), *keys, *arguments)

    def reply(self, wait: float = 0.0) -> Any:
        """The reply to the oldest command that was sent and not yet answered."""
        if not self._owed:
            raise ServerLost("Redis will not answer: the connection was closed")
        self._owed -= 1
        try:
            if wait:
                return self._connection.read_response(timeout=wait + REPLY_TIMEOUT)
            return self._connection.read_response()
        except redis.exceptions.NoScriptError as error:
            self.close()  # the next connection loads them
            raise ScriptMissing(str(error)) from error
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise self._lost(error) from error
        except redis.ResponseError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Break the connection; the next command makes another."""
        self._connected = False
        self._owed = 0
        self._connection.disconnect()

    def _settle(self) -> None:
        """A reply that nobody took, since an error came between, must not be taken for another's."""
        if self._owed:
            self.close()

    def _connect(self) -> None:
        self.close()
        try:
            self._connection.connect()
            commands = [("CLIENT", "ID"), *(("SCRIPT", "LOAD", script.source) for script in SCRIPTS)]
            self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
            replies = [self._connection.read_response() for _ in commands]
        except redis.ResponseError as error:
            self.close()
            raise self._refused(error) from error
        self.client_id = int(replies[0])
        self._connected = True
        if self._outage:
            self._outage.end()

    def _lost(self, error: BaseException) -> ServerLost:
        self.close()
        lost = ServerLost(f"Redis did not answer: {error}")
        if self._outage:
            self._outage.begin(lost)
        return lost

    def _refused(self, error: redis.ResponseError) -> ServerError:
        text = str(error)
        if "NOGROUP" in text:
            return GroupMissing(text)
        if isinstance(error, redis.exceptions.NoPermissionError):
            return Forbidden(f"Redis forbids us a command or a key: {text}")
        kind = type(error)
        transient = kind in (redis.exceptions.ReadOnlyError, redis.exceptions.OutOfMemoryError)
        if transient or any(word in text for word in TRANSIENT):
            return self._lost(error)
        return ServerError(f"Redis refused a command: {text}")


class ScriptMissing(ServerError):
    """The server does not know the script, and has done nothing."""
