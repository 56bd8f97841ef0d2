"""A slot: one runner, the GPUs it is pinned to, and its turn; it owns an entry from the claim to the commit.

It must not know about Celery, nor about other slots.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from cog_celery import failpoints
from cog_celery.delivery.link import Link, insist
from cog_celery.delivery.presence import SlotState
from cog_celery.delivery.stream import Delivery, Ticket
from cog_celery.errors import GroupMissing, RunnerDied, RunnerProtocolError, ServerError, ServerLost
from cog_celery.gpus.assigning import Share
from cog_celery.slots.holding import Behind, Current, Desk
from cog_celery.slots.respawning import RespawningRunner
from cog_celery.slots.serving import Serving
from cog_celery.slots.workshop import Workshop

T = TypeVar("T")

LONG = 0.2
"""Seconds after which a running prediction's cancel key is looked at by the keeper; the start snapshot looked already.
"""
HANDOVER = 0.1
"""Seconds for which a ticket waits for its slot. One that has to wait longer is a second one, for a slot that works: it
is given back, and must not keep the thread from another slot's ticket."""
SECOND = "b"
"""What the second of a slot's consumers has after its name."""
LONGEST_WAIT = 1.0
"""Seconds for which a slot waits for an entry within its turn."""

log = logging.getLogger(__name__)


class Slot:
    """turn() is called from a thread of the pool; `busy` is held through it, and through begin()."""

    def __init__(
        self, index: int, life: str, shop: Workshop, runner: RespawningRunner, seat: int, share: Share
    ) -> None:
        self.index = index
        self.name = f"{life}.{index}"
        """What its credits and tickets say."""
        self.gpu, self.devices = share.label, share.visible
        self.idle_since: float | None = None
        """When its credit was put down (monotonic); None while it works, or is not ready."""
        self.current: Current | None = None
        self.waiting = False
        """Whether it waits for an entry in a blocking read."""
        self.alone = False
        """Whether its worker has no other slot."""
        self.turns = 0
        """How many tickets came."""
        self._shop = shop
        self._desks = [
            Desk(Link(shop.settings.redis_url, f"cog-celery-slot:{owner}", shop.outage), owner)
            for owner in (self.name, f"{self.name}{SECOND}")
        ]
        self._desk = self._desks[0]
        self._behind = Behind(f"slot {index}", self._nothing_behind)
        self._busy = threading.Lock()
        self._runner = runner
        self._seat = seat
        self._reviving: threading.Thread | None = None
        self._serving = Serving(index, share.label, shop, runner, seat, self._behind)
        self._lacking_since: float | None = None
        self._rested = False
        """Whether it was idle once."""

    # -- its runner

    def interrupt(self) -> None:
        """From the drain: end a setup(), or what is about to begin."""
        self._runner.interrupt()

    def abandon(self) -> None:
        """Stop what it does, in this order: the runner's death is then not the prediction's."""
        for current in self.held:
            if current.execution is not None:
                current.execution.stop("shutdown")
        self._runner.kill()

    def forsake(self) -> None:
        """Its GPU has failed: leave what the predictor is at to another attempt; what it has done is still answered."""
        for current in self.held:
            if current.execution is not None and not current.execution.uploading:
                current.execution.stop("its GPU failed")

    def close(self) -> None:
        """Let go of everything but the runner. A slot that still works is left to the end of the process."""
        if not self._busy.acquire(timeout=1.0) or self._behind.current is not None:
            return
        for desk in self._desks:
            desk.link.close()
        self._serving.close()

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
            delivery = self._insist(lambda: self._shop.queue.claim(*self._desk, ticket))
            failpoints.reach("slot.claimed")
            if delivery is None:
                # Perhaps one of many, after an outage: waiting for entries behind each would hold up those that count.
                log.info("ticket for %s is void", ticket.entry)
                ends = 0.0
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
        if self._runner.ended(self._seat) and not self._serving.respawn():
            return
        if self._runner.unfit is not None:
            return  # until the model is well, or the GPU
        self.idle_since, self._rested = time.monotonic(), True
        if self.alone and self._shop.tickets_wait():
            return  # one for this slot: with another credit it would have one too many for ever
        try:
            self._insist(lambda: self._shop.queue.put_credit(self.link, self.name))
            failpoints.reach("slot.credited")
        except ServerError as error:
            log.error("slot %d could not put its credit down, the heartbeat will: %s", self.index, error)

    @property
    def busy(self) -> bool:
        """Whether it is in a turn."""
        return self._busy.locked()

    @property
    def held(self) -> list[Current]:
        """What it works on, and what it ends behind that."""
        return [current for current in (self.current, self._behind.current) if current is not None]

    @property
    def link(self) -> Link:
        """The connection that its own thread uses."""
        return self._desk.link

    @property
    def owners(self) -> list[str]:
        """The names of its consumers."""
        return [desk.owner for desk in self._desks]

    def _leave_desk(self) -> None:
        """Use the other desk, if what is behind still needs this one."""
        behind = self._behind.current
        if behind is not None and behind.desk is self._desk:
            [self._desk] = [desk for desk in self._desks if desk is not behind.desk]

    def _nothing_behind(self) -> None:
        """The running prediction may wait for that."""
        if (current := self.current) and current.execution is not None:
            current.execution.nudge()

    def renew_credit(self, link: Link, patience: float) -> bool:
        """From the heartbeat: put an idle slot's credit down again, if it was lost and no ticket came for `patience`
        seconds; True in that case: a bridge died, or tickets do not reach us.
        """
        idle_since = self.idle_since
        if idle_since is None or self.busy:
            self._lacking_since = None
            return False
        now = time.monotonic()
        if link.call("LPOS", self._shop.queue.credits, self.name) is not None:
            self._lacking_since = None
        elif self._lacking_since is None or self._lacking_since < idle_since:
            self._lacking_since = now  # a ticket may be on its way
        elif now - self._lacking_since > patience and idle_since == self.idle_since:
            log.warning("the credit of slot %d was lost, it is put down again", self.index)
            self._shop.queue.put_credit(link, self.name)
            self._lacking_since = None
            return True
        return False

    def mend(self) -> None:
        """From the heartbeat: an idle slot whose runner died gets another, before a request has to wait for it; one out
        of service is tried again when that is due.
        """
        if self._runner.out is not None:
            if self.first and self._runner.due:
                self._revive(self._serving.try_again)
            elif self.idle_since is not None:
                self._revive(self.heed_health)  # its credit could not be taken back when it went out
            return
        if self.idle_since is None:
            if self._rested and not self.busy and self._runner.unfit is None:
                self._revive(self.heed_health)  # it came back while its last turn let go of it
            return
        if not self._busy.acquire(blocking=False):
            return
        if self._runner.lives(self._seat):
            self._busy.release()
        else:
            threading.Thread(target=self._mend, name=f"mend slot {self.index}", daemon=True).start()

    def _mend(self) -> None:
        """With `_busy` held, which it lets go of."""
        try:
            # Without the credit, a ticket is on its way: then its turn sees to the runner.
            if self.idle_since is not None and self._shop.queue.withdraw_credit(self.link, self.name):
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
        if not self._runner.healthcheck or self._runner.out is not None:
            return
        if self._runner.shared:
            if self._runner.lives(self._seat):
                self._ask_health()
            elif self.idle_since is None and not self.busy:
                self._revive(self._serving.respawn)
            return
        if not self._busy.acquire(blocking=False):
            self._runner.health_due = True  # in its turn, between two predictions
            return
        try:
            if not self._runner.lives(self._seat):
                if self.idle_since is None:  # else it is mended for the next request's sake
                    self._revive(self._serving.respawn)
                return
            idle = self.idle_since is not None
            if idle and not self._shop.queue.withdraw_credit(self.link, self.name):
                return  # a ticket is on its way, and is not to wait
            self._ask_health()
            if idle:
                self.idle_since = None
                self._rest()
        except ServerError as error:
            log.warning("slot %d: the health of its model is not known: %s", self.index, error)
        finally:
            self._busy.release()

    def _revive(self, how: Callable[[], object]) -> None:
        """Set up a model that nobody waits for, beside whatever else is to be done."""
        if self._reviving is None or not self._reviving.is_alive():
            self._reviving = threading.Thread(target=how, name=f"mend slot {self.index}", daemon=True)
            self._reviving.start()

    def _ask_health(self) -> None:
        try:
            self._runner.ask_health()
        except (RunnerDied, RunnerProtocolError) as error:
            log.warning("slot %d: the runner died when its model was asked for its health: %s", self.index, error)

    def heed_health(self) -> None:
        """Take the credit back when the model or its GPU is not well, put it down when it is again."""
        if not self._busy.acquire(blocking=False):
            return  # its turn's end does
        try:
            if self._runner.unfit is None and self.idle_since is None:
                self._rest()
            elif self._runner.unfit is not None and self.idle_since is not None:
                self._shop.queue.withdraw_credit(self.link, self.name)
                self.idle_since = None
            if self._runner.out is not None and not self._runner.ended(self._seat):
                self._revive(self._bury)  # a process that is stuck in a driver takes its time
        except ServerError as error:
            log.warning("slot %d could not heed the health of its model: %s", self.index, error)
        finally:
            self._busy.release()

    def _bury(self) -> None:
        with self._busy:
            self._runner.lay_down()
        self.heed_health()  # what was asked of it meanwhile

    def serves(self, runner: RespawningRunner) -> bool:
        """Whether this is its runner."""
        return self._runner is runner

    @property
    def sick(self) -> str | None:
        """Why its model is not well, None when it is."""
        return self._runner.sick

    @property
    def reason(self) -> str | None:
        """Why it takes nothing, None when it does."""
        return self._runner.unfit

    @property
    def takes_work(self) -> bool:
        """Whether neither its model nor its GPU keeps it from it."""
        return self._runner.unfit is None

    @property
    def state(self) -> SlotState:
        """What it is about, as others see it; in its turn and without an entry, it is idle."""
        if self.held:
            return "busy"
        if self._runner.out is not None:
            return "out"
        if self._runner.sick is not None:
            return "unwell"
        return "restarting" if self._runner.ended(self._seat) else "idle"

    @property
    def first(self) -> bool:
        """Whether it is the first of its runner's slots."""
        return self._seat == 0

    def cancel(self, id: str) -> bool:
        """Cancel the prediction of this id, if it runs here."""
        for current in self.held:
            if current.execution is not None and id in (current.id, current.delivery.name):
                current.execution.stop("canceled")
                return True
        return False

    def _serve(self, delivery: Delivery | None, ends: float) -> None:
        draining = self._shop.draining
        while not draining.is_set():
            if self._runner.health_due and not self._runner.shared and self._runner.lives(self._seat):
                self._ask_health()
            if self._runner.unfit is not None:
                break
            if delivery is None:
                left = ends - time.monotonic()
                if left <= 0 or self._shop.tickets_wait():
                    return
                delivery = self._next(left)
                if delivery is None:
                    return  # also before the turn is over: what was given back comes with a ticket alone
                continue
            self.current = Current(delivery, self._desk)
            if not self._runner.lives(self._seat) and not self._serving.respawn():
                break
            delivery = self._serving.answer(self.current, ends, self._let_go)
            self.current = None
            self._leave_desk()
        if delivery is not None:
            self._serving.release(self.current or Current(delivery, self._desk), self._runner.unfit or "shutdown")

    def _next(self, left: float) -> Delivery | None:
        """The next entry that comes while the turn lasts."""
        self.waiting = True
        try:
            if self._shop.draining.is_set():
                return None
            return self._shop.queue.next(*self._desk, min(left, LONGEST_WAIT), self._shop.agreed.lease)
        except ServerLost:
            return self._insist(lambda: self._shop.queue.recover(*self._desk, self._shop.agreed.lease))
        finally:
            self.waiting = False

    def _let_go(self) -> None:
        self.current = None

    def _insist(self, step: Callable[[], T]) -> T:
        return insist(step, self._shop.giving_up)
