"""Where requests of a queue are: its streams, and the queue of a version that one was moved to.

It must not know what is in a request. A producer that may not read these keys knows its queue's own stream alone.
"""

from __future__ import annotations

from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

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
        if fields.get(b"what") == b"moved" and fields.get(b"entry") == entry.encode():
            target, _, moved_entry = fields.get(b"owner", b"").decode(errors="replace").rpartition("/")
            if target.endswith(HIGH) == stream.endswith(HIGH):  # the other stream may have an entry of the same id
                return target, moved_entry
    forgotten = len(notes) >= MOST_NOTES and order_of(bytes(notes[-1][0]).decode()) > order_of(entry)
    return (stream, entry) if forgotten else None


def _setting(client: redis.Redis, queue: str, name: str) -> bool | None:
    """A switch of the queue's; None when nobody may tell, or nobody has served it yet."""
    try:
        return _switch(client, queue, name)
    except NoPermissionError:
        return None


def _switch(client: redis.Redis, queue: str, name: str) -> bool | None:
    value: Any = client.hget(Queue(queue).settings_key, name)
    return None if value is None else bytes(value) == b"true"
