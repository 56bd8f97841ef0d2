"""A bridge's process: a thread for each queue, and how it ends.

It must not know what these threads do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from cog_celery.bridge.dispatching import Dispatcher
from cog_celery.bridge.front import FrontBridge
from cog_celery.bridge.loop import StreamBridge
from cog_celery.celery import app
from cog_celery.delivery.link import Link, Outage
from cog_celery.delivery.stream import life
from cog_celery.errors import CogCeleryError, ServerError
from cog_celery.fleet import Plan
from cog_celery.heartbeat import EVERY, Heartbeat
from cog_celery.settings import Settings
from cog_celery.telemetry import traces
from cog_celery.telemetry.rows import Rows

if TYPE_CHECKING:
    from cog_celery.telemetry.metrics import MetricsServer

log = logging.getLogger(__name__)


def run(settings: Settings, plans: Sequence[Plan]) -> int:
    """Run a bridge for these queues until it is told to stop; its exit code."""
    settings.install(os.environ)  # the app reads them there
    traces.start(os.environ)
    metrics = None if settings.metrics_port is None else _serve_metrics(settings, settings.metrics_port)
    try:
        return Bridge(settings, plans).run()
    finally:
        traces.stop()
        if metrics is not None:
            metrics.close()


def _serve_metrics(settings: Settings, port: int) -> MetricsServer:
    from cog_celery.telemetry.metrics import BridgeMetrics, MetricsServer  # only those who want them pay for them

    return MetricsServer(port, BridgeMetrics(settings.redis_url, settings.queues).registry)


class Bridge:
    """The streams of one process, which SIGTERM and SIGINT end. To be used in the main thread."""

    def __init__(self, settings: Settings, plans: Sequence[Plan]) -> None:
        self._settings = settings
        self._name = life(settings.name)
        self._told = False
        self._stopping = threading.Event()
        self._failed = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._outage = Outage("Redis")
        same_server = self._outage if settings.broker_is_redis else None
        self._dispatcher = Dispatcher(app, Outage("the broker"), same_server)
        self._rows = Rows(app)
        self._streams = [self._stream(plan) for plan in plans]

    def _stream(self, plan: Plan) -> StreamBridge:
        shared = (self._name, plan.settings, self._dispatcher, self._rows, self._outage, self._stopping)
        return StreamBridge(*shared) if plan.front is None else FrontBridge(*shared, routes=plan.front)

    def run(self) -> int:
        """Serve until told to stop, or until a stream cannot be served; the exit code."""
        # The handler only notes it: what it would lock may be what this thread is in the middle of. The pipe ends its
        # wait, also when the kernel hands the signal to another thread.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        threads = [
            threading.Thread(target=self._guarded, args=(stream,), name=f"bridge {stream.queue.name}", daemon=True)
            for stream in self._streams
        ]
        for thread in threads:
            thread.start()
        log.info("bridge %s serves %s", self._name, ", ".join(self._settings.queues))
        heartbeat = Heartbeat(
            self._settings.heartbeat_file, "bridge", self._settings.queues, self._settings.name, self._name
        )
        while not self._told and not self._failed.is_set():
            self._show(heartbeat)
            select.select([self._reader], [], [], EVERY)
        self._stopping.set()
        heartbeat.touch("draining")
        # A thread may be about to block: wake them until they have all seen it.
        with contextlib.closing(Link(self._settings.redis_url, f"cog-celery-bridge-stop:{self._name}")) as link:
            while any(thread.is_alive() for thread in threads):
                for stream in self._streams:
                    with contextlib.suppress(ServerError):
                        stream.wake(link)
                for thread in threads:
                    thread.join(0.05 / len(threads))
        self._dispatcher.close()
        self._rows.close()
        heartbeat.remove()
        return 1 if self._failed.is_set() else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _show(self, heartbeat: Heartbeat) -> None:
        """That all streams move; a bridge is as ready as the least ready of them."""
        if all(time.monotonic() - stream.moved_at < stream.longest_step for stream in self._streams):
            states = {stream.state for stream in self._streams}
            heartbeat.touch("waiting" if "waiting" in states else "starting" if "starting" in states else "ready")

    def _guarded(self, stream: StreamBridge) -> None:
        try:
            stream.run()
            return
        except CogCeleryError as error:
            log.error("queue %s: %s", stream.queue.name, error)
        except Exception:
            log.exception("a bug of ours, in the bridge of %s", stream.queue.name)
        self._failed.set()
        os.write(self._writer, b"\0")
