"""A slot: one runner, the GPUs it is pinned to, and its turn; it owns an entry from the claim to the commit.

It must not know about Celery, nor about other slots.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from cog_celery import inputs, scripts
from cog_celery.cancel import Cancel
from cog_celery.errors import RunnerDied, ServerError, ServerLost, SetupError
from cog_celery.execution import Execution, Wake
from cog_celery.guardian import Guardian
from cog_celery.link import Link, Outage
from cog_celery.outputs import PredictionUploads, Uploader
from cog_celery.prediction import Prediction
from cog_celery.refusing import refuse
from cog_celery.requests import PredictionRequest, Refusal, parse
from cog_celery.rows import Rows
from cog_celery.runner import FieldError, Runner, RunnerCommand
from cog_celery.runtime.cog._runner.rendering import render_queue
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
model_log = logging.getLogger("cog_celery.model")


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
    """turn() is called from a thread of the pool; the other public methods from any thread."""

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

    def set_up(self) -> float:
        """Start the runner and wait for setup(); how many seconds setup() took. Raises SetupError."""
        settings = self._shop.settings
        if self._scratch is not None:
            self._scratch.cleanup()
        # What the model, or the runner for it, leaves in its temporary folder goes when the runner does.
        self._scratch = TemporaryDirectory(prefix="cog-celery-runner-", ignore_cleanup_errors=True)
        environment = {**self._environment, "TMPDIR": self._scratch.name}
        command = RunnerCommand(settings.python, settings.model_dir or ".", environment)
        runner = self._shop.spawner.submit(Runner, command, self._shop.guardian).result()
        self._runner = runner
        ready = runner.setup(command, self._shop.on_setup_lines, settings.setup_timeout)
        runner.attend(self._wake.fileno())
        log.info("slot %d is ready: setup() took %.2f s, runner %d", self.index, ready.setup_time, runner.pid)
        return ready.setup_time

    def kill_runner(self) -> None:
        """End the runner from another thread; whoever uses it is told by its death."""
        if self._runner is not None:
            self._runner.kill()

    def close(self) -> None:
        """Let go of everything; nobody uses the slot any more."""
        if self._runner is not None:
            self._runner.end()
        if self._scratch is not None:
            self._scratch.cleanup()
        self.link.close()
        self._wake.close()

    # -- its turn

    def rest(self) -> None:
        """Put the slot's credit down: it is idle."""
        if self._shop.draining.is_set() or self._runner is None:
            return
        self._insist(lambda: self._shop.queue.put_credit(self.link, self.consumer))
        self.idle_since = time.monotonic()

    def turn(self, ticket: Ticket) -> bool:
        """Serve the ticket's entry, then whatever else comes while the turn lasts; False if the slot is not free for
        it.
        """
        # The slot's credit is down a moment before its last turn has let go of it, and the next ticket may come within
        # that moment.
        if not self._busy.acquire(timeout=HANDOVER):
            return False
        try:
            self.idle_since = None
            ends = time.monotonic() + self._shop.settings.turn
            delivery = self._insist(lambda: self._shop.queue.claim(self.link, ticket))
            if delivery is None:
                log.info("ticket for %s is void, the slot takes its turn all the same", ticket.entry)
            self._serve(delivery, ends)
        finally:
            self.current = None
            try:
                self.rest()
            finally:
                self._busy.release()
        return True

    @property
    def busy(self) -> bool:
        """Whether it is in a turn."""
        return self._busy.locked()

    def renew_credit(self, link: Link, lease: float) -> None:
        """From the heartbeat: put an idle slot's credit down again, if it was lost and no ticket came for a lease."""
        idle_since = self.idle_since
        if idle_since is None or self.busy:
            self._lacking_since = None
            return
        now = time.monotonic()
        if link.call("LPOS", self._shop.queue.credits, self.consumer) is not None:
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
        if current is None or id not in (current.id, current.delivery.entry):
            return False
        if current.execution is not None:
            current.execution.stop("canceled")
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
                self._count_setup(self.set_up())
                return True
            except SetupError as error:
                log.error("slot %d: %s", self.index, error)
                self._runner = None
        self._shop.on_broken(f"slot {self.index}: its predictor could not be set up again")
        return False

    def _count_setup(self, took: float) -> None:
        self._insist(lambda: self._shop.queue.setup_took(self.link, took))

    # -- one prediction

    def _handle(self, delivery: Delivery, ends: float) -> Delivery | None:
        """Answer one entry; the next one, if it was taken in the same step."""
        shop, queue = self._shop, self._shop.queue
        current = self.current
        assert current is not None and self._runner is not None
        began = time.monotonic()
        try:
            request = parse(delivery.value, queue.name, shop.settings.max_request_bytes)
        except Refusal as error:
            refusal = error
            self._insist(
                lambda: refuse(self.link, queue, delivery, self.consumer, refusal, shop.agreed.dialect, self._ttl)
            )
            return None
        id = prediction_id(request, delivery)
        current.id, current.cancel_key = id, request.cancel_key
        if request.webhook is not None:
            log.warning("prediction %s names a webhook: webhooks are not sent yet, its response_queue is served", id)
        rows = shop.rows
        rows.add("task-received", id, name="predict", args="()", kwargs=self._about())
        rows.add("task-started", id)
        prediction = Prediction(shop.settings.max_log_bytes)
        outlet = SlotOutlet(self, delivery, request, prediction, id)
        try:
            execution = self._execute(current, request, prediction, outlet)
        finally:
            outlet.close()
        next = None
        if prediction.terminal:
            next = self._commit(delivery, request, prediction, outlet, execution, began, ends)
            self._row(id, prediction, time.monotonic() - began)
            shop.on_finished(prediction)
        else:
            log.warning("prediction %s was given up: %s", id, execution.reason or "its runner is gone")
            rows.add("task-revoked", id, terminated=True, signum=None, expired=False)
            self._release(delivery)
        self.current = None
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
            if self._shop.is_revoked(current.id):
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
        outlet: SlotOutlet,
        execution: Execution,
        began: float,
        ends: float,
    ) -> Delivery | None:
        shop = self._shop
        snapshot = outlet.dialect.render(prediction)
        before = outlet.dialect.render(prediction, processing=True) if execution.unshown else b""
        now = time.monotonic()
        take = now < ends and not shop.draining.is_set() and self._runner is not None and not self._runner.ended
        verdict, next = self._insist(
            lambda: shop.queue.commit(
                self.link,
                delivery,
                self.consumer,
                request.response_queue,
                snapshot,
                ttl=self._ttl,
                before=before,
                duration=now - began,
                take=take,
            )
        )
        if verdict == "stale":
            log.warning("the answer to %s came too late: another attempt owns it", outlet.id)
        return next

    def _tell_death(self, id: str, exitcode: int, prediction: Prediction) -> None:
        how = signal.Signals(-exitcode).name if -exitcode in signal.valid_signals() else f"exitcode {exitcode}"
        last = "; ".join(prediction.logs[-LAST_LINES:]) or "nothing"
        log.warning("the runner of slot %d ended (%s) in prediction %s; it last said: %s", self.index, how, id, last)

    def _row(self, id: str, prediction: Prediction, runtime: float) -> None:
        rows = self._shop.rows
        if prediction.status == "succeeded":
            rows.add("task-succeeded", id, result="succeeded", runtime=runtime)
        elif prediction.status == "canceled":
            rows.add("task-revoked", id, terminated=True, signum=None, expired=False)
        else:
            what = {"model": "ModelError", "platform": "PlatformError", "input": "InvalidInput"}[
                prediction.fault or "platform"
            ]
            rows.add("task-failed", id, exception=what, traceback="")

    def _about(self) -> str:
        gpu = "" if self.gpu is None else f", gpu={self.gpu}"
        return f"queue={self._shop.queue.name}, slot={self.index}{gpu}"

    @property
    def _ttl(self) -> int:
        ttl = self._shop.settings.response_ttl
        return 0 if ttl is None else max(1, int(ttl * 1000))

    def _insist(self, step: Callable[[], T]) -> T:
        """Do a step that must happen, through any outage: every step of a queue may be repeated after a lost reply."""
        pause = 0.05
        while True:
            try:
                return step()
            except ServerLost:
                time.sleep(pause)
                pause = min(1.0, pause * 2)


class SlotOutlet:
    """Shows a prediction at its response key, through the fence; its files go where the request or the worker says."""

    def __init__(
        self, slot: Slot, delivery: Delivery, request: PredictionRequest, prediction: Prediction, id: str
    ) -> None:
        self.id = id
        self.dialect: Dialect = dialect(slot._shop.agreed.dialect, delivery.value)
        self.execution: Execution | None = None
        self._slot = slot
        self._delivery = delivery
        self._request = request
        self._prediction = prediction
        self._folder: TemporaryDirectory[str] | None = None
        self._uploads: PredictionUploads | None = None

    def refused(self, errors: Sequence[FieldError]) -> str:
        return render_queue([{"field": e.field, "kind": e.kind, "limit": e.limit, "value": e.value} for e in errors])

    def started(self) -> bool:
        try:
            keys, arguments = self._publication(self.dialect.render(self._prediction))
            self._slot.link.post_script(scripts.PUBLISH, keys, *arguments)
            return True
        except ServerLost:
            self._slot._insist(self._show)
            return False

    def answered(self) -> None:
        try:
            self._heed(self._slot.link.reply())
        except ServerError:  # lost, or the server does not know the script: again, from the start
            self._slot._insist(self._show)

    def changed(self) -> int:
        try:
            return self._show()
        except ServerLost:
            return 0  # the next one carries everything

    def lines(self, lines: list[str]) -> list[str]:
        shown = [line for line in map(self.dialect.line, lines) if line is not None]
        if model_log.isEnabledFor(logging.INFO):
            model_log.info("%s", "\n".join(f"[{self.id}] {line}" for line in lines))
        return shown

    def fetch(self, urls: list[str], cancel: Cancel) -> list[Path]:
        self._folder = TemporaryDirectory(prefix="cog-celery-", ignore_cleanup_errors=True)
        limit = self._slot._shop.settings.max_input_bytes
        return inputs.fetch(urls, Path(self._folder.name), max_bytes=limit, cancel=cancel)

    def upload(self, path: str, cancel: Cancel) -> str:
        if self._uploads is None:
            request = self._request
            headers = {name: value for name in ("traceparent", "tracestate") if (value := getattr(request, name))}
            self._uploads = self._slot._shop.uploader.for_prediction(
                self.id, upload_urls=request.output_upload_urls, headers=headers, cancel=cancel
            )
        return self._uploads.upload(path)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _show(self) -> int:
        snapshot = self.dialect.render(self._prediction)
        keys, arguments = self._publication(snapshot)
        self._heed(self._slot.link.script(scripts.PUBLISH, keys, *arguments))
        return len(snapshot)

    def _publication(self, snapshot: bytes) -> tuple[Sequence[str], Sequence[str | int | bytes]]:
        slot, request = self._slot, self._request
        assert request.response_queue is not None
        return slot._shop.queue.publish_arguments(
            self._delivery, slot.consumer, request.response_queue, request.cancel_key, snapshot
        )

    def _heed(self, answer: int) -> None:
        assert self.execution is not None
        if answer == 0:
            self.execution.stop("lost")
        elif answer == 2:
            self.execution.stop("canceled")


def prediction_id(request: PredictionRequest, delivery: Delivery) -> str:
    """The producer's id, when it is safe as one, else the entry's."""
    id = request.id
    if isinstance(id, int):
        id = str(id)
    return id if id is not None and SAFE_ID.fullmatch(id) else delivery.entry
