"""What a worker's process is to the fleet: its slots, from the first setup() to the drain.

It must not know how a prediction is made. A Node owns the slots and the order in which everything comes up and goes
down; Celery's side of the process is worker.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from celery.worker import state

from cog_celery import __version__
from cog_celery.celery import app, delete_queue
from cog_celery.delivery.finished import Finished
from cog_celery.delivery.link import REPLY_TIMEOUT, Link, Outage, SharedLink, insist
from cog_celery.delivery.presence import About, Presence, SlotSeen, model_version, seen
from cog_celery.delivery.servers import why
from cog_celery.delivery.stream import TICKET_VERSION, Held, Queue, Ticket, life
from cog_celery.errors import CogCeleryError, ServerError, ServerLost, SetupError, UsageError
from cog_celery.files.input_cache import InputCache
from cog_celery.files.outputs import Uploader
from cog_celery.gpus.assigning import shares
from cog_celery.gpus.monitor import Monitor
from cog_celery.heartbeat import EVERY, Heartbeat, State
from cog_celery.runners.environment import model_environment
from cog_celery.runners.guardian import Guardian
from cog_celery.runners.wake import Wake
from cog_celery.settings import Settings
from cog_celery.slots.respawning import RespawningRunner
from cog_celery.slots.serving import count_setup
from cog_celery.slots.slot import Slot
from cog_celery.slots.workshop import Workshop
from cog_celery.telemetry import traces
from cog_celery.telemetry.rows import Rows, node_name
from cog_celery.telemetry.telling import Telling
from cog_celery.worker import reporting, wellness
from cog_celery.worker.admission import Refusals
from cog_celery.worker.draining import drain
from cog_celery.worker.keeper import Keeper
from cog_celery.worker.probing import Probe
from cog_celery.worker.revoked import Revoked
from cog_celery.worker.roster import Roster

if TYPE_CHECKING:
    from cog_celery.telemetry.metrics import MetricsServer, WorkerMetrics

DRAIN_PATIENCE = 2.0
"""Seconds to wait for each reply in a drain, which has three rounds of steps beyond its limit."""
BROKER_PATIENCE = 2.0
"""Seconds for a broker that is gone when the worker is, too."""
BROKER_ALONE = 15.0
"""Seconds after which a broker that is out of reach is told of, when the queue on the same server is not."""
GROUP_PAUSE = 0.5
"""Seconds between looks for a group that does not exist yet."""

MOST_AT_ONCE = 64
"""Predictions in one runner."""

T = TypeVar("T")

log = logging.getLogger(__name__)


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
        self._shares = shares(settings, os.environ)
        devices = {device.id: device for share in self._shares for device in share.devices}
        self._monitor = Monitor(list(devices.values()))
        self._watched = bool(devices)
        """Whether there are GPUs of which it is known that they are its own."""
        self.refused = Refusals()
        """What came from the broker and was not let in."""
        self.slots: list[Slot] = []
        self._runners: list[RespawningRunner] = []
        self._most_at_once = most_at_once(settings.model_dir, os.environ)
        self.slots_wanted = len(self._shares) * self._most_at_once
        """As many as there can be; how many a model predicts at once is known when it is loaded."""
        self._well = True
        self._outage = Outage("Redis", self._doubt_broker)
        self._broker_outage = Outage("the broker")
        self._heartbeat = Heartbeat(settings.heartbeat_file, "worker", settings.queues, settings.name, self.life)
        self._broker_lost_at: float | None = None
        self._worker: Any = None
        self.probe = Probe(app, self.life, lambda: bool(self._worker.consumer.connected))
        self._keeper: Keeper | None = None
        self._link = Link(settings.redis_url, f"cog-celery-worker:{self.life}", self._outage)
        self._keeper_link = Link(settings.redis_url, f"cog-celery-keeper:{self.life}", self._outage)
        self._spare_link = SharedLink(Link(settings.redis_url, f"cog-celery-spare:{self.life}", self._outage))
        self._presence: Presence | None = None
        self._metrics: WorkerMetrics | None = None
        self._metrics_server: MetricsServer | None = None
        if settings.metrics_port is not None:
            self._serve_metrics(settings.metrics_port)
        self._model = model_name(settings)
        self._rows = Rows(app, node_name(settings.queue, settings.name), self._model)
        self._model_version = model_version(Path(settings.model_dir))
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")
        self._uploader = Uploader.of(settings)
        self._input_cache = InputCache.of(settings)
        self._guardian = Guardian()
        self._stop_wanted = threading.Event()
        self._stop_now = threading.Event()
        self._giving_up = threading.Event()
        self._stopped = threading.Event()
        self._closed = threading.Event()
        self._failures = 0
        self._telling = Telling(None if self._metrics is None else self._metrics.finished)
        self._revoked = Revoked()
        self._wake_hub = Wake()
        self._report = reporting.SetupReport(settings)

    # -- Celery's side

    def start(self, worker: Any) -> None:
        """Called once, in Celery's main thread; returns at once."""
        self._worker = worker
        if worker.use_eventloop:
            worker.hub.add_reader(self._wake_hub.fileno(), self._wake_hub.clear)
            worker.hub.call_repeatedly(EVERY, worker.consumer.looped)
        self.looped()
        self._telling.start()
        self._start_thread(traces.setup(self._bring_up), "bring up")
        self._start_thread(self._await_stop, "stop")

    def turn(self, ticket: Sequence[Any]) -> None:
        """The Celery task, with a ticket that was admitted."""
        self.probe.passed()
        given = msgspec.convert(list(ticket), Ticket)
        slot = next((slot for slot in self.slots if slot.name == given.slot), None)
        if slot is None or self.draining.is_set() or not slot.turn(given):
            with self._own_link("release") as link, contextlib.suppress(ServerError):
                self.queue.release(link, Held(given.at, given.bridge, given.attempt), self._agreed.lease)

    def looped(self) -> None:
        """Celery's event loop has come around, or tries to reach the broker."""
        self._heartbeat.touch(self.state)

    @property
    def state(self) -> State:
        """What `cog-celery health` shows."""
        if self.draining.is_set():
            return "draining"
        if self._keeper is None:
            return "starting"
        if not self.probe.consuming:
            return "not consuming"
        if not self._well:
            return "unhealthy"
        return "ready" if self._worker.consumer.connected and self._keeper.reached else "waiting"

    def broker_lost(self, error: BaseException) -> None:
        """The consumer has no connection; it tries to get one."""
        now = time.monotonic()
        if self._broker_lost_at is None:
            self._broker_lost_at = now
        # Of a server that is broker and queue in one, the links tell, unless it is the broker's part that is refused.
        elsewhere = not self.settings.broker_is_redis
        if elsewhere or (self._outage.since is None and now - self._broker_lost_at > BROKER_ALONE):
            self._broker_outage.begin(ServerLost(f"the broker is out of reach: {why(error)}"))

    def broker_back(self) -> None:
        """It has had one for a while."""
        self._broker_lost_at = None
        self._broker_outage.end()

    def _doubt_broker(self) -> None:
        consumer = getattr(self._worker, "consumer", None)
        if self.settings.broker_is_redis and consumer is not None:
            consumer.doubt()

    @property
    def begun(self) -> int:
        """Predictions so far."""
        return self._rows.begun

    def cancel(self, id: str) -> bool:
        """Cancel a prediction by its id; False when it does not run here: then its id is remembered until it comes."""
        if any(slot.cancel(id) for slot in self.slots):
            return True
        self._revoked.add(id)
        # Once more, for one that came in between and did not find itself there.
        return any(slot.cancel(id) for slot in self.slots)

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
        for runner in self._runners:
            runner.close()
        self._uploader.close()
        self._guardian.close()
        self._spawner.shutdown(wait=False)
        self._rows.close()
        self._telling.close()
        leaving = threading.Thread(target=self._delete_broker_queue, name="leave", daemon=True)
        leaving.start()
        leaving.join(BROKER_PATIENCE)
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._heartbeat.remove()

    def _delete_broker_queue(self) -> None:
        try:
            with self._worker.app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_PATIENCE)
                delete_queue(connection, self.life)
        except Exception as error:  # whatever a transport raises: a bridge deletes it
            log.info("this worker's queue was left behind: %s", error)

    # -- up

    def _bring_up(self) -> None:
        settings = self.settings
        agreed = self._insist(
            lambda: self.queue.agree(
                *(self._link, settings.dialect, settings.lease, settings.max_attempts, settings.idempotent_ids),
                settings.priority,
            )
        )
        if agreed is None:
            return
        self._agreed = agreed
        presence = self._presence = Presence(self.queue, self._spare_link, self.life, agreed.lease, self.about)
        presence.start()
        shop = self._make_shop()
        runners = self._make_runners(shop)
        roster = self._roster = Roster(runners, self.slots, self._monitor, self._changed, self._fail)
        if self._watched:
            self._monitor.open()  # what is lost already is not to be set up
            self._start_thread(partial(self._monitor.run, self._closed, roster.update), "gpus")
        self._report.begin()
        try:
            all_ready = roster.set_up()
        except (SetupError, OSError) as error:
            if self.draining.is_set():
                return  # we killed them
            self._report.end(str(error))
            self._count_failed_setup()
            raise
        self._report.end(None)
        for ready in all_ready:
            count_setup(self.queue, self._link, ready.setup_time)
            if self._metrics is not None:
                self._metrics.set_up(ready.setup_time)
        # A model predicts as many at once on each of its GPUs.
        slots = self._make_slots(shop, all_ready[0].concurrency)
        if not self._insist(self._group_is_there):
            return
        self._link.close()  # what follows has links of its own, and a server has not any number of connections
        about = {
            "tickets": TICKET_VERSION,  # read by TAKE, and first: what comes behind it may hold anything
            "worker": settings.name,
            "slots": len(slots),
            "gpus": [share.visible for share in self._shares],
            "inputs": all_ready[0].inputs,
        }
        keeper = Keeper(
            *(self.queue, self._keeper_link, self.life, slots, agreed.lease, self._guardian),
            about=json.dumps(about).encode(),
            draining=self.draining,
            on_lost_credit=self.probe.send,
        )
        self._insist(keeper.beat)
        if self._stop_wanted.is_set():
            return
        self._start_thread(partial(keeper.run, self._closed), "keeper")
        reporting.set_ready_file(True)
        roster.update()
        for slot in slots:
            if slot.takes_work:
                slot.begin()
        self._keeper = keeper
        presence.changed()
        if any(ready.healthcheck for ready in all_ready):
            self._start_thread(partial(wellness.watch, slots, self._closed, self._set_well), "health")
        count = sum(slot.takes_work for slot in slots)
        told = f"{count} slots" if count == len(slots) else f"{count} of {len(slots)} slots"
        log.info("worker %s is ready: %s on queue %s", self.life, told, self.queue.name)

    def _changed(self) -> None:
        if self._presence is not None:
            self._presence.changed()

    def _setup_failed(self, name: str) -> None:
        if self._metrics is not None:
            self._metrics.setup_failed(name)

    def about(self) -> About:
        """What this process says of itself."""
        slots = tuple(map(seen, self.slots)) or tuple(
            SlotSeen("restarting", share.label, devices=share.visible) for share in self._shares
        )
        return About(
            role="worker",
            name=self.settings.name,
            version=__version__,
            state=self.state,
            model=self._model,
            model_version=self._model_version,
            slots=slots,
        )

    def _serve_metrics(self, port: int) -> None:
        from cog_celery.telemetry.metrics import MetricsServer, WorkerMetrics  # only those who want them pay for them

        self._metrics = WorkerMetrics(self.queue.name, self.about, self._reached, self._monitor)
        self._metrics_server = MetricsServer(port, self._metrics.registry)

    def _reached(self) -> bool:
        return self._keeper is not None and self._keeper.reached

    def _restarted(self, took: float) -> None:
        if self._metrics is not None:
            self._metrics.restarted(took)

    def _count_failed_setup(self) -> None:
        with contextlib.suppress(ServerError):
            self.queue.setup_failed(self._link)

    def _make_shop(self) -> Workshop:
        settings = self.settings
        return Workshop(
            settings=settings,
            agreed=self._agreed,
            queue=self.queue,
            uploader=self._uploader,
            input_cache=self._input_cache,
            spare_link=self._spare_link,
            guardian=self._guardian,
            rows=self._rows,
            telling=self._telling,
            outage=self._outage,
            spawner=self._spawner,
            draining=self.draining,
            giving_up=self._giving_up,
            tickets_wait=lambda: len(state.reserved_requests) > len(state.active_requests),
            is_revoked=self._revoked.take,
            on_setup_lines=self._report.lines,
            on_finished=self._finished,
            on_restarted=self._restarted,
            on_setup_failed=self._setup_failed,
            on_out=lambda: self._roster.update(),
        )

    def _make_runners(self, shop: Workshop) -> list[RespawningRunner]:
        settings = self.settings
        withheld: list[str] = []
        for index, share in enumerate(self._shares):
            # Without the order, CUDA counts the fastest first, and nvidia-smi by place: an index would be another GPU.
            order = "PCI_BUS_ID" if share.devices else None
            environment, withheld = model_environment(
                os.environ,
                settings.model_env,
                {"CUDA_VISIBLE_DEVICES": share.visible, "CUDA_DEVICE_ORDER": order},
                other_interpreter=settings.python != sys.executable,
            )
            self._runners.append(
                RespawningRunner(f"runner {index}", shop, environment, self._most_at_once, share, self._monitor)
            )
        if withheld:
            log.info("not passed on to the model: %s (--model-env NAME passes one on)", ", ".join(withheld))
        return self._runners

    def _make_slots(self, shop: Workshop, seats: int) -> list[Slot]:
        for runner in self._runners:
            for seat in range(seats):
                self.slots.append(Slot(len(self.slots), self.life, shop, runner, seat, runner.share))
        self.slots[0].alone = len(self.slots) == 1
        return self.slots

    def _set_well(self, well: bool) -> None:
        self._well = well
        reporting.set_ready_file(well and not self.draining.is_set())

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

    def _start_thread(self, target: Callable[[], None], name: str) -> None:
        threading.Thread(target=self._guarded, args=(target, name), name=name, daemon=True).start()

    def _finished(self, finished: Finished) -> None:
        """Count failures in a row; the model may be beyond help."""
        limit = self.settings.max_failure_count
        if limit is None or not (finished.answered and finished.ran):
            return
        self._failures = self._failures + 1 if finished.outcome == "failed" else 0
        if self._failures > limit and not self._stop_wanted.is_set():
            log.error("%d predictions in a row failed (--max-failure-count %d): stopping", self._failures, limit)
            self.exit_code = 1
            self._stop_wanted.set()

    # -- down

    def _fail(self, reason: str) -> None:
        log.error("%s", reason)
        self.exit_code = 1
        self._stop_wanted.set()

    def _guarded(self, target: Callable[[], None], name: str) -> None:
        try:
            target()
        except CogCeleryError as error:
            self._fail(str(error))
        except Exception:
            log.exception("a bug of ours, in the thread %s", name)
            self._fail("the worker stops")

    def _await_stop(self) -> None:
        self._stop_wanted.wait()
        self.draining.set()
        reporting.set_ready_file(False)
        if self._presence is not None:
            self._presence.changed()
        log.info("draining: nothing new is started")
        try:
            if self.slots:
                limit = time.monotonic() + self.settings.drain_timeout
                with self._own_link("drain", DRAIN_PATIENCE) as link:
                    drain(
                        *(self.queue, link, self.life, self.slots, self._agreed.lease),
                        limit=limit,
                        now=self._stop_now,
                        giving_up=self._giving_up,
                    )
        except Exception:
            log.exception("a bug of ours in the drain")
            self.exit_code = 1
        finally:
            self._giving_up.set()
            for slot in self.slots:
                slot.abandon()
            for runner in self._runners:
                runner.kill()  # a setup() may still be going on
            if self._presence is not None:
                self._presence.leave(DRAIN_PATIENCE)
            state.should_stop = self.exit_code
            self._wake_hub.set()
            self._stopped.set()

    def _own_link(self, what: str, patience: float = REPLY_TIMEOUT) -> contextlib.closing[Link]:
        name = f"cog-celery-{what}:{self.life}"
        return contextlib.closing(Link(self.settings.redis_url, name, self._outage, patience=patience))


def model_name(settings: Settings) -> str:
    """What people call the model: --model-id, or its folder's name."""
    return settings.model_id or Path(os.path.abspath(settings.model_dir or ".")).name


def most_at_once(model_dir: str, env: Mapping[str, str]) -> int:
    """How many predictions a runner of this model may be asked to serve at once, before the model itself can say.

    Most models never do so. One that does says it in cog.yaml, in the environment, or by a decorator in its code.
    """
    if env.get("COG_MAX_CONCURRENCY", "").strip():
        return MOST_AT_ONCE
    for file in (Path(model_dir, "cog.yaml"), *Path(model_dir).glob("*.py")):
        try:
            if "concurren" in file.read_text(errors="replace"):
                return MOST_AT_ONCE
        except OSError:
            continue  # whoever loads the model says what is wrong with it
    return 1
