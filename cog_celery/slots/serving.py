"""One delivery, from the request's bytes to the commit: refused, enrolled, predicted, answered or given back.

It must not know how a slot comes by it, nor about credits and turns.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cog_celery import failpoints
from cog_celery.delivery.finished import Finished, Outcome, Period, time_in_queue
from cog_celery.delivery.link import Link, insist
from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.presence import noted
from cog_celery.delivery.refusing import refuse
from cog_celery.delivery.requests import PredictionRequest, Refusal, expired, parse, prediction_id
from cog_celery.delivery.snapshots import dialect
from cog_celery.delivery.stream import Delivery, Queue
from cog_celery.errors import ServerError
from cog_celery.runners.sharing import Seat
from cog_celery.runners.wake import Wake
from cog_celery.slots.execution import Execution
from cog_celery.slots.holding import Behind, Current
from cog_celery.slots.outlet import LARGEST, SlotOutlet, too_large
from cog_celery.slots.respawning import RespawningRunner
from cog_celery.slots.workshop import Workshop
from cog_celery.telemetry import logs, traces
from cog_celery.telemetry.traces import NO_REQUEST

T = TypeVar("T")

LAST_LINES = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Work:
    """A prediction that was begun, and all that its answer needs."""

    current: Current
    request: PredictionRequest
    prediction: Prediction
    outlet: SlotOutlet
    record: str
    began: float
    received: float
    """The same point in time, by the clock of the stream and the traces: seconds since 1970."""


class Serving:
    """What one slot answers its deliveries with. Used by the slot's thread, and by that which ends what it began."""

    def __init__(
        self, index: int, gpu: str | None, shop: Workshop, runner: RespawningRunner, seat: int, behind: Behind
    ) -> None:
        self._index = index
        self._gpu = gpu
        self._shop = shop
        self._runner = runner
        self._seat = seat
        self._behind = behind
        self._wake = Wake()
        self._attended: object = None

    def close(self) -> None:
        self._wake.close()

    def answer(self, current: Current, ends: float, answered_it: Callable[[], None]) -> Delivery | None:
        """Answer one entry; the next one, if it was taken in the same step. `answered_it` is called when it is over.

        What is left to do when the predictor is done, uploads, may be left to `behind`.
        """
        current.queue, current.slot = self._shop.queue.name, self._index
        logs.subject.about = current.about
        try:
            return self._answer(current, ends, answered_it)
        finally:
            logs.subject.about = logs.nothing

    def _answer(self, current: Current, ends: float, answered_it: Callable[[], None]) -> Delivery | None:
        shop, delivery, desk = self._shop, current.delivery, current.desk
        began, received = time.monotonic(), time.time()
        try:
            request = parse(
                delivery.value, shop.queue.name, shop.settings.max_request_bytes, shop.settings.response_prefix
            )
        except Refusal as error:
            refusal, ttl = error, shop.settings.response_ttl_ms
            self._insist(lambda: refuse(desk.link, shop.queue, delivery, desk.owner, refusal, shop.agreed.dialect, ttl))
            failpoints.reach("slot.refused")
            self._refused(current, received)
            return None
        record = ""
        if shop.agreed.idempotent_ids and request.id is not None:
            record = shop.queue.record(request.id)
            if not self._enroll(current, request, record):
                return None
        id = prediction_id(request, delivery.name)
        current.id, current.cancel_key = id, request.cancel_key
        trace = current.trace = traces.delivery(request)
        if request.webhook is not None:
            log.warning("prediction %s names a webhook: webhooks are not sent yet, its response_queue is served", id)
        shop.rows.begin(id, queue=shop.queue.name, slot=self._index, gpu=self._gpu, attempt=delivery.attempt)
        prediction = Prediction(shop.settings.max_log_bytes)
        outlet = SlotOutlet(
            *(shop.queue, desk.link, desk.owner, delivery, request, prediction),
            dialect(shop.agreed.dialect, delivery.value),
            shop.uploader,
            shop.spare_link,
            shop.input_cache,
            id=id,
            max_input_bytes=shop.settings.max_input_bytes,
            record=record,
            trace=trace,
        )
        work = _Work(current, request, prediction, outlet, record, began, received)
        late = self._late(request, current)
        if late is not None:
            log.warning("prediction %s is not run: %s", id, late)
            prediction.fail(time.time(), late, "platform")
            next = self._end(work, ends)
            answered_it()
            return next
        ends_later = False
        try:
            execution = self._execute(work)
            ends_later = self._left_behind(work, execution)
            failpoints.reach("slot.predicted")
            next = None if ends_later else self._end(work, ends)
            answered_it()
        finally:
            if not ends_later:
                outlet.close()  # behind the answer: to remove a gigabyte takes a fifth of a second
        if self._runner.died(self._seat):
            self._tell_death(id, self._runner.seat(self._seat).exitcode, prediction)
            self.respawn()
        return next

    def _left_behind(self, work: _Work, execution: Execution) -> bool:
        """See an execution to its end, unless uploads are all that is left and there is nothing else behind us."""
        if not self._shop.settings.overlap_uploads:
            execution.finish()
            return False
        execution.finish(lambda: work.outlet.all_open and self._behind.current is None)
        if not execution.uploading:
            return False

        def finish() -> None:
            try:
                execution.finish()
                self._end(work, 0.0)
            finally:
                work.outlet.close()

        self._behind.start(work.current, finish)
        return True

    def _end(self, work: _Work, ends: float) -> Delivery | None:
        """Answer what was predicted, or give it back; the next entry, if it was taken in the same step."""
        current, prediction = work.current, work.prediction
        execution = current.execution
        outcome: Outcome = "released"
        committing, size, next, gpu_failed = None, 0, None, False
        if execution is not None and execution.reason == "refused":
            self._bury(current, work.request, work.record)
            outcome = "refused"
        elif prediction.terminal and not (gpu_failed := self._gpu_failed(work)):
            began = time.time()
            outcome, size, next = self._commit(work, execution is not None and execution.unshown, ends)
            committing = (began, time.time())
            failpoints.reach("slot.committed")
        else:
            # It may have timed out of that.
            why = "its GPU failed" if gpu_failed else (execution and execution.reason) or "its runner is gone"
            self.release(current, why, counts=why == "its GPU failed")
        finished = self._finished(work, outcome, committing, size)
        self._tell(current, finished)
        return next

    def _finished(self, work: _Work, outcome: Outcome, committing: Period | None, size: int) -> Finished:
        current, prediction, outlet = work.current, work.prediction, work.outlet
        execution = current.execution
        # What failed with a file quotes its URL, and a model whatever it likes.
        quotes = prediction.fault != "platform" or (execution is not None and execution.reason == "failed")
        return Finished(
            queue=self._shop.queue.name,
            slot=self._index,
            id=current.id,
            entry=current.delivery.entry,
            attempt=current.delivery.attempt,
            outcome=outcome,
            fault=None if outcome == "released" else prediction.fault,
            reason=None if quotes else prediction.error,
            ran=execution is not None,
            received=work.received,
            ended=time.time(),
            fetching=outlet.fetching,
            predicting=None if execution is None else execution.predicting,
            predict_time=prediction.predict_time,
            first_output=None if execution is None else execution.first_output,
            last_output=None if execution is None else execution.last_output,
            uploads=outlet.uploads,
            committing=committing,
            bytes_in=len(current.delivery.value or b"") + outlet.bytes_in,
            bytes_out=size + outlet.bytes_out,
            metrics=prediction.metrics,
        )

    def _refused(self, current: Current, received: float) -> None:
        """A message that cannot be served has been answered, as far as possible."""
        delivery = current.delivery
        finished = Finished(
            queue=self._shop.queue.name,
            slot=self._index,
            id=current.id,
            entry=delivery.entry,
            attempt=delivery.attempt,
            outcome="refused",
            fault="input",
            received=received,
            ended=time.time(),
            bytes_in=len(delivery.value or b""),
        )
        current.trace = traces.delivery(NO_REQUEST)
        self._tell(current, finished)

    def _tell(self, current: Current, finished: Finished) -> None:
        """The one place where all is known of a delivery that is over."""
        current.trace.end(finished)
        self._shop.telling.add(finished, current.trace)
        self._shop.rows.end(finished)
        self._shop.on_finished(finished)

    def _enroll(self, current: Current, request: PredictionRequest, record: str) -> bool:
        """Whether this request is to be run; else another one with its id is, or was, and the entry ended here."""
        shop, response = self._shop, request.response_queue
        delivery, desk = current.delivery, current.desk
        assert response is not None
        ttl = shop.settings.response_ttl_ms
        verdict = self._insist(lambda: shop.queue.enroll(desk.link, delivery, desk.owner, record, response, ttl))
        if verdict == "refused":
            self._bury(current, request, "")
            return False
        if verdict == "crowded":
            refusal = Refusal("More than a hundred requests with this `id` wait for its prediction.", response)
            self._insist(lambda: refuse(desk.link, shop.queue, delivery, desk.owner, refusal, shop.agreed.dialect, ttl))
            return False
        if verdict != "first":
            log.info("entry %s is not run: another one has the id %.100r (%s)", delivery.entry, request.id, verdict)
        return verdict == "first"

    def _late(self, request: PredictionRequest, current: Current) -> str | None:
        """Why this request is not to be run any more. What once had its turn in time may have it again."""
        delivery = current.delivery
        max_age = self._shop.settings.max_age if delivery.attempt == 1 else None
        late = expired(request, delivery.entry, time.time(), max_age)
        if late is None or expired(request, delivery.entry, time.time(), None) is not None:
            return late
        return None if self._insist(lambda: self._shop.queue.ran(current.desk.link, delivery.at)) else late

    def _execute(self, work: _Work) -> Execution:
        """Run a prediction; once more when its runner turns out to be dead before it took the input."""
        settings = self._shop.settings
        current, request, outlet = work.current, work.request, work.outlet
        for last_try in (False, True):
            runner = self._runner.seat(self._seat)
            if runner is not self._attended:
                runner.attend(self._wake.fileno())
                self._attended = runner
            if isinstance(runner, Seat):
                runner.label = current.id
            execution = Execution(
                *(runner, work.prediction, outlet),
                id=current.delivery.name,
                timeout=settings.predict_timeout,
                grace=settings.cancel_grace,
                wake=self._wake,
            )
            outlet.execution = current.execution = execution
            outlet.scratch = self._runner.scratch  # another one for another runner
            if self._shop.is_revoked(current.id, current.delivery.name):
                execution.stop("canceled")
            # The cancel key may be there already: then predict() is not entered.
            hold = request.cancel_key is not None or execution.reason is not None
            took = execution.run(bytes(request.input), hold=hold, context=request.context, last_try=last_try)
            if took or not self.respawn():
                break
        return execution

    def _commit(self, work: _Work, unshown: bool, ends: float) -> tuple[Outcome, int, Delivery | None]:
        """Write the terminal snapshot: what became of it, its bytes, and the next entry, if it was taken in the same
        step.
        """
        shop = self._shop
        current, prediction, dialect = work.current, work.prediction, work.outlet.dialect
        snapshot = dialect.render(prediction)
        before = dialect.render(prediction, processing=True) if unshown else b""
        if len(snapshot) > LARGEST:
            snapshot, before = dialect.render(prediction.without_output(too_large(snapshot))), b""
        now = time.monotonic()
        take = (
            now < ends and not shop.draining.is_set() and not self._runner.ended(self._seat) and not self._runner.unfit
        )
        ran = now - work.began
        about = noted(
            *(current.id, prediction.status, prediction.fault),
            waited=time_in_queue(current.delivery.entry, time.time() - ran),
            ran=ran,
            predicted=prediction.predict_time,
            response=work.request.response_queue,
        )
        verdict, next = self._insist(
            lambda: shop.queue.commit(
                current.desk.link,
                current.delivery,
                current.desk.owner,
                work.request.response_queue,
                snapshot,
                ttl=shop.settings.response_ttl_ms,
                before=before,
                duration=ran,
                take=take,
                record=work.record,
                record_ttl=self._kept(prediction) if work.record else 0.0,
                about=about,
            )
        )
        if verdict == "refused":
            self._bury(current, work.request, work.record)
        elif verdict == "stale":
            log.warning("the answer to %s came too late: another attempt owns it", current.id, extra={"event": "stale"})
            return "stale", 0, next
        if verdict == "refused":
            return "refused", 0, next
        assert prediction.status != "starting" and prediction.status != "processing"
        return prediction.status, len(snapshot), next

    def _kept(self, prediction: Prediction) -> float:
        """Seconds for which an id is remembered with this answer; 0 for one that was not the model's."""
        settings = self._shop.settings
        if prediction.status == "canceled" or prediction.fault == "platform":
            return 0.0
        return min(settings.idempotent_ttl, settings.response_ttl or settings.idempotent_ttl)

    def _bury(self, current: Current, request: PredictionRequest, record: str) -> None:
        """End a delivery whose response may not be written: nobody could ever read it."""
        keys = f"response key {request.response_queue!r}"
        if request.cancel_key is not None:
            keys += f" or read the cancel key {request.cancel_key!r}"
        reason = f"We may not write the {keys}: name others, or give us the right."
        delivery, desk = current.delivery, current.desk
        log.error("entry %s: %s", delivery.entry, reason)
        unread = Prediction()
        unread.fail(time.time(), reason, "input")
        snapshot = dialect(self._shop.agreed.dialect, None).render(unread)  # for others with the same id
        bury = partial(self._shop.queue.bury, desk.link, delivery, desk.owner, None, snapshot, reason)
        about = noted(current.id, "failed", "input", response=request.response_queue)
        self._insist(partial(bury, record=record, ran=True, about=about))

    def _tell_death(self, id: str, exitcode: int, prediction: Prediction) -> None:
        how = signal.Signals(-exitcode).name if -exitcode in signal.valid_signals() else f"exitcode {exitcode}"
        last = "; ".join(prediction.logs[-LAST_LINES:]) or "nothing"
        log.warning("the runner of slot %d ended (%s) in prediction %s; it last said: %s", self._index, how, id, last)

    def _gpu_failed(self, work: _Work) -> bool:
        """Whether a prediction failed, or its runner died, of a GPU that is not well: another attempt is to answer."""
        prediction, execution = work.prediction, work.current.execution
        if prediction.status != "failed" or prediction.fault == "input" or execution is None:
            return False
        if execution.reason not in (None, "timeout"):
            return False
        # What CUDA says of it comes before what the driver says of the GPU.
        return self._runner.look_at_gpus(late=self._runner.ended(self._seat)) is not None

    def release(self, current: Current, why: str = "shutdown", *, counts: bool = False) -> None:
        """Give an entry back, if it is still ours; `counts`: as an attempt."""
        with logs.about(current.about):
            log.warning("prediction %s was given up: %s", current.id, why, extra={"event": "released"})
        release = partial(self._shop.queue.release, current.desk.link, current.held)
        self._insist(partial(release, self._shop.agreed.lease, ran=current.execution is not None, counts=counts))
        failpoints.reach("slot.released")

    def respawn(self) -> bool:
        """Start the runner again; False when that cannot be, or is not to be any more."""
        return self._runner.respawn(self._seat, self._count_setup)

    def try_again(self) -> bool:
        """Set up a runner that is out of service, once; whether it is back."""
        return self._runner.try_again(self._count_setup)

    def _count_setup(self, took: float) -> None:
        self._shop.on_restarted(took)
        with self._shop.spare_link.lent() as link:
            count_setup(self._shop.queue, link, took)

    def _insist(self, step: Callable[[], T]) -> T:
        return insist(step, self._shop.giving_up)


def count_setup(queue: Queue, link: Link, took: float) -> None:
    """Add a setup to the statistics, which are not worth a slot."""
    try:
        queue.setup_took(link, took)
    except ServerError as error:
        log.warning("a setup was not counted: %s", error)
