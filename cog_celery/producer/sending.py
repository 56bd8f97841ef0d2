"""What a producer does: adds a request to a queue, follows its response key, and cancels through its cancel key.

It must not know who consumes the queue, nor how what it sees is shown.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, Self, cast

import redis
from redis.exceptions import NoPermissionError

from cog_celery.delivery.stream import HIGH
from cog_celery.errors import ServerError, UsageError
from cog_celery.producer import places

Snapshot = Mapping[str, Any]

TERMINAL: Final = ("succeeded", "failed", "canceled")
CANCEL_TTL: Final = 24 * 3600
"""Seconds that a cancel key is kept: a request may wait for its turn for long."""
RESPONSE_TTL: Final = 3600
"""Seconds that a response which has been read is kept."""

TICK: Final = 0.2
"""Seconds after which an interruption is seen and a clock moves on, whatever happens in Redis."""
FIRST_POLL, LAST_POLL = 0.05, 1.0
"""Seconds between two looks at the response key when no notification comes."""
FIRST_DOUBT, LAST_DOUBT = 3.0, 60.0
"""Seconds without news until the queue itself is looked at, and at most between two such looks: requests are large."""
PAGE: Final = 50
"""Entries that a search reads at once; one may have megabytes."""

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_ENTRY_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


@dataclass(frozen=True)
class Sent:
    """One request on its way: the prediction's id, its stream and entry, and the two keys that it names."""

    id: str
    queue: str
    entry: str
    response_queue: str
    cancel_key: str


class Watcher(Protocol):
    """Who is told what happens to a request that is followed."""

    def tick(self) -> None:
        """Time has passed."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """The response has changed."""

    def notice(self, text: str) -> None:
        """A sentence for the person who waits."""


def message(queue: str, name: str, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The request with an id and keys made of `name`, unless it brings its own; and as it goes to the queue."""
    own = {"id": name, "response_queue": f"{queue}-response-{name}", "cancel_key": f"{queue}-cancel-{name}"}
    whole = {**own, **{field: value for field, value in request.items() if value is not None or field not in own}}
    return whole, escaped(json.dumps(whole, ensure_ascii=False)).encode()


def escaped(text: str) -> str:
    """JSON that can be encoded: half a surrogate pair, which JSON can name, has no form in UTF-8 but its escape."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def send(
    client: redis.Redis,
    queue: str,
    inputs: Mapping[str, Any],
    max_bytes: int,
    *,
    version: str | None = None,
    priority: bool = False,
) -> Sent:
    """Add one request to the queue, or to its lane, with keys of its own. Raises UsageError when it is too large, or
    there is no lane, redis.RedisError.
    """
    stream = places.lane(client, queue) if priority else queue
    fields = {"input": inputs} if version is None else {"input": inputs, "version": version}
    request, value = message(queue, uuid.uuid4().hex, fields)
    if len(value) > max_bytes:
        raise UsageError(
            f"the request has {len(value)} bytes, and the queue takes {max_bytes} (COG_CELERY_MAX_REQUEST_BYTES): "
            "send large files by --input-upload-url, or as URLs"
        )
    entry = cast(bytes, client.xadd(stream, {"value": value}))
    return Sent(request["id"], stream, entry.decode(), request["response_queue"], request["cancel_key"])


class Interrupted(Exception):
    """The person who waits has had enough; the prediction goes on, or ends, without them."""


def follow(client: redis.Redis, sent: Sent, watcher: Watcher, interruptions: Callable[[], int]) -> Snapshot:
    """The terminal snapshot; the watcher is told of every change on the way.

    `interruptions` counts those so far: the first cancels the prediction, the second raises Interrupted. An outage of
    Redis is waited out. Raises ServerError when the request is gone without an answer.
    """
    follower = _Follower(client, sent, watcher, interruptions)
    with _Bell(client, sent.response_queue) as bell:
        snapshot = follower.run(bell)
    try:
        forget(client, [sent])
    except redis.RedisError as error:
        watcher.notice(f"the keys of this request stay in Redis: {error}")
    return snapshot


def forget(client: redis.Redis, ended: Iterable[Sent]) -> None:
    """Let the keys of requests that have ended go. Raises redis.RedisError."""
    with client.pipeline(transaction=False) as pipeline:
        for sent in ended:
            pipeline.expire(sent.response_queue, RESPONSE_TTL)
            pipeline.delete(sent.cancel_key)
        pipeline.execute()


def still_there(client: redis.Redis, sent: Sent) -> Sent | None:
    """Where the request is that was sent, in another queue perhaps; None when it has left its stream.

    A producer who may not read all of that is not told, nor is one whose request was moved long ago: then it counts as
    being where it was last.
    """
    try:
        while not client.xrange(sent.queue, sent.entry, sent.entry):
            moved = places.moved(client, sent.queue, sent.entry)
            if moved is None:
                return None
            if moved == (sent.queue, sent.entry):
                break
            sent = replace(sent, queue=moved[0], entry=moved[1])
    except NoPermissionError:
        pass
    return sent


def parsed(sent: Sent, value: bytes) -> Snapshot:
    """The response. Raises ServerError when it is none."""
    try:
        snapshot = json.loads(value)
    except (ValueError, RecursionError):
        snapshot = None
    if not isinstance(snapshot, dict):
        raise ServerError(f"the response at {sent.response_queue} is no JSON object: who writes to that key?")
    return snapshot


class _Follower:
    """The loop that looks: at the response when it may have changed, and at the queue when nothing happens for long."""

    def __init__(self, client: redis.Redis, sent: Sent, watcher: Watcher, interruptions: Callable[[], int]) -> None:
        self._client = client
        self._sent = sent
        self._watcher = watcher
        self._interruptions = interruptions
        self._canceled = False
        self._seen: bytes | None = None
        self._missing = False
        self._hinted = False

    def run(self, bell: _Bell) -> Snapshot:
        poll, look_at = FIRST_POLL, 0.0
        doubt, doubt_at = FIRST_DOUBT, time.monotonic() + FIRST_DOUBT
        down = False
        while True:
            try:
                self._cancel_when_told()
                now = time.monotonic()
                if now >= look_at:
                    snapshot = self._look()
                    if snapshot is not None and snapshot.get("status") in TERMINAL:
                        return snapshot
                    poll = min(poll * 1.5, LAST_POLL) if snapshot is None else FIRST_POLL
                    look_at = now + poll
                    doubt_at = now + FIRST_DOUBT if snapshot is not None else doubt_at
                if now >= doubt_at:
                    doubt = LAST_POLL if self._doubt() else min(doubt * 2, LAST_DOUBT)
                    doubt_at = now + doubt
                if bell.rung(min(TICK, max(0.0, look_at - now))):
                    look_at = 0.0
                if down:
                    self._watcher.notice("Redis answers again")
                    down = False
            except (redis.ConnectionError, redis.TimeoutError):
                # The request is in the stream, and its answer will be at the key: both outlive the connection.
                if not down:
                    self._watcher.notice("the connection to Redis is lost; trying again")
                    down = True
                look_at = 0.0
                self._leave_when_told()
                time.sleep(TICK)
            self._watcher.tick()

    def _look(self) -> Snapshot | None:
        """The response, if it has changed."""
        value = cast("bytes | None", self._client.get(self._sent.response_queue))
        if value is None or value == self._seen:
            return None
        self._seen = value
        snapshot = parsed(self._sent, value)
        self._watcher.snapshot(snapshot)
        return snapshot

    def _cancel_when_told(self) -> None:
        self._leave_when_told()
        if self._interruptions() and not self._canceled:
            set_cancel_key(self._client, self._sent.cancel_key)
            self._canceled = True
            self._watcher.notice("canceling; once more to leave without waiting for the end")

    def _leave_when_told(self) -> None:
        if self._interruptions() > 1:
            raise Interrupted

    def _doubt(self) -> bool:
        """Nothing has come for a while: has anybody taken the request? True when it is not even there."""
        there = still_there(self._client, self._sent)
        if there is None:
            # The answer may have been written between our last look and this one: the next look tells.
            if self._missing:
                raise ServerError(
                    f"the request {self._sent.entry} is gone from {self._sent.queue}, and nothing answers it any more: "
                    "somebody deleted it, or the server lost it"
                )
            self._missing = True
            return True
        self._sent = there
        if self._seen is None and not self._hinted:
            hint = waiting(self._client, self._sent.queue, self._sent.entry)
            if hint:
                self._hinted = True
                self._watcher.notice(hint)
        return False


class _Bell:
    """Rings when the key is written, if the server sends keyspace notifications; otherwise time passes."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        database = client.connection_pool.connection_kwargs.get("db") or 0
        self._channel = f"__keyspace@{database}__:{key}"
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        self._usable = True

    def __enter__(self) -> Self:
        try:
            self._pubsub.subscribe(self._channel)
        except NoPermissionError:
            self._usable = False
        return self

    def __exit__(self, *exc: object) -> None:
        self._pubsub.close()

    def rung(self, seconds: float) -> bool:
        """Wait for at most so long. Raises redis.ConnectionError."""
        if not self._usable:
            time.sleep(seconds)
            return False
        try:
            message = self._pubsub.get_message(timeout=seconds)
        except NoPermissionError:
            self._usable = False
            return False
        return message is not None


def waiting(client: redis.Redis, queue: str, entry: str) -> str:
    """A sentence about a request that nobody has taken; nothing when somebody has, or we may not look. Raises
    redis.RedisError.
    """
    depth = client.xlen(queue)
    others = f"{depth} request{'s' if depth != 1 else ''} in {queue}"
    try:
        groups = client.xinfo_groups(queue)
        if not groups:
            return (
                f"nobody serves {queue} yet: it has no consumer group ({others}). Is a bridge running, on this Redis?"
            )
        if any(client.xpending_range(queue, group["name"], entry, entry, 1) for group in groups):
            return ""
    except NoPermissionError:
        return ""
    return f"the request still waits, {others}. Are workers running, ready, and not all busy?"


def set_cancel_key(client: redis.Redis, key: str) -> None:
    """Cancel what names this key. A key that exists, of whatever type, has canceled it already."""
    client.set(key, "", ex=CANCEL_TTL, nx=True)


def cancel(client: redis.Redis, queue: str, prediction: str) -> None:
    """Cancel a request that waits or runs, by its id or by its entry's id, also if it went to the queue of its version.

    Raises ServerError when the queue has no such request, or when it names no cancel_key.
    """
    if _cancel_in(client, queue, prediction):
        return
    target = places.went(client, queue, prediction)
    if target is None:
        raise ServerError(f"{queue} has no request {prediction}: it has ended, or was sent to another queue or Redis")
    stream, entry = target
    if not _cancel_in(client, stream.removesuffix(HIGH), f"{entry}{HIGH}" if stream.endswith(HIGH) else entry):
        raise ServerError(f"{prediction} went from {queue} to {stream}, as {entry}, and has ended there")


def _cancel_in(client: redis.Redis, queue: str, prediction: str) -> bool:
    for stream in places.streams(client, queue):
        for entry, request in _requests(client, stream, prediction):
            name = f"{entry}{HIGH}" if stream != queue else entry  # as logs and Flower have it
            if prediction not in (entry, name, str(request.get("id"))):
                continue
            key = request.get("cancel_key")
            if not isinstance(key, str) or not key:
                raise ServerError(
                    f"{prediction} cannot be canceled: its producer gave it no cancel_key. "
                    f"Only deleting it ends it: XDEL {stream} {entry}"
                )
            set_cancel_key(client, key)
            return True
    return False


def _requests(client: redis.Redis, queue: str, prediction: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Entries with what can be read of their requests: the one that is meant, if it is an entry's id, then all."""
    entry = prediction.removesuffix(HIGH)
    if _ENTRY_ID.fullmatch(entry):
        yield from _page(client, queue, entry, entry)
    first = "-"
    while True:
        entry = ""
        for entry, request in _page(client, queue, first, "+"):
            yield entry, request
        if not entry:
            return
        first = f"({entry}"


def _page(client: redis.Redis, queue: str, first: str, last: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(queue, first, last, count=PAGE))
    for entry, fields in entries:
        try:
            request = json.loads(fields.get(b"value", b"").decode())
        except (ValueError, RecursionError):
            request = None
        yield entry.decode(), request if isinstance(request, dict) else {}
