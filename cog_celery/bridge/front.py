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
from cog_celery.errors import ServerError, ServerLost
from cog_celery.fleet import Front
from cog_celery.settings import nearest
from cog_celery.telemetry import logs

log = logging.getLogger(__name__)


class FrontBridge(StreamBridge):
    """Reads a request, and moves it in one step; what is to be moved and was not yet is in `waiting`."""

    front = True

    def __init__(self, *shared: Any, routes: Front) -> None:
        super().__init__(*shared)
        self._routes = routes
        self._retry_at = 0.0

    def _step(self) -> None:
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        until = self._sweep_at
        if self._waiting and time.monotonic() >= self._retry_at:
            at, attempt = next(iter(self._waiting.items()))
            delivery = self.queue.read(self._link, at, attempt)
            if delivery is None:  # deleted: nothing is moved, and it leaves the pending list
                self.queue.move(self._link, Delivery(at, attempt, None), self._name, self.queue.name, b"")
            else:
                self._move(delivery)
            self._waiting.pop(at)
            return
        if self._waiting:
            until = min(until, self._retry_at)
        with self._blocking():
            deliveries = self.queue.read_next(self._link, self._name, max(0.01, until - time.monotonic()))
        self._waiting |= {delivery.at: delivery.attempt for delivery in deliveries}
        if deliveries:
            failpoints.reach("bridge.taken")
        for delivery in deliveries:
            self._move(delivery)
            self._waiting.pop(delivery.at)

    def _move(self, delivery: Delivery) -> None:
        """Put it into its queue, or say why there is none. Raises what the server does: then others go first."""
        try:
            self._move_now(delivery)
        except ServerLost:
            raise
        except ServerError:
            self._waiting[delivery.at] = self._waiting.pop(delivery.at)
            self._retry_at = time.monotonic() + LONGEST_PAUSE
            raise

    def _move_now(self, delivery: Delivery) -> None:
        try:
            request = self._parse(delivery.value)
            target = self._target(delivery.value or b"", request.response_queue)
        except Refusal as refusal:
            self._refuse(delivery, refusal)
            return
        id = prediction_id(request, delivery.name)
        about = noted(id, "moved", response=request.response_queue)
        stream = f"{target}{HIGH}" if delivery.lane else target
        entry = self.queue.move(self._link, delivery, self._name, stream, about)
        failpoints.reach("bridge.moved")
        with logs.about(partial(self._about, request, delivery)):
            if entry is not None:
                log.info("prediction %s goes to %s, as entry %s", id, stream, entry, extra={"event": "moved"})

    def _target(self, value: bytes, response: str | None) -> str:
        """The queue that a request is for. Raises Refusal."""
        versions = self._routes.versions
        version = version_of(value, response)
        if version is None:
            version = self._routes.default
        if version is None:
            raise Refusal(f"The request names no `version`. This queue has {_list(versions)}.", response)
        if version not in versions:
            known = f"{_list(versions)}{nearest(version, versions)}"
            raise Refusal(f"The `version` {version!r} is none that this queue has: {known}.", response)
        return versions[version]

    def _look_at_the_queue(self, lease: float) -> None:
        """Nobody but bridges takes these requests, and they do not stay."""


def _list(versions: Any) -> str:
    names = sorted(versions)
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
