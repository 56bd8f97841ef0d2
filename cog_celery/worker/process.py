"""A worker, Celery's side of it: the threads pool, the queue of this life, signals.

It must not know what a slot is: that is the Node's, of which a worker's process has one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from types import FrameType
from typing import Any

from celery import bootsteps, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.exceptions import SecurityWarning

from cog_celery import fleet
from cog_celery.celery import app, worker_queue
from cog_celery.delivery.link import Link
from cog_celery.delivery.stream import Queue
from cog_celery.errors import ServerLost
from cog_celery.settings import Settings
from cog_celery.telemetry import logs, traces
from cog_celery.telemetry.rows import node_name
from cog_celery.worker.admission import refuse_compression
from cog_celery.worker.node import Node

# A line for each turn says nothing, and an outage of the broker is ours to tell of.
QUIET = {
    "celery.worker.strategy": logging.WARNING,
    "celery.app.trace": logging.WARNING,
    "celery.worker.consumer": logging.ERROR,
    "kombu.transport.redis": logging.ERROR,
}

log = logging.getLogger(__name__)

_node: Node | None = None


def node() -> Node:
    """The Node of this process."""
    assert _node is not None
    return _node


def run(settings: Settings) -> int:
    """Run a worker until it is told to stop; its exit code. Raises UsageError."""
    settings.install(os.environ)
    _check_server(settings)
    # Celery warns of root for the sake of pickle, which is not accepted here; in a container root is common.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(hostname=None, loglevel=settings.log_level.upper(), quiet=True)
    worker.start()
    return int(worker.exitcode or 0)


def _check_server(settings: Settings) -> None:
    """Raise ServerError before Celery meets a server that is not fit; one that is out of reach is waited for later."""
    with contextlib.suppress(ServerLost), contextlib.closing(Link(settings.redis_url, "cog-celery-check")) as link:
        Queue(settings.queue).check_server(link)


class Worker(CeleryWorker):  # type: ignore[misc]
    """Celery's worker, told what it is: however it was started, it has a thread for each slot and a queue for this
    life.
    """

    def __init__(self, app: Any = None, hostname: str | None = None, **options: Any) -> None:
        global _node
        settings = fleet.load({}, os.environ).for_worker()
        _node = self.node = Node(settings)
        refuse_compression()
        queue = worker_queue(_node.life)
        self.app.conf.task_queues = [queue]
        self.app.conf.task_default_queue = queue.name
        options |= {
            "pool": "threads",
            "concurrency": _node.slots_wanted,
            "queues": None,
            "autoscale": None,
            "without_mingle": True,
            "without_gossip": True,
        }
        super().__init__(app=app, hostname=node_name(settings.queue, settings.name), **options)

    def install_platform_tweaks(self, worker: Any) -> None:
        super().install_platform_tweaks(worker)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # Celery's own would have the pool kill jobs, which the threads pool cannot.
        signal.signal(signal.SIGQUIT, lambda number, frame: node().stop_now())

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if node().stopping:
            node().stop_now()
        else:
            node().stop_soon()

    def setup_logging(self, colorize: bool | None = None) -> Any:
        done = bool(logging.getLogger().handlers)  # our command line has set it up
        if not done:  # as `celery worker`: level and file are its options', the lines are ours
            done = super().setup_logging(colorize)
            logs.take_over(self.node.settings.log_format)
        if not logging.getLogger().isEnabledFor(logging.DEBUG):
            for name, level in QUIET.items():
                logging.getLogger(name).setLevel(level)
        return done


class SlotsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Slots start when the pool is there, beside the consumer: the worker is online during a setup() of minutes."""

    requires = ("celery.worker.components:Pool", "celery.worker.components:Hub")

    def start(self, worker: Any) -> None:
        node().start(worker)

    def stop(self, worker: Any) -> None:
        """Celery stops, for whatever reason: drain first, if that has not happened."""
        node().stop_soon()
        node().close()

    def terminate(self, worker: Any) -> None:
        """Celery is told to stop at once: what runs is released."""
        node().stop_now()
        node().close()


app.steps["worker"].add(SlotsStep)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _begin_telemetry(**_: Any) -> None:
    traces.start(os.environ)


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _end_telemetry(**_: Any) -> None:
    """When the pool has ended, and the spans of its last turns have."""
    traces.stop()
