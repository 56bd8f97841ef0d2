"""A slot: one runner, the GPUs it is pinned to, and its turn; it owns an entry from the claim to the commit.

It must not know about Celery, nor about other slots.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from cog_celery import failpoints
from cog_celery.errors import GroupMissing, RunnerDied, RunnerProtocolError, ServerError, ServerLost
from cog_celery.execution import Execution
from cog_celery.link import Link, insist
from cog_celery.outlet import LARGEST, SlotOutlet, too_large
from cog_celery.prediction import Prediction
from cog_celery.refusing import refuse
from cog_celery.requests import PredictionRequest, Refusal, expired, parse
from cog_celery.respawning import RespawningRunner
from cog_celery.sharing import Seat
from cog_celery.snapshots import Dialect, dialect
from cog_celery.stream import Delivery, Queue, Ticket
from cog_celery.wake import Wake
from cog_celery.workshop import Workshop

T = TypeVar("T")

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127}")
LONG = 0.2
"""Seconds after which a running prediction's cancel key is looked at by the keeper; the start snapshot looked already.
"""
HANDOVER = 1.0
"""Seconds for which a ticket waits for its slot; longer ones are duplicates, for a slot that is at work."""
LONGEST_WAIT = 1.0
"""Seconds for which a slot waits for an entry within its turn."""
LAST_LINES = 5

log = logging.getLogger(__name__)


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

    def __init__(
        self, index: int, life: str, shop: Workshop, runner: RespawningRunner, seat: int, gpu: str | None
    ) -> None:
        self.index = index
        self.consumer = f"{life}.{index}"
        self.gpu = gpu
        self.idle_since: float | None = None
        """When its credit was put down (monotonic); None while it works, or is not ready."""
        self.current: Current | None = None
        self.waiting = False
        """Whether it waits for an entry in a blocking read."""
        self.turns = 0
        """How many tickets came."""
        self._shop = shop
        self.link = Link(shop.settings.redis_url, f"cog-celery-slot:{self.consumer}", shop.outage)
        self._wake = Wake()
        self._busy = threading.Lock()
        self._runner = runner
        self._seat = seat
        self._attended: object = None
        self._reviving: threading.Thread | None = None
        self._lacking_since: float | None = None

    # -- its runner

    def interrupt(self) -> None:
        """From the drain: end a setup(), or what is about to begin."""
        self._runner.interrupt()

    def _respawn(self) -> bool:
        return self._runner.respawn(self._seat, lambda took: count_setup(self._shop.queue, self.link, took))

    def abandon(self) -> None:
        """Stop what it does, in this order: the runner's death is then not the prediction's."""
        if (current := self.current) and current.execution is not None:
            current.execution.stop("shutdown")
        self._runner.kill()

    def close(self) -> None:
        """Let go of everything but the runner. A slot that still works is left to the end of the process."""
        if not self._busy.acquire(timeout=1.0):
            return
        self.link.close()
        self._wake.close()

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
            self.turns += 1
            ends = time.monotonic() + self._shop.settings.turn
            delivery = self._insist(lambda: self._shop.queue.claim(self.link, ticket))
            failpoints.reach("slot.claimed")
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
        if self._runner.ended(self._seat) and not self._respawn():
            return
        if self._runner.sick is not None:
            return  # until the model is well
        self.idle_since = time.monotonic()
        try:
            self._insist(lambda: self._shop.queue.put_credit(self.link, self.consumer))
            failpoints.reach("slot.credited")
        except ServerError as error:
            log.error("slot %d could not put its credit down, the heartbeat will: %s", self.index, error)

    @property
    def busy(self) -> bool:
        """Whether it is in a turn."""
        return self._busy.locked()

    def renew_credit(self, link: Link, patience: float) -> bool:
        """From the heartbeat: put an idle slot's credit down again, if it was lost and no ticket came for `patience`
        seconds; True in that case: a bridge died, or tickets do not reach us.
        """
        idle_since = self.idle_since
        if idle_since is None or self.busy:
            self._lacking_since = None
            return False
        now = time.monotonic()
        if link.call("LPOS", self._shop.queue.credits, self.consumer) is not None:
            self._lacking_since = None
        elif self._lacking_since is None or self._lacking_since < idle_since:
            self._lacking_since = now  # a ticket may be on its way
        elif now - self._lacking_since > patience and idle_since == self.idle_since:
            log.warning("the credit of slot %d was lost, it is put down again", self.index)
            self._shop.queue.put_credit(link, self.consumer)
            self._lacking_since = None
            return True
        return False

    def mend(self) -> None:
        """From the heartbeat: an idle slot whose runner died gets another, before a request has to wait for it."""
        if self.idle_since is None or not self._busy.acquire(blocking=False):
            return
        if self._runner.lives(self._seat):
            self._busy.release()
        else:
            threading.Thread(target=self._mend, name=f"mend slot {self.index}", daemon=True).start()

    def _mend(self) -> None:
        """With `_busy` held, which it lets go of."""
        try:
            # Without the credit, a ticket is on its way: then its turn sees to the runner.
            if self.idle_since is not None and self._shop.queue.withdraw_credit(self.link, self.consumer):
                self.idle_since = None
                self._rest()
        except ServerError as error:
            log.warning("slot %d keeps its credit without a runner: %s", self.index, error)
        finally:
            self._busy.release()

    def look_after_health(self) -> None:
        """Ask the model, if it has a healthcheck(), whether it is well. For the first of a runner's slots; may take
        seconds.
        """
        if not self._runner.healthcheck:
            return
        if self._runner.shared:
            if self._runner.lives(self._seat):
                self._ask_health()
            elif self.idle_since is None and not self.busy:
                self._revive()
            return
        if not self._busy.acquire(blocking=False):
            self._runner.health_due = True  # in its turn, between two predictions
            return
        try:
            if not self._runner.lives(self._seat):
                if self.idle_since is None:  # else it is mended for the next request's sake
                    self._revive()
                return
            idle = self.idle_since is not None
            if idle and not self._shop.queue.withdraw_credit(self.link, self.consumer):
                return  # a ticket is on its way, and is not to wait
            self._ask_health()
            if idle:
                self.idle_since = None
                self._rest()
        except ServerError as error:
            log.warning("slot %d: the health of its model is not known: %s", self.index, error)
        finally:
            self._busy.release()

    def _revive(self) -> None:
        """Set up a model that died while it was not well, and that nobody waits for, beside the questions to others."""
        if self._reviving is None or not self._reviving.is_alive():
            self._reviving = threading.Thread(target=self._respawn, name=f"mend slot {self.index}", daemon=True)
            self._reviving.start()

    def _ask_health(self) -> None:
        try:
            self._runner.ask_health()
        except (RunnerDied, RunnerProtocolError) as error:
            log.warning("slot %d: the runner died when its model was asked for its health: %s", self.index, error)

    def heed_health(self) -> None:
        """Take the credit back when the model is not well, put it down when it is again."""
        if not self._busy.acquire(blocking=False):
            return  # its turn's end does
        try:
            if self._runner.sick is None and self.idle_since is None:
                self._rest()
            elif self._runner.sick is not None and self.idle_since is not None:
                self._shop.queue.withdraw_credit(self.link, self.consumer)
                self.idle_since = None
        except ServerError as error:
            log.warning("slot %d could not heed the health of its model: %s", self.index, error)
        finally:
            self._busy.release()

    @property
    def sick(self) -> str | None:
        """Why its model is not well, None when it is."""
        return self._runner.sick

    @property
    def first(self) -> bool:
        """Whether it is the first of its runner's slots."""
        return self._seat == 0

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
            if self._runner.health_due and not self._runner.shared and self._runner.lives(self._seat):
                self._ask_health()
            if self._runner.sick is not None:
                break
            if delivery is None:
                left = ends - time.monotonic()
                if left <= 0:
                    return
                delivery = self._next(left)
                if delivery is None:
                    return  # also before the turn is over: what was given back comes with a ticket alone
                continue
            self.current = Current(delivery)
            if not self._runner.lives(self._seat) and not self._respawn():
                break
            delivery = self._handle(delivery, ends)
            self.current = None
        if delivery is not None:
            self._release(delivery)

    def _release(self, delivery: Delivery) -> None:
        """Give an entry back, if it is still ours."""
        release = partial(self._shop.queue.release, self.link, delivery.entry, self.consumer, delivery.attempt)
        ran = self.current is not None and self.current.execution is not None
        self._insist(partial(release, self._shop.agreed.lease, ran=ran))
        failpoints.reach("slot.released")

    def _next(self, left: float) -> Delivery | None:
        """The next entry that comes while the turn lasts."""
        self.waiting = True
        try:
            if self._shop.draining.is_set():
                return None
            return self._shop.queue.next(self.link, self.consumer, min(left, LONGEST_WAIT))
        except ServerLost:
            return self._insist(lambda: self._shop.queue.recover(self.link, self.consumer))
        finally:
            self.waiting = False

    # -- one prediction

    def _handle(self, delivery: Delivery, ends: float) -> Delivery | None:
        """Answer one entry; the next one, if it was taken in the same step."""
        shop, current = self._shop, self.current
        assert current is not None
        began = time.monotonic()
        try:
            request = parse(
                delivery.value, shop.queue.name, shop.settings.max_request_bytes, shop.settings.response_prefix
            )
        except Refusal as error:
            refusal, ttl = error, shop.settings.response_ttl_ms
            self._insist(
                lambda: refuse(self.link, shop.queue, delivery, self.consumer, refusal, shop.agreed.dialect, ttl)
            )
            failpoints.reach("slot.refused")
            return None
        record = ""
        if shop.agreed.idempotent_ids and request.id is not None:
            record = shop.queue.record(request.id)
            if not self._enroll(delivery, request, record):
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
            scratch=self._runner.scratch,
            record=record,
        )
        late = self._late(request, delivery)
        execution: Execution | None = None
        if late is not None:
            log.warning("prediction %s is not run: %s", id, late)
            prediction.fail(time.time(), late, "platform")
        else:
            try:
                execution = self._execute(current, request, prediction, outlet)
            finally:
                outlet.close()
            failpoints.reach("slot.predicted")
        answered, next = False, None
        if execution is not None and execution.reason == "refused":
            self._bury(delivery, request, record)
        elif prediction.terminal:
            unshown = execution is not None and execution.unshown
            answered, next = self._commit(delivery, request, prediction, outlet.dialect, unshown, began, ends, record)
            failpoints.reach("slot.committed")
        else:
            log.warning("prediction %s was given up: %s", id, (execution and execution.reason) or "its runner is gone")
            self._release(delivery)
        self.current = None
        self._row(id, prediction if answered else None, time.monotonic() - began)
        if answered and execution is not None:
            shop.on_finished(prediction)
        if self._runner.died(self._seat):
            self._tell_death(id, self._runner.seat(self._seat).exitcode, prediction)
            self._respawn()
        return next

    def _enroll(self, delivery: Delivery, request: PredictionRequest, record: str) -> bool:
        """Whether this request is to be run; else another one with its id is, or was, and the entry ended here."""
        shop, response = self._shop, request.response_queue
        assert response is not None
        ttl = shop.settings.response_ttl_ms
        verdict = self._insist(lambda: shop.queue.enroll(self.link, delivery, self.consumer, record, response, ttl))
        if verdict == "refused":
            self._bury(delivery, request, "")
            return False
        if verdict == "crowded":
            refusal = Refusal("More than a hundred requests with this `id` wait for its prediction.", response)
            self._insist(
                lambda: refuse(self.link, shop.queue, delivery, self.consumer, refusal, shop.agreed.dialect, ttl)
            )
            return False
        if verdict != "first":
            log.info("entry %s is not run: another one has the id %.100r (%s)", delivery.entry, request.id, verdict)
        return verdict == "first"

    def _late(self, request: PredictionRequest, delivery: Delivery) -> str | None:
        """Why this request is not to be run any more. What once had its turn in time may have it again."""
        max_age = self._shop.settings.max_age if delivery.attempt == 1 else None
        late = expired(request, delivery.entry, time.time(), max_age)
        if late is None or expired(request, delivery.entry, time.time(), None) is not None:
            return late
        return None if self._insist(lambda: self._shop.queue.ran(self.link, delivery.entry)) else late

    def _execute(
        self, current: Current, request: PredictionRequest, prediction: Prediction, outlet: SlotOutlet
    ) -> Execution:
        """Run a prediction; once more when its runner turns out to be dead before it took the input."""
        settings = self._shop.settings
        for last_try in (False, True):
            runner = self._runner.seat(self._seat)
            if runner is not self._attended:
                runner.attend(self._wake.fileno())
                self._attended = runner
            if isinstance(runner, Seat):
                runner.label = current.id
            execution = Execution(
                *(runner, prediction, outlet),
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
            if took or not self._respawn():
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
        record: str,
    ) -> tuple[bool, Delivery | None]:
        """Write the terminal snapshot: whether it was written, and the next entry, if it was taken in the same step."""
        shop = self._shop
        snapshot = dialect.render(prediction)
        before = dialect.render(prediction, processing=True) if unshown else b""
        if len(snapshot) > LARGEST:
            snapshot, before = dialect.render(prediction.without_output(too_large(snapshot))), b""
        now = time.monotonic()
        take = (
            now < ends and not shop.draining.is_set() and not self._runner.ended(self._seat) and not self._runner.sick
        )
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
                record=record,
                record_ttl=self._kept(prediction) if record else 0.0,
            )
        )
        if verdict == "refused":
            self._bury(delivery, request, record)
        elif verdict == "stale":
            log.warning("the answer to %s came too late: another attempt owns it", delivery.entry)
        return verdict in ("done", "settled"), next

    def _kept(self, prediction: Prediction) -> float:
        """Seconds for which an id is remembered with this answer; 0 for one that was not the model's."""
        settings = self._shop.settings
        if prediction.status == "canceled" or prediction.fault == "platform":
            return 0.0
        return min(settings.idempotent_ttl, settings.response_ttl or settings.idempotent_ttl)

    def _bury(self, delivery: Delivery, request: PredictionRequest, record: str) -> None:
        """End a delivery whose response may not be written: nobody could ever read it."""
        keys = f"response key {request.response_queue!r}"
        if request.cancel_key is not None:
            keys += f" or read the cancel key {request.cancel_key!r}"
        reason = f"We may not write the {keys}: name others, or give us the right."
        log.error("entry %s: %s", delivery.entry, reason)
        unread = Prediction()
        unread.fail(time.time(), reason, "input")
        snapshot = dialect(self._shop.agreed.dialect, None).render(unread)  # for others with the same id
        bury = partial(self._shop.queue.bury, self.link, delivery, self.consumer, None, snapshot, reason)
        self._insist(partial(bury, record=record, ran=True))

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
