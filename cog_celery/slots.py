"""A slot: one runner, the GPUs it is pinned to, and its turn; it owns an entry from the claim to the commit.

It must not know about Celery, nor about other slots.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import TypeVar

from cog_celery.errors import GroupMissing, RunnerDied, ServerError, ServerLost, SetupError
from cog_celery.execution import Execution, Wake
from cog_celery.guardian import Guardian
from cog_celery.link import Link, Outage, insist
from cog_celery.outlet import LARGEST, SlotOutlet, model_log, too_large
from cog_celery.outputs import Uploader
from cog_celery.prediction import Prediction
from cog_celery.refusing import refuse
from cog_celery.requests import PredictionRequest, Refusal, parse
from cog_celery.rows import Rows
from cog_celery.runner import Ready, Runner, RunnerCommand
from cog_celery.settings import Settings
from cog_celery.snapshots import Dialect, dialect
from cog_celery.stream import Delivery, Queue, QueueSettings, Ticket

T = TypeVar("T")

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127}")
LONG = 0.2
"""Seconds after which a running prediction's cancel key is looked at by the keeper; the start snapshot looked already.
"""
HANDOVER = 1.0
"""Seconds for which a ticket waits for its slot; longer ones are duplicates, for a slot that is at work."""
LAST_LINES = 5
SETUP_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between attempts to set a predictor up again after its runner died. After the last one the slot gives up."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workshop:
    """What the slots of a worker share."""

    settings: Settings
    agreed: QueueSettings
    queue: Queue
    uploader: Uploader
    guardian: Guardian
    rows: Rows
    outage: Outage
    spawner: Executor
    """One thread that lives as long as the worker: a runner dies with the thread that spawned it."""
    draining: threading.Event
    """Nothing new is started."""
    giving_up: threading.Event
    """Nothing is waited for any more: the drain's limit is over."""
    is_revoked: Callable[[str], bool]
    on_setup_lines: Callable[[list[str]], None]
    on_finished: Callable[[Prediction], None]
    on_broken: Callable[[str], None]


class Current:
    """What a slot works on; read by the keeper, which extends its lease and looks at its cancel key."""

    __slots__ = ("cancel_key", "delivery", "execution", "id", "since")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.id = delivery.entry
        self.execution: Execution | None = None
        self.cancel_key: str | None = None
        self.since = time.monotonic()


class Slot:
    """turn() is called from a thread of the pool; `busy` is held through it, and through begin()."""

    def __init__(self, index: int, life: str, shop: Workshop, environment: Mapping[str, str], gpu: str | None) -> None:
        self.index = index
        self.consumer = f"{life}.{index}"
        self.gpu = gpu
        self.idle_since: float | None = None
        """When its credit was put down (monotonic); None while it works, or is not ready."""
        self.current: Current | None = None
        self.waiting = False
        """Whether it waits for an entry in a blocking read."""
        self._shop = shop
        self._environment = environment
        self._scratch: TemporaryDirectory[str] | None = None
        self.link = Link(shop.settings.redis_url, f"cog-celery-slot:{self.consumer}", shop.outage)
        self._wake = Wake()
        self._busy = threading.Lock()
        self._runner: Runner | None = None
        self._lacking_since: float | None = None

    # -- its runner

    def set_up(self) -> Ready:
        """Start the runner and wait for setup(); what the runner says of it. Raises SetupError, OSError."""
        shop = self._shop
        self._clear_scratch()
        # What the model, or the runner for it, leaves in its temporary folder goes when the runner does.
        self._scratch = TemporaryDirectory(prefix="cog-celery-runner-", ignore_cleanup_errors=True)
        shop.guardian.watch_folder(self._scratch.name)
        environment = {**self._environment, "TMPDIR": self._scratch.name}
        command = RunnerCommand(shop.settings.python, shop.settings.model_dir or ".", environment)
        runner = self._runner = shop.spawner.submit(Runner, command, shop.guardian).result()
        if shop.draining.is_set():
            runner.kill()  # the drain has killed the others, and may not have seen this one
        ready = runner.setup(command, shop.on_setup_lines, shop.settings.setup_timeout)
        runner.attend(self._wake.fileno())
        log.info("slot %d is ready: setup() took %.2f s, runner %d", self.index, ready.setup_time, runner.pid)
        return ready

    def kill_runner(self) -> None:
        """End the runner from another thread; whoever uses it is told by its death."""
        if self._runner is not None:
            self._runner.kill()

    def abandon(self) -> None:
        """Stop what it does, in this order: the runner's death is then not the prediction's."""
        if (current := self.current) and current.execution is not None:
            current.execution.stop("shutdown")
        self.kill_runner()

    def close(self) -> None:
        """Let go of everything. A slot that still works is left to the end of the process, but for its runner."""
        if not self._busy.acquire(timeout=1.0):
            self.kill_runner()
            return
        if self._runner is not None:
            self._runner.end()
        self._clear_scratch()
        self.link.close()
        self._wake.close()

    def _clear_scratch(self) -> None:
        if self._scratch is not None:
            self._shop.guardian.forget_folder(self._scratch.name)
            self._scratch.cleanup()
            self._scratch = None

    # -- its turn

    def begin(self) -> None:
        """Put the slot's first credit down."""
        with self._busy:
            self._rest()

    def turn(self, ticket: Ticket) -> bool:
        """Serve the ticket's entry, then whatever else comes while the turn lasts; False if it is not free for it."""
        # The credit is down a moment before the last turn has let go of the slot, and a ticket may come within it.
        if not self._busy.acquire(timeout=HANDOVER):
            return False
        try:
            self.idle_since = None
            ends = time.monotonic() + self._shop.settings.turn
            delivery = self._insist(lambda: self._shop.queue.claim(self.link, ticket))
            if delivery is None:
                log.info("ticket for %s is void, the slot takes its turn all the same", ticket.entry)
            self._serve(delivery, ends)
        except GroupMissing:
            log.warning("queue %s is gone: slot %d ends its turn", self._shop.queue.name, self.index)
        except ServerError as error:
            log.error("slot %d ends its turn: %s", self.index, error)
        finally:
            self.current = None
            try:
                self._rest()
            finally:
                self._busy.release()
        return True

    def _rest(self) -> None:
        """Put the credit down: the slot is idle. Only with `_busy` held."""
        if self._shop.draining.is_set():
            return
        if (self._runner is None or self._runner.ended) and not self._revive():
            return
        self.idle_since = time.monotonic()
        try:
            self._insist(lambda: self._shop.queue.put_credit(self.link, self.consumer))
        except ServerError as error:
            log.error("slot %d could not put its credit down, the heartbeat will: %s", self.index, error)

    @property
    def busy(self) -> bool:
        """Whether it is in a turn."""
        return self._busy.locked()

    def renew_credit(self, link: Link, lease: float, *, at_once: bool) -> None:
        """From the heartbeat: put an idle slot's credit down again, if it was lost and no ticket came for a lease.

        `at_once`: the worker was not known for a while, and its credits were thrown away.
        """
        idle_since = self.idle_since
        if idle_since is None or self.busy:
            self._lacking_since = None
            return
        now = time.monotonic()
        if at_once:
            self._shop.queue.put_credit(link, self.consumer)
            self._lacking_since = None
        elif link.call("LPOS", self._shop.queue.credits, self.consumer) is not None:
            self._lacking_since = None
        elif self._lacking_since is None or self._lacking_since < idle_since:
            self._lacking_since = now  # a ticket may be on its way
        elif now - self._lacking_since > lease and idle_since == self.idle_since:
            log.warning("the credit of slot %d was lost, it is put down again", self.index)
            self._shop.queue.put_credit(link, self.consumer)
            self._lacking_since = None

    def cancel(self, id: str) -> bool:
        """Cancel the prediction of this id, if it runs here."""
        current = self.current
        execution = current.execution if current is not None else None
        if current is None or execution is None or id not in (current.id, current.delivery.entry):
            return False
        execution.stop("canceled")
        return True

    def _serve(self, delivery: Delivery | None, ends: float) -> None:
        draining = self._shop.draining
        while not draining.is_set():
            if delivery is None:
                left = ends - time.monotonic()
                if left <= 0:
                    return
                delivery = self._next(left)
                if delivery is None:
                    return
                continue
            self.current = Current(delivery)
            if not self._ready():
                break
            delivery = self._handle(delivery, ends)
            self.current = None
        if delivery is not None:
            self._release(delivery)

    def _release(self, delivery: Delivery) -> None:
        """Give an entry back, if it is still ours."""
        release = partial(self._shop.queue.release, self.link, delivery.entry, self.consumer, delivery.attempt)
        self._insist(partial(release, self._shop.agreed.lease))

    def _next(self, left: float) -> Delivery | None:
        """The next entry that comes while the turn lasts."""
        self.waiting = True
        try:
            if self._shop.draining.is_set():
                return None
            return self._shop.queue.next(self.link, self.consumer, left)
        except ServerLost:
            return self._insist(lambda: self._shop.queue.recover(self.link, self.consumer))
        finally:
            self.waiting = False

    def _ready(self) -> bool:
        """See to it that the runner is alive; False when it cannot be, and the worker has been told."""
        try:
            if self._runner is not None:
                for line in self._runner.between():
                    model_log.info("between predictions: %s", line)
                return True
        except RunnerDied as death:
            log.warning("the runner of slot %d ended between predictions (exitcode %d)", self.index, death.exitcode)
        return self._revive()

    def _revive(self) -> bool:
        self._runner = None
        for pause in (0.0, *SETUP_PAUSES):
            if self._shop.draining.wait(pause):
                return False
            try:
                self._count_setup(self.set_up().setup_time)
                return True
            except (SetupError, OSError) as error:
                log.error("slot %d: %s", self.index, error)
                self._runner = None
        self._shop.on_broken(f"slot {self.index}: its predictor could not be set up again")
        return False

    def _count_setup(self, took: float) -> None:
        count_setup(self._shop.queue, self.link, took)

    # -- one prediction

    def _handle(self, delivery: Delivery, ends: float) -> Delivery | None:
        """Answer one entry; the next one, if it was taken in the same step."""
        shop, current = self._shop, self.current
        assert current is not None
        began = time.monotonic()
        try:
            request = parse(delivery.value, shop.queue.name, shop.settings.max_request_bytes)
        except Refusal as error:
            refusal, ttl = error, shop.settings.response_ttl_ms
            self._insist(
                lambda: refuse(self.link, shop.queue, delivery, self.consumer, refusal, shop.agreed.dialect, ttl)
            )
            return None
        id = prediction_id(request, delivery)
        current.id, current.cancel_key = id, request.cancel_key
        if request.webhook is not None:
            log.warning("prediction %s names a webhook: webhooks are not sent yet, its response_queue is served", id)
        shop.rows.add("task-received", id, name="predict", args="()", kwargs=self._about())
        shop.rows.add("task-started", id)
        prediction = Prediction(shop.settings.max_log_bytes)
        outlet = SlotOutlet(
            *(shop.queue, self.link, self.consumer, delivery, request, prediction),
            dialect(shop.agreed.dialect, delivery.value),
            shop.uploader,
            id=id,
            max_input_bytes=shop.settings.max_input_bytes,
        )
        try:
            execution = self._execute(current, request, prediction, outlet)
        finally:
            outlet.close()
        answered, next = False, None
        if execution.reason == "refused":
            self._bury(delivery, request)
        elif prediction.terminal:
            answered, next = self._commit(delivery, request, prediction, outlet.dialect, execution.unshown, began, ends)
        else:
            log.warning("prediction %s was given up: %s", id, execution.reason or "its runner is gone")
            self._release(delivery)
        self.current = None
        self._row(id, prediction if answered else None, time.monotonic() - began)
        if answered:
            shop.on_finished(prediction)
        if self._runner is not None and self._runner.ended:
            self._tell_death(id, self._runner.exitcode, prediction)
            self._revive()
        return next

    def _execute(
        self, current: Current, request: PredictionRequest, prediction: Prediction, outlet: SlotOutlet
    ) -> Execution:
        """Run a prediction; once more when its runner turns out to be dead before it took the input."""
        settings = self._shop.settings
        for last_try in (False, True):
            assert self._runner is not None
            execution = Execution(
                *(self._runner, prediction, outlet),
                id=current.delivery.entry,
                timeout=settings.predict_timeout,
                grace=settings.cancel_grace,
                wake=self._wake,
            )
            outlet.execution = current.execution = execution
            if self._shop.is_revoked(current.id) or self._shop.is_revoked(current.delivery.entry):
                execution.stop("canceled")
            # The cancel key may be there already: then predict() is not entered.
            hold = request.cancel_key is not None or execution.reason is not None
            took = execution.run(bytes(request.input), hold=hold, context=request.context, last_try=last_try)
            if took or not self._revive():
                break
        return execution

    def _commit(
        self,
        delivery: Delivery,
        request: PredictionRequest,
        prediction: Prediction,
        dialect: Dialect,
        unshown: bool,
        began: float,
        ends: float,
    ) -> tuple[bool, Delivery | None]:
        """Write the terminal snapshot: whether it was written, and the next entry, if it was taken in the same step."""
        shop = self._shop
        snapshot = dialect.render(prediction)
        before = dialect.render(prediction, processing=True) if unshown else b""
        if len(snapshot) > LARGEST:
            snapshot, before = dialect.render(prediction.without_output(too_large(snapshot))), b""
        now = time.monotonic()
        take = now < ends and not shop.draining.is_set() and self._runner is not None and not self._runner.ended
        verdict, next = self._insist(
            lambda: shop.queue.commit(
                self.link,
                delivery,
                self.consumer,
                request.response_queue,
                snapshot,
                ttl=shop.settings.response_ttl_ms,
                before=before,
                duration=now - began,
                take=take,
            )
        )
        if verdict == "refused":
            self._bury(delivery, request)
        elif verdict == "stale":
            log.warning("the answer to %s came too late: another attempt owns it", delivery.entry)
        return verdict in ("done", "settled"), next

    def _bury(self, delivery: Delivery, request: PredictionRequest) -> None:
        """End a delivery whose response may not be written: nobody could ever read it."""
        reason = (
            f"The response key {request.response_queue!r} may not be written: ask for another, or give us the right."
        )
        log.error("entry %s: %s", delivery.entry, reason)
        self._insist(lambda: self._shop.queue.bury(self.link, delivery, self.consumer, None, b"", reason))

    def _tell_death(self, id: str, exitcode: int, prediction: Prediction) -> None:
        how = signal.Signals(-exitcode).name if -exitcode in signal.valid_signals() else f"exitcode {exitcode}"
        last = "; ".join(prediction.logs[-LAST_LINES:]) or "nothing"
        log.warning("the runner of slot %d ended (%s) in prediction %s; it last said: %s", self.index, how, id, last)

    def _row(self, id: str, prediction: Prediction | None, runtime: float) -> None:
        """End the prediction's row; None: this attempt did not answer it."""
        rows = self._shop.rows
        if prediction is None or prediction.status == "canceled":
            rows.add("task-revoked", id, terminated=True, signum=None, expired=False)
        elif prediction.status == "succeeded":
            rows.add("task-succeeded", id, result="succeeded", runtime=runtime)
        else:
            what = {"model": "ModelError", "platform": "PlatformError", "input": "InvalidInput"}
            rows.add("task-failed", id, exception=what[prediction.fault or "platform"], traceback="")

    def _about(self) -> str:
        gpu = "" if self.gpu is None else f", gpu={self.gpu}"
        return f"queue={self._shop.queue.name}, slot={self.index}{gpu}"

    def _insist(self, step: Callable[[], T]) -> T:
        return insist(step, self._shop.giving_up)


def count_setup(queue: Queue, link: Link, took: float) -> None:
    """Add a setup to the statistics, which are not worth a slot."""
    try:
        queue.setup_took(link, took)
    except ServerError as error:
        log.warning("a setup was not counted: %s", error)


def prediction_id(request: PredictionRequest, delivery: Delivery) -> str:
    """The producer's id, when it is safe as one, else the entry's."""
    id = request.id
    if isinstance(id, int):
        id = str(id)
    return id if id is not None and SAFE_ID.fullmatch(id) else delivery.entry
