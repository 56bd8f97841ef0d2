"""Where requests of a queue are: its streams, and the queue of a version that one was moved to.

It must not know what is in a request. A producer that may not read these keys knows its queue's own stream alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import redis
from redis.exceptions import NoPermissionError

from cog_celery.delivery.presence import Noted
from cog_celery.delivery.status import order_of
from cog_celery.delivery.stream import HIGH, Queue
from cog_celery.errors import UsageError

MOST_NOTES: Final = 1000


def lane(client: redis.Redis, queue: str) -> str:
    """The stream of a queue's lane. Raises UsageError when the queue has none, redis.RedisError."""
    if _setting(client, queue, "priority") is False:
        raise UsageError(
            f"queue {queue} has no lane for --priority: its bridges and workers are to have `--priority` too"
        )
    return f"{queue}{HIGH}"


def streams(client: redis.Redis, queue: str) -> list[str]:
    """The streams that requests of a queue may be in. Raises redis.RedisError."""
    return [f"{queue}{HIGH}", queue] if _setting(client, queue, "priority") else [queue]


def moved(client: redis.Redis, stream: str, entry: str) -> tuple[str, str] | None:
    """The stream and the entry that a request went to; the same again when nobody knows any more, since others were
    moved after it; None when it went nowhere. Raises redis.RedisError.
    """
    queue = stream.removesuffix(HIGH)
    if not _switch(client, queue, "front"):
        return None
    notes: Any = client.xrevrange(Queue(queue).recent, count=MOST_NOTES)
    for _, fields in notes:
        if (move := _move(fields)) is not None and move[0] == (f"{entry}{HIGH}" if stream.endswith(HIGH) else entry):
            return move[1:]
    forgotten = len(notes) >= MOST_NOTES and order_of(bytes(notes[-1][0]).decode()) > order_of(entry)
    return (stream, entry) if forgotten else None


def went(client: redis.Redis, queue: str, prediction: str) -> tuple[str, str] | None:
    """The stream and the entry that the newest request with this id, or of this entry, went to from `queue`; None when
    it went nowhere, as far as this producer may know. Raises redis.RedisError.
    """
    if not _setting(client, queue, "front"):
        return None
    notes: Any = client.xrevrange(Queue(queue).recent, count=MOST_NOTES)
    for _, fields in notes:
        if (move := _move(fields)) is not None:
            name = move[0]
            if prediction in (name, name.removesuffix(HIGH), _noted_id(fields.get(b"about", b""))):
                return move[1:]
    return None


def _move(fields: Mapping[bytes, bytes]) -> tuple[str, str, str] | None:
    """Of a note that a request was moved: its name, as entries of both streams are told apart, and where it is now."""
    if fields.get(b"what") != b"moved":
        return None
    target, _, entry = fields.get(b"owner", b"").decode(errors="replace").rpartition("/")
    was = fields.get(b"entry", b"").decode(errors="replace")
    return f"{was}{HIGH}" if target.endswith(HIGH) else was, target, entry


def _noted_id(about: bytes) -> str | None:
    try:
        return msgspec.json.decode(about, type=Noted).id
    except msgspec.DecodeError:
        return None


def _setting(client: redis.Redis, queue: str, name: str) -> bool | None:
    """A switch of the queue's; None when nobody may tell, or nobody has served it yet."""
    try:
        return _switch(client, queue, name)
    except NoPermissionError:
        return None


def _switch(client: redis.Redis, queue: str, name: str) -> bool | None:
    value: Any = client.hget(Queue(queue).settings_key, name)
    return None if value is None else bytes(value) == b"true"
