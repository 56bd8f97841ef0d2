"""One connection to Redis, used by one thread at a time, with no retries of its own: a lost reply is its owner's to
sort out.

It must not know what the commands mean.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import redis
from hiredis import pack_command
from redis.connection import AbstractConnection

from cog_celery.delivery.scripts import SCRIPTS, Script
from cog_celery.delivery.servers import pool, why
from cog_celery.errors import Forbidden, GroupMissing, ServerError, ServerLost

REPLY_TIMEOUT = 5.0
"""Seconds to wait for a reply."""
CONNECT_TIMEOUT = 3.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds to wait after a server was out of reach; doubled each time."""
QUIET = REPLY_TIMEOUT + LONGEST_PAUSE + 1.0
"""Seconds without a failure after which a server that was never out of reach altogether is well again: whoever still
fails does so more often."""
PIECE = 1 << 20
"""Bytes that must go out within REPLY_TIMEOUT: a snapshot of hundreds of megabytes may take longer."""

# Errors that pass by themselves, or when somebody mends the server: to be tried again, as after a lost connection.
TRANSIENT = ("READONLY ", "LOADING ", "MASTERDOWN ", "OOM ", "MISCONF ", "BUSY ", "NOREPLICAS ", "UNBLOCKED ")
# redis-py takes the first word off these.
TRANSIENT_KINDS = (redis.exceptions.ReadOnlyError, redis.exceptions.OutOfMemoryError, redis.exceptions.MasterDownError)
BROKEN = (redis.ConnectionError, redis.TimeoutError, OSError)

_KNOWN = ("SCRIPT", "EXISTS", *(script.sha for script in SCRIPTS))

T = TypeVar("T")

log = logging.getLogger(__name__)


class Outage:
    """Says once that a server does not serve us, and once that it does again; shared by all connections of a process.

    Some may work while others do not, and a server may answer one command and refuse the next. So it is over when a
    connection is made after one could not be; and, if that was never so, when nothing has failed for QUIET seconds.
    """

    def __init__(self, what: str = "", on_silence: Callable[[], None] = lambda: None) -> None:
        """`on_silence` is called from any thread when a connection that was good so far gives no reply in time: others
        of its age may only seem to be there, as when a firewall has forgotten them all.
        """
        self._what = what
        self._on_silence = on_silence
        self.silences = 0
        """How often that was."""
        self._lock = threading.Lock()
        self._unreachable = False
        self._failed_at = 0.0
        self._well_since: float | None = None
        self.since: float | None = None
        """When it began (monotonic), None when there is none."""

    def begin(self, error: BaseException, *, unreachable: bool = False) -> None:
        """Something failed; `unreachable`: not even a connection could be made."""
        with self._lock:
            self._failed_at, self._well_since = time.monotonic(), None
            self._unreachable |= unreachable
            if self.since is None:
                self.since = self._failed_at
                if self._what:
                    log.warning("%s; waiting for it", str(error).rstrip("."))

    def silent(self, since: int) -> None:
        """A connection gave no reply in time that was made when there had been `since` such silences."""
        with self._lock:
            known = since != self.silences
            self.silences += not known
        if not known:
            self._on_silence()

    def served(self, *, connected: bool = False) -> None:
        """A command was carried out, or a new connection made."""
        with self._lock:
            now = time.monotonic()
            if self._well_since is None:
                self._well_since = now
            if (connected and self._unreachable) or now - self._failed_at >= QUIET:
                self._over(self._well_since)

    def end(self) -> None:
        """It is over, for all that the caller knows."""
        if self.since is not None:
            with self._lock:
                self._over(time.monotonic())

    def _over(self, when: float) -> None:
        if self.since is None:
            return
        if self._what:
            log.warning("%s is back after %.1f s", self._what, when - self.since)
        self.since, self._unreachable = None, False


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
    """Connects at the first command. Waits `patience` seconds for a reply, and as long as the command itself may block.

    Raises ServerLost for a connection that broke and for errors that pass by themselves, GroupMissing, and ServerError
    for whatever else the server refuses.
    """

    def __init__(self, url: str, name: str, outage: Outage | None = None, *, patience: float = REPLY_TIMEOUT) -> None:
        connections = pool(
            url,
            driver_info=None,
            socket_timeout=patience,
            socket_connect_timeout=min(CONNECT_TIMEOUT, patience),
            socket_keepalive=True,
            health_check_interval=0,
        )
        self._connection = cast(AbstractConnection, connections.make_connection())
        self._name = name
        self._patience = patience
        self._outage = outage or Outage()
        self._connected = False
        self._owed = 0
        self._silences = 0
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
        # Rather than wait for a reply on a connection as old as one that has just been waited for in vain.
        if not self._connected or (self._silences != self._outage.silences and not self._owed):
            self._connect()
        packed = pack_command(command)
        self._owed += 1
        try:
            self._connection.send_packed_command([packed] if len(packed) <= PIECE else _pieces(packed), False)
        except BROKEN as error:
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
                reply = self._connection.read_response(timeout=wait + self._patience)
            else:
                reply = self._connection.read_response()
        except redis.exceptions.NoScriptError as error:
            self.close()  # the next connection loads them
            raise ScriptMissing(str(error)) from error
        except BROKEN as error:
            raise self._lost(error) from error
        except redis.ResponseError as error:
            raise self._refused(error) from error
        if self._outage.since is not None:
            self._outage.served()
        return reply

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
        silences = self._outage.silences
        try:
            self._connection.connect()
            self._send(("ROLE",), ("CLIENT", "SETNAME", self._name), ("CLIENT", "ID"), _KNOWN)
            role = self._tolerated()
            replies = [self._connection.read_response() for _ in range(2)]
            known = self._tolerated()
            # Their texts make 70 kB: only the first of thousands that come back after an outage sends them.
            has = known if isinstance(known, list) else [0] * len(SCRIPTS)
            missing = [script for script, there in zip(SCRIPTS, has, strict=True) if not there]
            if missing:
                self._send(*(("SCRIPT", "LOAD", script.source) for script in missing))
                for _ in missing:
                    self._connection.read_response()
        except BROKEN as error:
            raise self._lost(error, connecting=True) from error
        except redis.ResponseError as error:
            self.close()
            raise self._refused(error) from error
        if role and role[0] == b"slave":
            # Also after a failover: sentinels may name a server that is not, or no longer, a primary.
            primary = f"{bytes(role[1]).decode()}:{role[2]}"
            raise self._lost(
                redis.ConnectionError(
                    f"it is a replica of {primary}, which cannot be written to: name the primary, or "
                    "its sentinels (redis+sentinel://)"
                ),
                connecting=True,
            )
        self.client_id = int(replies[1])
        self._connected = True
        self._silences = silences
        if self._outage.since is not None:
            self._outage.served(connected=True)

    def _send(self, *commands: Sequence[str]) -> None:
        self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)

    def _tolerated(self) -> Any:
        """The next reply to what a server may refuse to tell us; None when it does. What follows says what it means."""
        try:
            return self._connection.read_response()
        except redis.ResponseError:
            return None

    def _lost(self, error: BaseException, *, connecting: bool = False) -> ServerLost:
        self.close()
        lost = ServerLost(f"Redis is out of reach: {why(error)}")
        if connecting or isinstance(error, redis.TimeoutError):
            self._outage.begin(lost, unreachable=connecting)
            if not connecting:
                self._outage.silent(self._silences)
        else:
            log.debug("a connection to Redis broke, another is made: %s", error)
        return lost

    def _refused(self, error: redis.ResponseError) -> ServerError:
        text = str(error)
        if "NOGROUP" in text:
            return GroupMissing(text)
        if isinstance(error, redis.exceptions.NoPermissionError):
            return Forbidden(f"Redis forbids us a command or a key: {text}")
        if isinstance(error, TRANSIENT_KINDS) or any(word in text for word in TRANSIENT):
            self.close()
            lost = ServerLost(f"Redis refuses commands for now: {text}")
            self._outage.begin(lost)
            return lost
        return ServerError(f"Redis refused a command: {text}")


class SharedLink:
    """A Link for any number of threads, one at a time."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()

    @contextmanager
    def lent(self) -> Iterator[Link]:
        """The link, for this thread alone."""
        with self._lock:
            yield self._link


def _pieces(packed: bytes) -> list[memoryview]:
    view = memoryview(packed)
    return [view[start : start + PIECE] for start in range(0, len(view), PIECE)]


class ScriptMissing(ServerError):
    """The server does not know the script, and has done nothing."""
