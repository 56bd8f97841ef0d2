"""Many requests from a file of JSON lines: sent in batches, a bounded number on their way, each followed to its end.

It must not know how what happens is shown.
"""

from __future__ import annotations

import glob
import json
import os
import select
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NoReturn, Protocol, Self, cast

import redis
from redis.exceptions import NoPermissionError

from cog_celery.errors import ServerError, UsageError
from cog_celery.producer import places, sending
from cog_celery.producer.sending import (
    FIRST_DOUBT,
    LAST_DOUBT,
    LAST_POLL,
    PAGE,
    TERMINAL,
    TICK,
    Interrupted,
    Sent,
    Snapshot,
)

IN_FLIGHT: Final = 1000
"""Requests that wait or run at once: enough for any fleet, and a queue that others can still use."""

BATCH: Final = 100
BATCH_BYTES: Final = 1 << 20
READ: Final = 1 << 18

GATHER: Final = 0.02
"""Seconds for which notifications are gathered before responses are read: a model may write one at each token."""

SLOW_POLL: Final = 15.0
"""Seconds between two looks at all responses when notifications come: one that was lost is still seen."""

KEYS: Final = ("response_queue", "cancel_key")


@dataclass(frozen=True)
class Request:
    """One line's request on its way."""

    line: int
    sent: Sent


class Watcher(Protocol):
    """Who is told what happens."""

    def refused(self, line: int, why: str) -> None:
        """This line is no request, and was not sent."""

    def sent(self, request: Request) -> None:
        """This one is in the queue."""

    def ended(self, request: Request, snapshot: Snapshot) -> None:
        """Its terminal snapshot."""

    def lost(self, request: Request, why: str) -> None:
        """There will be none."""

    def notice(self, text: str) -> None:
        """A sentence for the person who waits."""

    def tick(self) -> None:
        """Time has passed."""


class BadLine(Exception):
    """A line that is no request."""


class Lines:
    """The lines of a file or pipe, read as they are wanted; longer ones than `max_bytes` are not kept in memory."""

    def __init__(self, descriptor: int, max_bytes: int) -> None:
        self.over = False
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._buffer = b""
        self._position = 0
        self._number = 0
        self._too_long = False
        self._at_end = False

    def next(self, patience: float = 0.0) -> tuple[int, bytes | None] | None:
        """The next line's number and text, or None for its text if it is too long.

        None when nothing comes within `patience` seconds; `over` says that nothing will. Raises UsageError.
        """
        while not self.over:
            end = self._buffer.find(b"\n", self._position)
            if end < 0 and not self._at_end:
                if not select.select([self._descriptor], [], [], patience)[0]:
                    return None
                self._read()
                continue
            if end < 0:
                self.over = True
                if self._position == len(self._buffer) and not self._too_long:
                    return None
                end = len(self._buffer)
            line, self._position = self._buffer[self._position : end], end + 1
            self._number += 1
            too_long, self._too_long = self._too_long or len(line) > self._max_bytes, False
            if line.strip() or too_long:
                return self._number, None if too_long else line
        return None

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, READ)
        except OSError as error:
            raise UsageError(f"the file of requests cannot be read: {error.strerror}") from None
        self._at_end = not data
        rest = self._buffer[self._position :]
        if len(rest) > self._max_bytes:
            self._too_long, rest = True, b""
        self._buffer, self._position = rest + data, 0


def parse(line: bytes, common: Mapping[str, Any], *, own_keys: bool) -> dict[str, Any]:
    """The request in a line, over inputs that are common to all. Raises BadLine.

    `own_keys`: it may name its response_queue and cancel_key, since nobody here will read them.
    """
    try:
        request = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise BadLine("it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BadLine(f"it is not JSON: {error}") from None
    if not isinstance(request, dict) or not isinstance(request.get("input"), dict):
        raise BadLine('a request is needed, like {"input": {"text": "hello"}}')
    for key in KEYS:
        if key in request and not own_keys:
            raise BadLine(f"it names a {key}, but this command reads the responses: leave it out, or use --no-wait")
    request["input"] = {**common, **request["input"]}
    return request


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number there")


@dataclass
class Plan:
    """What is to be sent: `common` inputs for every line, to `queue`, whose requests have at most `max_bytes`.

    `priority`: to its lane; `version`: for lines that name none.
    """

    lines: Lines
    queue: str
    common: Mapping[str, Any]
    max_bytes: int
    wait: bool = True
    version: str | None = None
    priority: bool = False


@dataclass
class _Flight:
    """A request that has no terminal response yet."""

    request: Request
    seen: int | None = None
    """A hash of its last response, which may be large."""
    missing: bool = False


def send_all(client: redis.Redis, plan: Plan, watcher: Watcher, interruptions: Callable[[], int]) -> bool:
    """Send every line and, if the plan says so, follow each to its end; False when not all lines were sent.

    `interruptions` counts those so far: after the first no more is sent, and what is on its way is canceled; the second
    raises Interrupted. An outage of Redis is waited out, unless it may have taken requests along: then no more is sent.
    Raises UsageError, redis.RedisError.
    """
    many = _Many(client, plan, watcher, interruptions)
    with _Bell(client, many.pattern) as bell:
        many.run(bell)
    return many.all_sent


class _Many:
    def __init__(self, client: redis.Redis, plan: Plan, watcher: Watcher, interruptions: Callable[[], int]) -> None:
        self.all_sent = True
        self._client = client
        self._plan = plan
        self._watcher = watcher
        self._interruptions = interruptions
        self._run = uuid.uuid4().hex
        self._stream = places.lane(client, plan.queue) if plan.priority else plan.queue
        self._prefix = f"{plan.queue}-response-{self._run}-"
        self.pattern = glob.escape(self._prefix) + "*"
        self._flying: dict[int, _Flight] = {}
        self._rung: set[int] = set()
        self._stopped = False
        self._canceled = False
        self._hinted = False
        self._doubt = FIRST_DOUBT
        self._news_at = time.monotonic()

    def run(self, bell: _Bell) -> None:
        poll_at, down = 0.0, False
        while True:
            self._watcher.tick()
            try:
                self._cancel_when_told()
                if down:
                    self._client.ping()  # before anything is sent that could get lost on the way
                sent = self._send_some()
                if not self._flying and (self._stopped or self._plan.lines.over):
                    return
                if not self._flying:
                    continue  # all there is has been sent, and more may come
                for key in bell.rung(0.0 if sent else TICK):
                    self._rung.add(int(key.removeprefix(self._prefix)))
                if time.monotonic() >= poll_at:
                    poll_at = time.monotonic() + (SLOW_POLL if bell.works else LAST_POLL)
                    self._rung.update(self._flying)
                self._look()
                self._doubt_when_silent()
                if down:
                    self._watcher.notice("Redis answers again")
                    down, poll_at = False, 0.0
            except (redis.ConnectionError, redis.TimeoutError):
                # The requests are in the stream, and the answers will be at their keys.
                if not down:
                    self._watcher.notice("the connection to Redis is lost; trying again")
                    down = True
                self._leave_when_told()
                time.sleep(TICK)

    def _send_some(self) -> bool:
        """Send a batch, if there is room for it and there are lines; whether there may be more at once."""
        room = IN_FLIGHT - len(self._flying) if self._plan.wait else BATCH
        if self._stopped or not room:
            return False
        batch: list[tuple[int, dict[str, Any], bytes]] = []
        size = 0
        while len(batch) < min(room, BATCH) and size < BATCH_BYTES:
            # With nothing else to do, wait for a pipe.
            found = self._plan.lines.next(0.0 if batch or self._flying else TICK)
            if found is None:
                break
            number, line = found
            try:
                if line is None:
                    raise BadLine(f"it has more than {self._plan.max_bytes} bytes, which the queue takes")
                request = parse(line, self._plan.common, own_keys=not self._plan.wait)
                if self._plan.version is not None:
                    request.setdefault("version", self._plan.version)
                request, value = sending.message(self._plan.queue, f"{self._run}-{number}", request)
                if len(value) > self._plan.max_bytes:
                    raise BadLine(f"its request has {len(value)} bytes, and the queue takes {self._plan.max_bytes}")
            except BadLine as error:
                self._watcher.refused(number, str(error))
                continue
            batch.append((number, request, value))
            size += len(value)
        if batch:
            self._send(batch)
        return bool(batch)

    def _send(self, batch: Sequence[tuple[int, dict[str, Any], bytes]]) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for _, _, value in batch:
                pipeline.xadd(self._stream, {"value": value})
            try:
                entries = pipeline.execute(raise_on_error=False)
            except redis.RedisError as error:
                # To send them again could send them twice.
                first, last = batch[0][0], batch[-1][0]
                self._stop(
                    f"nothing more is sent: {_cause(error)}. Lines {first} to {last} may be in the queue or not, those "
                    "after them are not"
                )
                raise
        self._news_at = time.monotonic()
        for (number, request, _), entry in zip(batch, entries, strict=True):
            if isinstance(entry, Exception):
                self._stop(f"nothing more is sent: Redis refused line {number}: {entry}")
                continue
            keys = (str(request[key]) for key in KEYS)
            sent = Sent(str(request["id"]), self._stream, cast(bytes, entry).decode(), *keys)
            self._watcher.sent(Request(number, sent))
            if self._plan.wait:
                self._flying[number] = _Flight(Request(number, sent))

    def _stop(self, why: str) -> None:
        if not self._stopped:
            self._stopped, self.all_sent = True, False
            self._watcher.notice(why)

    def _look(self) -> None:
        """Read the responses that may have changed, a page at a time."""
        while page := list(islice((number for number in self._rung if number in self._flying), PAGE)):
            flights = [self._flying[number] for number in page]
            with self._client.pipeline(transaction=False) as pipeline:
                for flight in flights:
                    pipeline.get(flight.request.sent.response_queue)
                values = cast("list[bytes | None]", pipeline.execute())
            self._rung.difference_update(page)
            ended = []
            for flight, value in zip(flights, values, strict=True):
                if value is None or hash(value) == flight.seen:
                    continue
                flight.seen = hash(value)
                self._news_at, self._doubt = time.monotonic(), FIRST_DOUBT
                if self._has_ended(flight, value):
                    ended.append(flight.request.sent)
            if ended:
                sending.forget(self._client, ended)
        self._rung.clear()

    def _has_ended(self, flight: _Flight, value: bytes) -> bool:
        request = flight.request
        try:
            snapshot = sending.parsed(request.sent, value)
        except ServerError as error:
            self._watcher.lost(request, str(error))
        else:
            if snapshot.get("status") not in TERMINAL:
                return False
            self._watcher.ended(request, snapshot)
        del self._flying[request.line]
        return True

    def _doubt_when_silent(self) -> None:
        """After a while without news: are those still there that were sent first, and has anybody taken them?"""
        if time.monotonic() - self._news_at < self._doubt:
            return
        self._news_at, self._doubt = time.monotonic(), min(self._doubt * 2, LAST_DOUBT)
        for flight in list(self._flying.values()):
            sent = sending.still_there(self._client, flight.request.sent)
            if sent is not None:
                if flight.seen is None and not self._hinted:
                    hint = sending.waiting(self._client, sent.queue, sent.entry)
                    self._hinted = bool(hint)
                    if hint:
                        self._watcher.notice(hint)
                return
            if flight.missing:
                why = "it is gone from the queue, and nothing answers it: somebody deleted it, or the server lost it"
                self._watcher.lost(flight.request, why)
                del self._flying[flight.request.line]
            else:  # its answer may have come between the last look and this one
                flight.missing = True
                self._rung.add(flight.request.line)
                self._doubt = LAST_POLL

    def _cancel_when_told(self) -> None:
        self._leave_when_told()
        if not self._interruptions() or self._canceled:
            return
        self._canceled = True
        if not self._plan.lines.over:
            self._stop("nothing more is sent")
        if self._flying:
            count = "1 prediction" if len(self._flying) == 1 else f"{len(self._flying)} predictions"
            self._watcher.notice(f"canceling {count}; once more to leave without waiting for the end")
        with self._client.pipeline(transaction=False) as pipeline:
            for flight in self._flying.values():
                sending.set_cancel_key(pipeline, flight.request.sent.cancel_key)
            pipeline.execute()

    def _leave_when_told(self) -> None:
        if self._interruptions() > 1:
            raise Interrupted


class _Bell:
    """Tells which keys of a pattern are written, if the server sends keyspace notifications; else time passes."""

    def __init__(self, client: redis.Redis, pattern: str) -> None:
        database = client.connection_pool.connection_kwargs.get("db") or 0
        self._channel = f"__keyspace@{database}__:"
        self._pattern = self._channel + pattern
        self._pubsub = client.pubsub()
        self._allowed = True
        self.works = False
        """Whether one has come."""

    def __enter__(self) -> Self:
        try:
            self._pubsub.psubscribe(self._pattern)
            self._pubsub.get_message(timeout=LAST_POLL)  # that it is heard: what is written from now on rings
        except NoPermissionError:
            self._allowed = False
        return self

    def __exit__(self, *exc: object) -> None:
        self._pubsub.close()

    def rung(self, seconds: float) -> Iterator[str]:
        """The keys of the moment; waits for at most so long for the first. Raises redis.ConnectionError."""
        if not self._allowed:
            time.sleep(min(seconds, LAST_POLL))
            return
        until = time.monotonic() + seconds
        found = False
        while True:
            try:
                message = self._pubsub.get_message(timeout=max(0.0, until - time.monotonic()))
            except NoPermissionError:
                self._allowed = False
                return
            if message is None:
                return
            if message["type"] == "pmessage":
                if not found:
                    found = self.works = True
                    until = min(until, time.monotonic() + GATHER)
                yield message["channel"].decode().removeprefix(self._channel)


def _cause(error: redis.RedisError) -> str:
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        return "the connection to Redis was lost"
    return f"Redis refused: {error}"
