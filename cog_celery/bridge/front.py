"""The loop of a queue without slots: each of its requests goes to the queue of the version that it names.

It must not know what a version is, but where its requests go.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from cog_celery import failpoints
from cog_celery.bridge.loop import StreamBridge
from cog_celery.delivery.link import LONGEST_PAUSE
from cog_celery.delivery.presence import noted
from cog_celery.delivery.requests import Refusal, prediction_id, version_of
from cog_celery.delivery.stream import HIGH, Delivery
from cog_celery.errors import GroupMissing, ServerError, ServerLost
from cog_celery.fleet import Front
from cog_celery.settings import MAX_NAME_BYTES, nearest
from cog_celery.telemetry import logs

MOST_WAITING = 500
"""Requests that could not be moved, at which no more are read: they are as well off in the stream."""

log = logging.getLogger(__name__)


class FrontBridge(StreamBridge):
    """Reads a request, and moves it in one step; what is to be moved and was not yet is in `waiting`."""

    front = True

    def __init__(self, *shared: Any, routes: Front) -> None:
        super().__init__(*shared)
        self._routes = routes
        self._retry_at = 0.0
        self._closed_streams: dict[str, str] = {}
        """Where nothing can be moved to, and why, as was said."""

    def _step(self) -> None:
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        until = self._sweep_at
        if self._waiting:
            if time.monotonic() >= self._retry_at:
                self._try_again()
                return
            until = min(until, self._retry_at)
        left = max(0.01, until - time.monotonic())
        if len(self._waiting) >= MOST_WAITING:
            self._stopping.wait(left)
            return
        with self._blocking():
            deliveries = self.queue.read_next(self._link, self._name, left)
        self._waiting |= {delivery.at: delivery.attempt for delivery in deliveries}
        if deliveries:
            failpoints.reach("bridge.taken")
        for delivery in deliveries:
            self._move(delivery)

    def _try_again(self) -> None:
        at, attempt = next(iter(self._waiting.items()))
        delivery = self.queue.read(self._link, at, attempt)
        if delivery is not None:
            self._move(delivery)
            return
        # Deleted: nothing is moved, and it leaves the pending list.
        self.queue.move(self._link, Delivery(at, attempt, None), self._name, self.queue.name, b"")
        self._waiting.pop(at)

    def _move(self, delivery: Delivery) -> None:
        """Put it into its queue, or say why there is none; if that cannot be now, others go first."""
        try:
            moved = self._move_now(delivery)
        except ServerLost:
            raise
        except ServerError:
            self._put_off(delivery)
            raise
        if moved:
            self._waiting.pop(delivery.at)
        else:
            self._put_off(delivery)

    def _put_off(self, delivery: Delivery) -> None:
        self._waiting[delivery.at] = self._waiting.pop(delivery.at)
        self._retry_at = time.monotonic() + LONGEST_PAUSE

    def _move_now(self, delivery: Delivery) -> bool:
        """Whether that was the end of it here."""
        try:
            request = self._parse(delivery.value)
            target = self._target(delivery.value or b"", request.response_queue)
        except Refusal as refusal:
            self._refuse(delivery, refusal)
            return True
        id = prediction_id(request, delivery.name)
        about = noted(id, "moved", response=request.response_queue)
        stream = f"{target}{HIGH}" if delivery.lane else target
        try:
            entry = self.queue.move(self._link, delivery, self._name, stream, about)
        except (ServerLost, GroupMissing):
            raise
        except ServerError as error:  # it is that stream's, and no reason for the others to wait
            if self._closed_streams.get(stream) != str(error):
                self._closed_streams[stream] = str(error)
                log.error("queue %s: what goes to %s waits: %s", self.queue.name, stream, error)
            return False
        self._closed_streams.pop(stream, None)
        failpoints.reach("bridge.moved")
        with logs.about(partial(self._about, request, delivery)):
            if entry is not None:
                log.info("prediction %s goes to %s, as entry %s", id, stream, entry, extra={"event": "moved"})
        return True

    def _target(self, value: bytes, response: str | None) -> str:
        """The queue that a request is for. Raises Refusal."""
        versions = self._routes.versions
        version = version_of(value, response)
        if version is None:
            version = self._routes.default
        if version is None:
            raise Refusal(f"The request names no `version`. This queue has {_list(versions)}.", response)
        if version not in versions:
            if len(version) > MAX_NAME_BYTES:  # no name of ours; the answer and its dead letter are kept
                version = f"{version[:MAX_NAME_BYTES]}…"
            known = f"{_list(versions)}{nearest(version, versions)}"
            raise Refusal(f"The `version` {version!r} is none that this queue has: {known}.", response)
        return versions[version]

    def _look_at_the_queue(self, lease: float) -> None:
        """Nobody but bridges takes these requests, and they do not stay."""


def _list(versions: Any) -> str:
    names = sorted(versions)
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
