"""The loop of one stream in a bridge: takes an entry together with an idle slot's credit, and sends the slot a ticket;
takes over what dead owners left.

It must not know what a request asks for, nor keep one: a request stays in its stream. One thread serves one queue and
owns all that the bridge knows of it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from cog_celery import __version__, failpoints
from cog_celery.bridge.dispatching import Dispatcher
from cog_celery.delivery.finished import Finished
from cog_celery.delivery.link import FIRST_PAUSE, LONGEST_PAUSE, Link, Outage
from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.presence import About, noted
from cog_celery.delivery.refusing import refuse
from cog_celery.delivery.requests import PredictionRequest, Refusal, parse, prediction_id
from cog_celery.delivery.snapshots import dialect
from cog_celery.delivery.stream import (
    BRIDGE,
    RELEASED,
    SLOT,
    TICKET_VERSION,
    Delivery,
    Entry,
    Held,
    Owned,
    Queue,
    QueueSettings,
    Ticket,
    slot_life,
)
from cog_celery.errors import GroupMissing, ServerError, ServerLost
from cog_celery.heartbeat import State
from cog_celery.settings import Settings
from cog_celery.telemetry import logs, traces
from cog_celery.telemetry.rows import Rows, node_name
from cog_celery.telemetry.traces import NO_REQUEST

GROUP_PAUSE = 0.5
"""Seconds between looks for a group that does not exist: within a second of its creation it is picked up."""
CONSUMERS_PAUSE = 60.0
"""Seconds between looks for consumers of dead processes."""
LONGEST_UNCLAIMED = 60.0
"""Seconds that a ticket may lie unclaimed before its entry goes to another slot: a lease at first, then twice that."""
LONGEST_REPLIES = 60.0
"""Seconds after which a loop is stuck that waits for a few replies of servers, each of which has a limit."""

log = logging.getLogger(__name__)


@dataclass
class Dispatched:
    """A ticket on its way: what it is about, the trace it is sent in, when it was sent (monotonic), and whether that
    was done twice.
    """

    ticket: Ticket
    about: Callable[[], logs.About]
    trace: Any
    at: float
    again: bool = False


class StreamBridge:
    """One stream. `waiting`: entries that this bridge owns and has no credit for, and their attempts; `dispatched`:
    those whose ticket is on its way; `unclaimed`: how many tickets for an entry came to nothing; `gone`: workers that
    seem to be, whose Celery queues are still there.
    """

    front = False
    """Whether the queue has no slots, and its requests go to other queues."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        dispatcher: Dispatcher,
        rows: Rows,
        outage: Outage,
        stopping: threading.Event,
    ) -> None:
        self.queue = Queue(settings.queue)
        self._name = name
        self._settings = settings
        self._dispatcher = dispatcher
        self._rows = rows
        self._stopping = stopping
        self._link = Link(settings.redis_url, f"cog-celery-bridge:{name}", outage)
        self._blocked = False
        self._complaint = ""
        self._waiting: dict[Entry, int] = {}
        self._dispatched: dict[Entry, Dispatched] = {}
        self._unclaimed: dict[Entry, int] = {}
        self._gone: set[str] = set()
        self._too_long = False
        self._nobody_since: float | None = None
        self._nobody = False
        self._agreed: QueueSettings | None = None
        self.moved_at = time.monotonic()
        """When the loop last came around."""
        self.state: State = "starting"
        self._sweep_at = 0.0
        self._reclaim_at = 0.0
        self._consumers_at = time.monotonic() + CONSUMERS_PAUSE

    def run(self) -> None:
        """Serve the stream until told to stop. Raises SettingsConflict and bugs; outages are waited out."""
        pause = FIRST_PAUSE
        said = was_there = False
        while not self._stopping.is_set():
            self.moved_at = time.monotonic()
            try:
                if self._agreed is None:
                    self._begin()
                self._step()
                self.state = "ready"
                pause, said = FIRST_PAUSE, False
            except GroupMissing:
                was_there = was_there or self._agreed is not None  # it was the server that lost it, not its owner
                self._agreed = None  # whoever emptied the server may have taken the settings too
                if self._settings.create_group or was_there:
                    if self._create():
                        log.warning("queue %s had no group: it was made", self.queue.name)
                    continue
                if not said:
                    log.warning("queue %s does not exist yet, waiting for it", self.queue.name)
                    said = True
                self._stopping.wait(GROUP_PAUSE)
            except ServerLost:
                self.state = "waiting"
                self._be_patient()
                self._stopping.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except ServerError as error:
                if self._agreed is None:
                    raise
                # One entry, or one right that is missing, must not end the service of all others.
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("queue %s: %s", self.queue.name, error)
                self._stopping.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        self._drain()

    @property
    def longest_step(self) -> float:
        """Seconds: it blocks until its next sweep, and waits for some replies."""
        return (self._agreed.lease if self._agreed else 0.0) / 3 + LONGEST_REPLIES

    def wake(self, link: Link) -> None:
        """End a blocking read, from another thread, on its link."""
        if self._blocked and self._link.client_id:
            link.call("CLIENT", "UNBLOCK", self._link.client_id)

    def _begin(self) -> None:
        settings = self._settings
        self.queue.check_server(self._link)
        if not settings.create_group and not self.queue.group_exists(self._link):
            raise GroupMissing(self.queue.name)
        self._agreed = self.queue.agree(
            *(self._link, settings.dialect, settings.lease, settings.max_attempts, settings.idempotent_ids),
            *(settings.priority, self.front),
        )
        self.queue.create_group(self._link)  # its lane, if nothing else
        if left := self.queue.left_in_lane(self._link):
            log.warning(
                "queue %s has no lane any more, and nobody takes what is left in %s (%d): start it with --priority",
                *(self.queue.name, self.queue.high, left),
            )
        self._be_patient()

    def _create(self) -> bool:
        try:
            return self.queue.create_group(self._link)
        except ServerLost:
            return False

    def _be_patient(self) -> None:
        """Reclaim nothing for one lease: idle time counts through an outage, and owners must be able to speak up
        first."""
        lease = self._agreed.lease if self._agreed else 0.0
        self._reclaim_at = time.monotonic() + lease

    # -- the loop

    def _step(self) -> None:
        """Take one entry and send its ticket, or wait for what is missing; heartbeats in between."""
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        queue, link = self.queue, self._link
        entry = next(iter(self._waiting), None)
        answer = queue.take(link, self._name, entry, self._waiting[entry] if entry else 0)
        left = max(0.01, self._sweep_at - time.monotonic())
        match answer:
            case ("ticket", credit, reads, delivery):
                failpoints.reach("bridge.taken")
                self._waiting.pop(delivery.at, None)
                self._dispatch(credit, reads, delivery)
            case ("gone",):
                assert entry is not None
                self._waiting.pop(entry, None)
            case ("no entry", last):
                with self._blocking():
                    queue.watch(link, last, left)
            case _:
                with self._blocking():
                    queue.wait_for_credit(link, left)

    @contextlib.contextmanager
    def _blocking(self) -> Iterator[None]:
        self._blocked = True
        try:
            yield
        finally:
            self._blocked = False

    def _dispatch(self, credit: str, reads: int, delivery: Delivery) -> None:
        try:
            request = self._parse(delivery.value)
        except Refusal as refusal:
            self.queue.put_credit(self._link, credit)  # first: whatever becomes of the message, the slot is idle
            self._refuse(delivery, refusal)
            return
        trace, about = traces.context(request), partial(self._about, request, delivery)
        # In the form of the older of the two: a worker of another release is served while it is replaced.
        version = min(TICKET_VERSION, reads)
        ticket = Ticket(version, delivery.at.stream, delivery.at.id, delivery.attempt, self._name, credit)
        try:
            self._dispatcher.dispatch(ticket, trace)
        except ServerLost:
            self._waiting[delivery.at] = delivery.attempt
            self.queue.put_credit(self._link, credit)
            raise
        failpoints.reach("bridge.dispatched")
        self._dispatched[delivery.at] = Dispatched(ticket, about, trace, time.monotonic())

    def _about(self, request: PredictionRequest, delivery: Delivery) -> logs.About:
        id, trace = prediction_id(request, delivery.name), traces.trace_id(request)
        return logs.About(id, self.queue.name, delivery.entry, delivery.attempt, None, trace)

    def _about_bytes(self, delivery: Delivery) -> logs.About:
        try:
            return self._about(self._parse(delivery.value), delivery)
        except Refusal:
            return self._about(NO_REQUEST, delivery)

    def _ended(self, request: PredictionRequest, delivery: Delivery, received: float, **how: Any) -> None:
        """What no slot will ever have has a span all the same."""
        traces.delivery(request).end(
            Finished(
                queue=self.queue.name,
                slot=None,
                id=prediction_id(request, delivery.name),
                entry=delivery.entry,
                attempt=delivery.attempt,
                received=received,
                ended=time.time(),
                **how,
            )
        )

    def _parse(self, value: bytes | None) -> PredictionRequest:
        return parse(value, self.queue.name, self._settings.max_request_bytes, self._settings.response_prefix)

    def _refuse(self, delivery: Delivery, refusal: Refusal) -> None:
        assert self._agreed is not None
        ttl, received = self._settings.response_ttl_ms, time.time()
        with logs.about(partial(self._about, NO_REQUEST, delivery)):
            refuse(self._link, self.queue, delivery, self._name, refusal, self._agreed.dialect, ttl)
        self._ended(NO_REQUEST, delivery, received, outcome="refused", fault="input")
        failpoints.reach("bridge.refused")

    # -- every third of a lease

    def _sweep(self) -> None:
        assert self._agreed is not None
        lease = self._agreed.lease
        now = time.monotonic()
        if self._sweep_at and now - self._sweep_at > lease / 6:
            self._be_patient()  # we were late: then others may not have been heard either
        self._sweep_at = now + lease / 3
        self._keep_ours(lease)
        self._say_who_we_are()
        self._look_at_the_queue(lease)
        if now >= self._reclaim_at:
            self._reclaim(lease)
        if now >= self._consumers_at:
            self._consumers_at = now + CONSUMERS_PAUSE
            self._forget_the_dead(max(CONSUMERS_PAUSE, 10 * lease))

    def _say_who_we_are(self) -> None:
        about = About(role="bridge", name=self._settings.name, state=self.state, version=__version__)
        self.queue.describe(self._link, self._name, msgspec.json.encode(about))

    def _keep_ours(self, lease: float) -> None:
        """Extend what this bridge owns; tickets whose worker is gone, or that nobody claimed, go to the next credit."""
        assert self._agreed is not None
        owned = {line.at: line.attempt for line in self.queue.owned(self._link, self._name)}
        self.queue.extend(self._link, [Held(at, self._name, attempt) for at, attempt in owned.items()])
        now = time.monotonic()
        for known in (self._dispatched, self._waiting, self._unclaimed):
            for at in [at for at in known if at not in owned]:
                del known[at]  # claimed
        lives: dict[str, bool] = {}
        for at, attempt in owned.items():
            if at in self._waiting:
                continue
            sent = self._dispatched.get(at)
            if sent is not None:
                worker = slot_life(sent.ticket.slot)
                if worker not in lives:
                    lives[worker] = self.queue.lives(self._link, worker)
                tries = self._unclaimed.get(at, 0)
                if lives[worker] and now - sent.at < min(lease * 2**tries, max(lease, LONGEST_UNCLAIMED)):
                    if not sent.again and now - sent.at >= lease / 3:
                        sent.again = True  # the broker may have lost it; else the second one is void
                        self._dispatcher.dispatch(sent.ticket, sent.trace)
                    continue
                with logs.about(sent.about):
                    log.warning(
                        "the ticket for %s on %s was not claimed (%s): it goes to the next idle slot",
                        *(at.id, self.queue.name),
                        "its worker does not consume" if lives[worker] else "its worker is gone",
                        extra={"event": "not claimed"},
                    )
                self._unclaimed[at] = tries + 1
                del self._dispatched[at]
            if attempt > self._agreed.max_attempts:  # it was to be buried, and that failed
                self._bury(self._read(at, attempt), "unknown")
                continue
            self._waiting[at] = attempt
        self._gone |= {worker for worker, alive in lives.items() if not alive}
        # After an outage a worker that lives may not have been able to announce itself yet.
        while self._gone and now >= self._reclaim_at:
            worker = next(iter(self._gone))
            if not self.queue.lives(self._link, worker):
                self._dispatcher.delete(worker)
            self._gone.discard(worker)

    def _look_at_the_queue(self, lease: float) -> None:
        """Say, once each, when a stream is too long, when nobody takes its requests, and when that is over."""
        queue, link, limit = self.queue, self._link, self._settings.max_length
        length = queue.length(link)
        if limit is not None and not self._too_long and length > limit:
            self._too_long = True
            log.warning("queue %s is longer than --max-length %d: %d requests", queue.name, limit, length)
        elif limit is not None and self._too_long and length <= limit * 0.8:
            self._too_long = False
            log.warning("queue %s is well below --max-length %d again", queue.name, limit)
        # A slot that lives is idle, and has a credit, or has something in the pending list.
        taken = not length or queue.idle_slots(link) or any(map(_runs, queue.owners(link)))
        if taken:
            if self._nobody:
                log.warning("the requests of queue %s are taken again", queue.name)
            self._nobody, self._nobody_since = False, None
            return
        now = time.monotonic()
        if self._nobody_since is None:
            self._nobody_since = now
        elif not self._nobody and now - self._nobody_since >= lease:
            self._nobody = True
            log.warning("queue %s has requests, and no worker takes them: %d", queue.name, length)

    def _forget_the_dead(self, idle: float) -> None:
        """Delete consumers of processes that are gone, and the Celery queues of workers among them."""
        if time.monotonic() < self._reclaim_at:
            return
        gone: set[str] = set()
        for consumer in self.queue.idle_consumers(self._link, idle):
            if SLOT.fullmatch(consumer):
                worker = slot_life(consumer)
                if self.queue.lives(self._link, worker):
                    continue
                gone.add(worker)
            self.queue.forget(self._link, consumer)
        for worker in gone:
            self._dispatcher.delete(worker)

    def _reclaim(self, lease: float) -> None:
        """Take over entries whose owners have not been heard of for a lease; come back in time for those that are about
        to be.
        """
        for stream in self.queue.streams:
            self._reclaim_in(stream, lease)

    def _reclaim_in(self, stream: str, lease: float) -> None:
        after: str | None = None
        while True:
            # Whoever lives is silent for a third of the lease at most.
            lines = self.queue.overdue(self._link, stream, lease * 2 / 3, after=after)
            for line in lines:
                left = lease - line.idle / 1000
                if line.owner == self._name:
                    continue
                if left > 0:
                    self._sweep_at = min(self._sweep_at, time.monotonic() + left + 0.001)
                else:
                    self._take_over(line, lease)
            if len(lines) < 100:
                return
            after = lines[-1].at.id

    def _take_over(self, line: Owned, lease: float) -> None:
        assert self._agreed is not None
        ran = SLOT.fullmatch(line.owner) is not None
        ours = ran or BRIDGE.fullmatch(line.owner) is not None or line.owner == RELEASED
        if not ours:
            if line.idle < self._settings.foreign_lease * 1000:
                return
            lease, ran = self._settings.foreign_lease, True
        attempt = self.queue.reclaim(self._link, line, self._name, lease, counts=ran)
        if not attempt:
            return
        failpoints.reach("bridge.reclaimed")
        delivery = self._read(line.at, attempt)
        about = self._about_bytes(delivery)
        if SLOT.fullmatch(line.owner):
            show = self._rows.lost if attempt <= self._agreed.max_attempts else self._rows.given_up
            worker = node_name(self.queue.name, slot_life(line.owner).rpartition("~")[0])
            show(about.prediction_id or delivery.name, worker, time.time() - line.idle / 1000)
        if attempt <= self._agreed.max_attempts:
            with logs.about(lambda: about):
                log.warning(
                    *("entry %s of %s is reclaimed from %s: attempt %d", line.at.id, self.queue.name, line.owner),
                    attempt,
                    extra={"event": "reclaimed"},
                )
            self._waiting[line.at] = attempt
            return
        self._bury(delivery, line.owner)

    def _read(self, at: Entry, attempt: int) -> Delivery:
        return self.queue.read(self._link, at, attempt) or Delivery(at, attempt, None)

    def _bury(self, delivery: Delivery, last_owner: str) -> None:
        """All attempts are used up: say so, and keep the request among the dead letters."""
        assert self._agreed is not None
        runs = delivery.attempt - 1
        reason = f"Prediction failed: it was lost with its worker {runs} times, and that is as often as it is tried."
        received = time.time()
        try:
            request = self._parse(delivery.value)
        except Refusal as refusal:
            self._refuse(delivery, refusal)
            return
        with logs.about(partial(self._about, request, delivery)):
            log.error(
                *("entry %s of %s: %s Last owner: %s", delivery.entry, self.queue.name, reason, last_owner),
                extra={"event": "dead"},
            )
        prediction = Prediction()
        prediction.start(time.time())
        prediction.fail(time.time(), reason, "platform")
        snapshot = dialect(self._agreed.dialect, delivery.value).render(prediction)
        ttl = self._settings.response_ttl_ms
        known = self._agreed.idempotent_ids and request.id is not None
        record = self.queue.record(request.id or "") if known else ""
        self.queue.bury(
            *(self._link, delivery, self._name, request.response_queue, snapshot, reason, ttl, record),
            last_owner=last_owner,
            about=noted(prediction_id(request, delivery.name), "failed", "platform", response=request.response_queue),
        )
        failpoints.reach("bridge.buried")
        self._ended(request, delivery, received, outcome="failed", fault="platform", reason=reason)

    # -- the end

    def _drain(self) -> None:
        """Let tickets that are on their way be claimed, then give the rest back to whoever comes next."""
        if self._agreed is None:
            return
        until = time.monotonic() + min(self._settings.drain_timeout, self._agreed.lease)
        try:
            while owned := self.queue.owned(self._link, self._name):
                on_their_way = [line for line in owned if line.at in self._dispatched]
                for line in owned if time.monotonic() > until else [one for one in owned if one not in on_their_way]:
                    held = Held(line.at, self._name, line.attempt)
                    self.queue.release(self._link, held, self._agreed.lease)
                    failpoints.reach("bridge.released")
                if on_their_way:
                    time.sleep(0.02)
            self.queue.forget(self._link, self._name)
            self.queue.undescribe(self._link, self._name)
        except ServerError as error:
            log.warning("queue %s: stopped without giving back what was not claimed: %s", self.queue.name, error)
        finally:
            self._link.close()


def _runs(owner: str) -> bool:
    """Whether what this consumer has runs, as far as anybody can tell."""
    return BRIDGE.fullmatch(owner) is None and owner != RELEASED
