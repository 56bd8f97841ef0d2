"""The dead letters of a queue: looks at them, puts their requests back into the stream, throws them away.

It must not know why a request was buried, nor how a letter is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError

from cog_celery.delivery.scripts import RETRY
from cog_celery.errors import ServerError

OURS: Final = (b"reason", b"entry", b"attempts", b"owner")
"""The fields of a letter that are not the request's: the first four, whatever those behind them are called."""
PAGE: Final = 10
"""Letters that are read at once; one may have megabytes."""
DROPPED: Final = 100
"""Letters that are removed at once."""


@dataclass(frozen=True)
class Head:
    """What a letter says of its request; `size`: bytes of the request's fields. Texts may be hostile. `entry` ends with
    `.high` if it was in the lane.
    """

    id: str
    entry: str
    attempts: str
    owner: str
    reason: str
    size: int

    @property
    def buried_at(self) -> float:
        """Seconds since 1970, by the server's clock."""
        return int(self.id.partition("-")[0]) / 1000


@dataclass(frozen=True)
class Letter:
    """A dead letter: its head, and the fields of the request as its producer sent them."""

    head: Head
    fields: tuple[tuple[bytes, bytes], ...]


class DeadLetters:
    """Those of one queue. Raises redis.RedisError."""

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self.queue = queue
        self.key = f"{queue}-dead"
        self._client = client
        # redis-py makes a dict of an entry's fields, where those of equal names are lost, and their order may be.
        for command in ("XRANGE", "XREVRANGE"):
            client.set_response_callback(command, lambda response, **options: response)

    def count(self) -> int:
        """How many there are."""
        return self._client.xlen(self.key)

    def newest(self, limit: int, reason: str = "") -> list[Head]:
        """The newest `limit` whose reason has this text in it, the newest last."""
        heads: list[Head] = []
        before = "+"
        while len(heads) < limit and (page := self._read("XREVRANGE", before, "-", PAGE)):
            before = f"({page[-1].head.id}"
            heads += [letter.head for letter in page if reason in letter.head.reason]
        return heads[:limit][::-1]

    def ids(self, reason: str = "") -> list[str]:
        """The ids of all that are there now and whose reason has this text in it, oldest first."""
        ids: list[str] = []
        after, last = "-", self._read("XREVRANGE", "+", "-", 1)
        while last and (page := self._read("XRANGE", after, last[0].head.id, PAGE)):
            after = f"({page[-1].head.id}"
            ids += [letter.head.id for letter in page if reason in letter.head.reason]
        return ids

    def get(self, id: str) -> Letter | None:
        """The letter of this id."""
        found = self._read("XRANGE", id, id, 1)
        return found[0] if found else None

    def retry(self, id: str) -> str | None:
        """Put the request back into the stream as it was, and remove the letter, in one step: its new entry, as it is
        called in logs.

        None if there is no such letter, any more. Raises ServerError for one that has no request in it.
        """
        keys = (self.queue, self.key)
        try:
            answer: Any = self._client.evalsha(RETRY.sha, len(keys), *keys, id)
        except NoScriptError:
            answer = self._client.eval(RETRY.source, len(keys), *keys, id)
        if answer == 1:
            raise ServerError(f"{id} of {self.key} holds no request that was buried: something else wrote it")
        return bytes(answer).decode() if answer else None

    def drop(self, ids: list[str]) -> Iterator[int]:
        """Remove letters, some at a time; how many of these were there."""
        for start in range(0, len(ids), DROPPED):
            yield self._client.xdel(self.key, *ids[start : start + DROPPED])

    def _read(self, command: str, first: str, last: str, count: int) -> list[Letter]:
        answer: Any = self._client.execute_command(command, self.key, first, last, "COUNT", count)
        return [_letter(id.decode(), fields) for id, fields in answer]


def _letter(id: str, flat: list[bytes]) -> Letter:
    pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
    if tuple(name for name, _ in pairs[: len(OURS)]) == OURS:
        reason, entry, attempts, owner = (value.decode(errors="replace") for _, value in pairs[: len(OURS)])
        pairs = pairs[len(OURS) :]
    else:
        reason, entry, attempts, owner = "no dead letter: something else wrote it", "", "", ""
    size = sum(len(name) + len(value) for name, value in pairs)
    return Letter(Head(id, entry, attempts, owner, reason, size), pairs)
