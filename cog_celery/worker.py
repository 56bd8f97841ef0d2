"""A worker: Celery's threads pool with our slots in it, from the first setup() to the drain.

It must not know how a prediction is made. One Node lives in a worker's process; it owns the slots, their heartbeat (the
keeper), the announce key and the order of shutdown.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import msgspec
from celery import bootsteps
from celery.apps.worker import Worker as CeleryWorker
from celery.exceptions import SecurityWarning
from celery.worker import state
from celery.worker.control import control_command

from cog_celery import gpus, reporting
from cog_celery.celery import app, delete_queue, worker_queue
from cog_celery.environment import model_environment
from cog_celery.errors import CogCeleryError, ServerError, ServerLost, UsageError
from cog_celery.execution import Wake
from cog_celery.guardian import Guardian
from cog_celery.link import Link, Outage, insist
from cog_celery.outputs import Uploader
from cog_celery.prediction import Prediction
from cog_celery.rows import Rows
from cog_celery.settings import Settings
from cog_celery.slots import LONG, Slot, Workshop, count_setup
from cog_celery.stream import TICKET_VERSION, Queue, Ticket, life

TICK = 0.25
"""Seconds between looks at cancel keys of predictions that run longer than that."""
BROKER_PATIENCE = 2.0
"""Seconds for a broker that is gone when the worker is, too."""
REVOKED = 10_000
"""Ids of canceled predictions that have not come yet; a broadcast reaches all workers, and most never see the
prediction.
"""
GROUP_PAUSE = 0.5
"""Seconds between looks for a group that does not exist yet."""

T = TypeVar("T")

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
    if settings.log_level != "debug":
        for name in ("celery.worker.strategy", "celery.app.trace"):  # a line for each turn says nothing
            logging.getLogger(name).setLevel(logging.WARNING)
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
        settings = Settings.load({}, os.environ).for_worker()
        _node = Node(settings)
        queue = worker_queue(_node.life)
        self.app.conf.task_queues = [queue]
        self.app.conf.task_default_queue = queue.name
        options |= {
            "pool": "threads",
            "concurrency": _node.slots_wanted,
            "queues": None,
            "without_mingle": True,
            "without_gossip": True,
        }
        super().__init__(app=app, hostname=f"{_safe(settings.queue)}@{_safe(settings.name)}", **options)

    def install_platform_tweaks(self, worker: Any) -> None:
        super().install_platform_tweaks(worker)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if node().stopping:
            node().stop_now()
        else:
            node().stop_soon()

    def setup_logging(self, colorize: bool | None = None) -> Any:
        if logging.getLogger().handlers:
            return True  # the command line has set it up
        return super().setup_logging(colorize)


def _safe(name: str) -> str:
    """A name as part of a Celery node name, which ends at an @ and goes into routing keys."""
    return re.sub(r"[^\w.-]+", "-", name)


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


@control_command(name="revoke", args=[("task_id", str)], signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> dict[str, str]:
    """Cancel predictions by their ids: those that run here now, the others when they come here."""
    ids = [task_id] if isinstance(task_id, str) else [id for id in task_id or () if isinstance(id, str)]
    found = [id for id in ids if node().cancel(id)]
    return {"ok": f"canceled: {', '.join(found)}" if found else "to be canceled when their turn comes"}


class Node:
    """What this process is to the fleet. The drain is: denounce, end turns, finish, release at the limit, let go."""

    def __init__(self, settings: Settings) -> None:
        if not settings.queues:
            raise UsageError("which queue? Give --queue NAME or set COG_CELERY_QUEUE")
        if settings.model_dir is None or not Path(settings.model_dir).is_dir():
            raise UsageError(
                f"the model's folder {settings.model_dir or ''!r} does not exist: name one that has a cog.yaml"
            )
        self.settings = settings
        self.queue = Queue(settings.queue)
        self.life = life(settings.name)
        self.exit_code = 0
        self.draining = threading.Event()
        self._assigned = gpus.assign(
            settings.gpus,
            slots=settings.slots,
            slots_per_gpu=settings.slots_per_gpu,
            gpus_per_slot=settings.gpus_per_slot,
            outer=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
        self.slots: list[Slot] = []
        self.slots_wanted = len(self._assigned)
        self._outage = Outage("Redis")
        self._link = Link(settings.redis_url, f"cog-celery-worker:{self.life}", self._outage)
        self._keeper_link = Link(settings.redis_url, f"cog-celery-keeper:{self.life}", self._outage)
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")
        self._guardian = Guardian()
        self._stop_wanted = threading.Event()
        self._stop_now = threading.Event()
        self._giving_up = threading.Event()
        self._stopped = threading.Event()
        self._closed = threading.Event()
        self._failures = 0
        self._revoked: dict[str, None] = {}
        self._about = b"{}"
        self._heard = time.monotonic()
        self._wake_hub = Wake()
        self._report = reporting.SetupReport(settings)

    # -- Celery's side

    def start(self, worker: Any) -> None:
        """Called once, in Celery's main thread; returns at once."""
        self._worker = worker
        if worker.use_eventloop:
            worker.hub.add_reader(self._wake_hub.fileno(), self._wake_hub.clear)
        self._rows = Rows(worker.app, worker.hostname)
        self._rows.start()
        self._start_thread(self._bring_up)
        self._start_thread(self._await_stop)

    def turn(self, ticket: Sequence[Any]) -> None:
        """The Celery task."""
        try:
            given = msgspec.convert(list(ticket), Ticket)
        except msgspec.ValidationError as error:
            log.error("a ticket that is none was dropped: %s", error)
            return
        if given.version != TICKET_VERSION:
            log.error("a ticket of version %d was dropped, this worker knows %d", given.version, TICKET_VERSION)
            return
        slot = next((slot for slot in self.slots if slot.consumer == given.slot), None)
        if given.stream != self.queue.name:
            log.error("a ticket for another queue was dropped: %s", given.stream)
            return
        if slot is None or self.draining.is_set() or not slot.turn(given):
            with self._own_link("release") as link, contextlib.suppress(ServerError):
                self.queue.release(link, given.entry, given.bridge, given.attempt, self._agreed.lease)

    def cancel(self, id: str) -> bool:
        """Cancel a prediction by its id; False when it does not run here: then its id is remembered until it comes."""
        if any(slot.cancel(id) for slot in self.slots):
            return True
        while len(self._revoked) >= REVOKED:
            self._revoked.pop(next(iter(self._revoked)), None)
        self._revoked[id] = None
        return False

    def _is_revoked(self, id: str) -> bool:
        return bool(self._revoked) and self._revoked.pop(id, False) is None

    def stop_soon(self) -> None:
        """Drain; may be called from a signal handler."""
        self._stop_wanted.set()

    def stop_now(self) -> None:
        """Release what runs."""
        self._stop_now.set()
        self._stop_wanted.set()

    @property
    def stopping(self) -> bool:
        return self._stop_wanted.is_set()

    def close(self) -> None:
        """Called once, from Celery's main thread: when this returns, nothing of ours runs any more."""
        self._stopped.wait()
        self._closed.set()
        for slot in self.slots:
            slot.close()
        self._guardian.close()
        self._spawner.shutdown(wait=False)
        self._rows.close()
        try:
            with self._worker.app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_PATIENCE)
                delete_queue(connection, self.life)
        except Exception as error:  # whatever a transport raises: a bridge deletes it
            log.warning("this worker's queue was left behind: %s", error)

    # -- up

    def _bring_up(self) -> None:
        settings = self.settings
        agreed = self._insist(
            lambda: self.queue.agree(self._link, settings.dialect, settings.lease, settings.max_attempts)
        )
        if agreed is None:
            return
        self._agreed = agreed
        slots = self._make_slots()
        self._report.begin()
        with ThreadPoolExecutor(len(slots), thread_name_prefix="setup") as pool:
            setups = [pool.submit(slot.set_up) for slot in slots]
        failures = [error for setup in setups if (error := setup.exception()) is not None]
        if failures and self.draining.is_set():
            return  # we killed them
        self._report.end(None if not failures else str(failures[0]))
        if failures:
            raise failures[0]
        for setup in setups:
            count_setup(self.queue, self._link, setup.result())
        if not self._insist(self._group_is_there):
            return
        self._about = json.dumps({"worker": settings.name, "slots": len(slots), "gpus": self._assigned}).encode()
        self._insist(lambda: self._heartbeat(slots))
        if self._stop_wanted.is_set():
            return
        self._start_thread(self._keep)
        reporting.set_ready_file(True)
        for slot in slots:
            slot.begin()
        log.info("worker %s is ready: %d slots on queue %s", self.life, len(slots), self.queue.name)

    def _make_slots(self) -> list[Slot]:
        settings = self.settings
        shop = Workshop(
            settings=settings,
            agreed=self._agreed,
            queue=self.queue,
            uploader=Uploader(
                settings.upload_url, settings.upload_mode, max_data_uri_bytes=settings.max_data_uri_bytes
            ),
            guardian=self._guardian,
            rows=self._rows,
            outage=self._outage,
            spawner=self._spawner,
            draining=self.draining,
            giving_up=self._giving_up,
            is_revoked=self._is_revoked,
            on_setup_lines=self._report.lines,
            on_finished=self._finished,
            on_broken=self._fail,
        )
        withheld: list[str] = []
        for index, gpu in enumerate(self._assigned):
            environment, withheld = model_environment(
                os.environ,
                settings.model_env,
                {"CUDA_VISIBLE_DEVICES": gpu},
                other_interpreter=settings.python != sys.executable,
            )
            self.slots.append(Slot(index, self.life, shop, environment, gpu))
        if withheld:
            log.info("not passed on to the model: %s (--model-env NAME passes one on)", ", ".join(withheld))
        return self.slots

    def _group_is_there(self) -> bool:
        """Wait for the group, or make it; False when told to stop before."""
        said = False
        while not self._stop_wanted.is_set():
            if self.settings.create_group:
                self.queue.create_group(self._link)
            if self.queue.group_exists(self._link):
                return True
            if not said:
                log.warning("queue %s does not exist yet, waiting for it", self.queue.name)
                said = True
            self._stop_wanted.wait(GROUP_PAUSE)
        return False

    def _insist(self, step: Callable[[], T]) -> T | None:
        """Do a step on our link, through any outage; None when told to stop before."""
        try:
            return insist(step, self._stop_wanted)
        except ServerLost:
            return None

    def _start_thread(self, target: Callable[[], None]) -> None:
        name = target.__name__.strip("_")
        threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True).start()

    # -- the keeper

    def _keep(self) -> None:
        """Heartbeats every third of the lease; between them, cancel keys of predictions that take long."""
        every = self._agreed.lease / 3
        due = time.monotonic() + every
        while not self._closed.wait(TICK):
            try:
                self._look_for_cancels(self.slots)
                if time.monotonic() >= due:
                    due = time.monotonic() + every
                    self._guardian.check()
                    self._heartbeat(self.slots)
            except ServerError as error:
                if time.monotonic() - self._heard > 3 * self._agreed.lease:
                    self._give_up(self.slots, error)

    def _look_for_cancels(self, slots: list[Slot]) -> None:
        long_ago = time.monotonic() - LONG
        for slot in slots:
            current = slot.current
            if current is None or current.cancel_key is None or current.since > long_ago:
                continue
            if current.execution is not None and self._keeper_link.call("EXISTS", current.cancel_key):
                current.execution.stop("canceled")

    def _heartbeat(self, slots: list[Slot]) -> None:
        link, lease = self._keeper_link, self._agreed.lease
        if not self.draining.is_set():
            was_known = self.queue.announce(link, self.life, self._about, lease)
            if self.draining.is_set():
                self.queue.denounce(link, self.life)
        held = [(slot, current) for slot in slots if (current := slot.current)]
        verdicts = self.queue.extend(
            link, [(current.delivery.entry, slot.consumer, current.delivery.attempt) for slot, current in held]
        )
        self._heard = time.monotonic()
        for (slot, current), verdict in zip(held, verdicts, strict=True):
            # A commit may have come between: then the slot has gone on, and the verdict is about nothing.
            if verdict != "held" and slot.current is current and current.execution is not None:
                current.execution.stop("canceled" if verdict == "deleted" else "lost")
        if not self.draining.is_set():
            for slot in slots:
                slot.renew_credit(link, lease, at_once=not was_known)

    def _give_up(self, slots: list[Slot], error: Exception) -> None:
        """Nobody can tell whether we are still the owners: others may be at work on the same entries."""
        for slot in slots:
            if (current := slot.current) and current.execution and current.execution.reason is None:
                log.error("prediction %s is given up, Redis was out of reach for too long: %s", current.id, error)
                current.execution.stop("lost")

    def _finished(self, prediction: Prediction) -> None:
        """Count failures in a row; the model may be beyond help."""
        limit = self.settings.max_failure_count
        if limit is None:
            return
        self._failures = self._failures + 1 if prediction.status == "failed" else 0
        if self._failures > limit and not self._stop_wanted.is_set():
            log.error("%d predictions in a row failed (--max-failure-count %d): stopping", self._failures, limit)
            self.exit_code = 1
            self._stop_wanted.set()

    # -- down

    def _fail(self, reason: str) -> None:
        log.error("%s", reason)
        self.exit_code = 1
        self._stop_wanted.set()

    def _guarded(self, target: Any) -> None:
        try:
            target()
        except CogCeleryError as error:
            self._fail(str(error))
        except Exception:
            log.exception("a bug of ours in %s", target.__name__)
            self._fail("the worker stops")

    def _await_stop(self) -> None:
        self._stop_wanted.wait()
        self.draining.set()
        reporting.set_ready_file(False)
        log.info("draining: nothing new is started")
        try:
            with self._own_link("drain") as link:
                self._drain(link, time.monotonic() + self.settings.drain_timeout)
        except Exception:
            log.exception("a bug of ours in the drain")
            self.exit_code = 1
        finally:
            self._giving_up.set()
            for slot in self.slots:
                self._abandon(slot)  # a setup() may still be going on
            state.should_stop = self.exit_code
            self._wake_hub.set()
            self._stopped.set()

    def _drain(self, link: Link, limit: float) -> None:
        """Denounce, end turns, let what runs finish until `limit` (monotonic), release the rest. Redis may be gone."""
        queue, slots = self.queue, self.slots
        steps: list[partial[Any]] = [partial(queue.denounce, link, self.life)]
        steps += [partial(queue.withdraw_credit, link, slot.consumer) for slot in slots]
        while any(slot.busy for slot in slots) and time.monotonic() < limit and not self._stop_now.is_set():
            for slot in slots:
                if slot.waiting and slot.link.client_id and not steps:
                    steps.append(partial(link.call, "CLIENT", "UNBLOCK", slot.link.client_id))
                elif slot.busy and not slot.waiting and (slot.current is None or slot.current.execution is None):
                    slot.kill_runner()  # in a setup(), or about to begin what is not to begin any more
            steps = self._try(steps)
            self._stop_now.wait(0.02)
        for slot in slots:
            if current := slot.current:
                log.warning("prediction %s is released: it did not end before the drain did", current.id)
                delivery = current.delivery
                steps.append(
                    partial(queue.release, link, delivery.entry, slot.consumer, delivery.attempt, self._agreed.lease)
                )
        steps = self._try(steps)
        self._giving_up.set()
        for slot in slots:
            self._abandon(slot)
        until = time.monotonic() + 2.0
        while any(slot.busy for slot in slots) and time.monotonic() < until:
            time.sleep(0.005)
        steps.append(partial(queue.denounce, link, self.life))  # a heartbeat may have crossed the first one
        steps += [partial(queue.forget, link, slot.consumer) for slot in slots]
        if left := self._try(steps):
            log.warning("stopped without Redis: %d steps of the drain were left out", len(left))

    @staticmethod
    def _try(steps: list[partial[Any]]) -> list[partial[Any]]:
        """Do the steps; those that Redis was out of reach for."""
        for index, step in enumerate(steps):
            try:
                step()
            except ServerLost:
                return steps[index:]
            except ServerError as error:
                log.warning("a step of the drain was refused: %s", error)
        return []

    @staticmethod
    def _abandon(slot: Slot) -> None:
        """Stop what a slot still does, in this order: the runner's death is then not the prediction's."""
        if (current := slot.current) and current.execution is not None:
            current.execution.stop("shutdown")
        slot.kill_runner()

    def _own_link(self, what: str) -> contextlib.closing[Link]:
        return contextlib.closing(Link(self.settings.redis_url, f"cog-celery-{what}:{self.life}", self._outage))
