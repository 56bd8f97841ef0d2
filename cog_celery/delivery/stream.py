"""A queue in Redis: its stream, its group and the keys beside them; nothing else in this package touches them.

It must not know what a request means, nor decide when a step is due: each method is one round trip on the caller's own
Link.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from cog_celery.delivery import scripts
from cog_celery.delivery.link import Link
from cog_celery.delivery.requests import OUR_PREFIX
from cog_celery.errors import Forbidden, GroupMissing, ServerError, ServerLost, SettingsConflict

DEAD_LETTERS = 1000
"""How many dead letters of a queue are kept, about."""

BRIDGE = re.compile(r".*~[0-9a-f]{8}", re.DOTALL)
SLOT = re.compile(r".*~[0-9a-f]{8}\.\d+b?", re.DOTALL)
RELEASED = "released"
HIGH = ".high"
"""What the name of a queue's lane has behind that of the queue."""

log = logging.getLogger(__name__)

Published = Literal["shown", "lost", "canceled", "refused"]
"""`lost`: not the owner any more. `canceled`: shown, and the cancel key exists. `refused`: it may not be written."""


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """What a Celery task carries: which entry, at which attempt, of which bridge, for which slot. Never the request."""

    version: int
    stream: str
    entry: str
    attempt: int
    bridge: str
    slot: str

    @property
    def at(self) -> Entry:
        return Entry(self.stream, self.entry)


TICKET_VERSION = 1
"""The newest version that this release reads and writes. A worker announces it; see ARCHITECTURE.md, Releases."""


class Entry(msgspec.Struct, frozen=True):
    """Where a request is: an id, and the stream that has it, the queue's own or its lane. Both may have the same id."""

    stream: str
    id: str


class Delivery(msgspec.Struct, frozen=True):
    """An entry that its reader owns at this attempt; `value` is the request as it was sent, None without such a
    field. `lane`: whether it came through the queue's lane.
    """

    at: Entry
    attempt: int
    value: bytes | None
    lane: bool = False

    @property
    def entry(self) -> str:
        """The entry's id, for people and for what is told by its time."""
        return self.at.id

    @property
    def name(self) -> str:
        """A name that no other entry of its queue has."""
        return f"{self.at.id}{HIGH}" if self.lane else self.at.id


class Owned(msgspec.Struct, frozen=True):
    """A line of a pending list. `idle`: milliseconds since its owner was last heard of."""

    at: Entry
    owner: str
    idle: int
    attempt: int


class Held(NamedTuple):
    """What the fence knows an entry by."""

    at: Entry
    owner: str
    attempt: int


class QueueSettings(msgspec.Struct, frozen=True):
    """What all processes of a queue must agree on; kept with the queue by whoever came first."""

    dialect: Literal["cog-0.4", "cog-0.6"] = "cog-0.4"
    lease: float = 10.0
    max_attempts: int = 3
    idempotent_ids: bool = False
    priority: bool = False
    front: bool = False


def life(name: str) -> str:
    """A name for one life of a process: `<name>~<random>`."""
    return f"{name}~{secrets.token_hex(4)}"


def slot_life(consumer: str) -> str:
    """The life that a slot, or its credit, belongs to."""
    return consumer.rpartition(".")[0]


class Queue:
    """The keys of one queue, and every step about them. Raises ServerLost, GroupMissing, ServerError.

    All but agree() are one round trip; what looks at a whole pending list is one for each stream. `streams`: its lane,
    if it has one, and its own; which of them there are is known when its settings are.
    """

    def __init__(self, name: str, *, priority: bool = False) -> None:
        self.name = name
        self.high = f"{name}{HIGH}"
        self.streams: tuple[str, ...] = (self.high, name) if priority else (name,)
        self.credits = f"{OUR_PREFIX}{name}:credits"
        self.announce_prefix = f"{OUR_PREFIX}{name}:worker:"
        self.settings_key = f"{OUR_PREFIX}{name}:settings"
        self.settled_prefix = f"{OUR_PREFIX}{name}:settled:"
        self.record_prefix = f"{OUR_PREFIX}{name}:id:"
        self.ran_prefix = f"{OUR_PREFIX}{name}:ran:"
        self.released = f"{OUR_PREFIX}{name}:released"
        self.processes = f"{OUR_PREFIX}{name}:processes"
        self.recent = f"{OUR_PREFIX}{name}:recent"
        self.counts = f"{OUR_PREFIX}{name}:counts"
        self._after = {self.released: "0-0"}
        self.dead = f"{name}-dead"
        self.run_time = f"{name}-run-time"
        self.setup_time = f"{name}-setup-time"

    # -- the queue itself

    def check_server(self, link: Link) -> None:
        """Raise ServerError when the server cannot keep a queue's promises."""
        about = link.call("INFO", "cluster")
        if b"cluster_enabled:1" in about:
            raise ServerError(
                "The server is a node of a Redis Cluster, where a commit cannot be atomic: a response key may lie on "
                "another node than its stream. Use a standalone server or a primary with replicas."
            )

    def create_group(self, link: Link) -> bool:
        """Make its streams and the group on each, from the stream's beginning so that nothing sent earlier is skipped;
        True if one was not there.
        """
        return True in [self._create_group(link, stream) for stream in self.streams]

    def _create_group(self, link: Link, stream: str) -> bool:
        try:
            link.call("XGROUP", "CREATE", stream, self.name, "0", "MKSTREAM")
        except ServerError as error:
            if "BUSYGROUP" not in str(error):
                raise
            return False
        return True

    def group_exists(self, link: Link) -> bool:
        try:
            for stream in self.streams:
                link.call("XPENDING", stream, self.name)
        except GroupMissing:
            return False
        return True

    def left_in_lane(self, link: Link) -> int:
        """Requests in the lane that the queue had and has no more: nobody takes them."""
        if self._lane:
            return 0
        try:
            link.call("XPENDING", self.high, self.name)  # another thing of this name has no such group
            return int(link.call("XLEN", self.high))
        except ServerLost:
            raise
        except ServerError:
            return 0

    @property
    def _lane(self) -> str:
        return self.high if len(self.streams) > 1 else ""

    def agree(
        self,
        link: Link,
        dialect: str | None,
        lease: float | None,
        max_attempts: int | None,
        idempotent_ids: bool | None = None,
        priority: bool | None = None,
        front: bool = False,
    ) -> QueueSettings:
        """The queue's settings: those that it has, else these. Raises SettingsConflict when they were chosen and
        differ, when it is a front for one of the two alone, or when a lane is a queue as well. From then on `streams`
        is what they say.
        """
        wanted = {
            "dialect": dialect,
            "lease": lease,
            "max_attempts": max_attempts,
            "idempotent_ids": idempotent_ids,
            "priority": priority,
            "front": front or None,
        }
        self._share_no_lane(link, bool(priority))
        default = QueueSettings()
        for name, value in wanted.items():
            chosen = getattr(default, name) if value is None else value
            link.call("HSETNX", self.settings_key, name, msgspec.json.encode(chosen))
        flat = link.call("HGETALL", self.settings_key)
        stored = {bytes(k).decode(): msgspec.Raw(bytes(v)) for k, v in zip(flat[::2], flat[1::2], strict=True)}
        try:
            agreed = msgspec.json.decode(msgspec.json.encode(stored), type=QueueSettings)
        except msgspec.MsgspecError as error:
            raise SettingsConflict(f"The settings stored at {self.settings_key} cannot be read: {error}.") from None
        for name, value in wanted.items():
            if value is not None and value != getattr(agreed, name):
                raise SettingsConflict(
                    f"Queue {self.name} works with {name}={getattr(agreed, name)}, not {value} as given here. "
                    f"Start it without, or stop all its bridges and workers and delete the key {self.settings_key}."
                )
        if agreed.front and not front:
            raise SettingsConflict(
                f"Queue {self.name} has no slots: its requests go to the queues of the versions that they name. Give "
                f"its bridges the fleet file that says so, and its workers the queue of a version."
            )
        self.streams = (self.high, self.name) if agreed.priority else (self.name,)
        return agreed

    def _share_no_lane(self, link: Link, priority: bool) -> None:
        """A lane has two groups when it is a queue as well, and both would be given each request."""
        base = self.name.removesuffix(HIGH)
        try:
            if priority and link.call("EXISTS", Queue(self.high).settings_key):
                raise SettingsConflict(
                    f"Queue {self.name} has a lane, and its stream {self.high} is a queue of its own already: name "
                    f"that otherwise, or, if nobody serves it, delete the key {Queue(self.high).settings_key}."
                )
            if base != self.name and link.call("HGET", Queue(base).settings_key, "priority") == b"true":
                raise SettingsConflict(f"Queue {self.name} is the lane of queue {base}: name it otherwise.")
        except Forbidden:
            return  # who may not see the other one has a server with rules, which part them

    # -- bridges

    def take(
        self, link: Link, bridge: str, known: Entry | None = None, attempt: int = 0
    ) -> (
        tuple[Literal["ticket"], str, int, Delivery]
        | tuple[Literal["no entry"], tuple[str, ...]]
        | tuple[Literal["no credit", "gone"]]
    ):
        """A credit together with an entry: a new one, or one that the bridge already owns. With a credit comes the
        version of tickets that its worker reads; without an entry, what watch() needs.
        """
        more = () if known is None else (known.id, attempt)
        keys = (self.name, self.name if known is None else known.stream, self.credits)
        answer = link.script(scripts.TAKE, keys, bridge, self.announce_prefix, self._lane, *more)
        match bytes(answer[0]):
            case b"ticket":
                return "ticket", answer[1].decode(errors="surrogateescape"), int(answer[2]), self._delivery(answer[3:])
            case b"no entry":
                return "no entry", tuple(id.decode() for id in answer[1:])
            case b"gone":
                return ("gone",)
            case _:
                return ("no credit",)

    def watch(self, link: Link, last: Sequence[str], wait: float) -> None:
        """Return when an entry came after `last`, when one was given back, or after `wait` seconds. Consumes nothing.

        Only one thread may watch.
        """
        block = max(1, int(wait * 1000))
        after = dict(zip(reversed(self.streams), last, strict=True)) | self._after
        answer = link.call("XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", *after, *after.values(), wait=wait)
        for stream, entries in answer or ():
            if stream == self.released.encode():
                self._after[self.released] = entries[-1][0].decode()

    def length(self, link: Link) -> int:
        """How many requests wait or run."""
        return sum(int(link.call("XLEN", stream)) for stream in self.streams)

    def idle_slots(self, link: Link) -> int:
        """How many credits are down; some may be of workers that are gone."""
        return int(link.call("LLEN", self.credits))

    def owners(self, link: Link) -> Counter[str]:
        """Who has something in a pending list, and how much."""
        owners: Counter[str] = Counter()
        for stream in self.streams:
            for name, count in link.call("XPENDING", stream, self.name)[3] or ():
                owners[name.decode(errors="surrogateescape")] += int(count)
        return owners

    def wait_for_credit(self, link: Link, wait: float) -> None:
        """Return when a slot is idle, or after `wait` seconds. Leaves the list as it was."""
        link.call("BLMOVE", self.credits, self.credits, "LEFT", "LEFT", f"{max(wait, 0.01):.3f}", wait=wait)

    def lives(self, link: Link, life: str) -> bool:
        """Whether the worker of that life announces itself."""
        return bool(link.call("EXISTS", self.announce_prefix + life))

    def owned(self, link: Link, consumer: str, page: int = 1000) -> list[Owned]:
        """What a consumer has in each pending list, oldest first; a round trip for each page of it."""
        owned: list[Owned] = []
        for stream in self.streams:
            start = "-"
            while lines := link.call("XPENDING", stream, self.name, start, "+", page, consumer):
                owned += [_owned(stream, line) for line in lines]
                if len(lines) < page:
                    break
                start = f"({owned[-1].at.id}"
        return owned

    def overdue(self, link: Link, stream: str, lease: float, count: int = 100, after: str | None = None) -> list[Owned]:
        """Entries of a stream whose owner has not been heard of for a lease, in the stream's order."""
        start = "-" if after is None else "(" + after
        idle = int(lease * 1000)
        lines = link.call("XPENDING", stream, self.name, "IDLE", idle, start, "+", count)
        return [_owned(stream, line) for line in lines]

    def reclaim(self, link: Link, owned: Owned, bridge: str, lease: float, *, counts: bool) -> int:
        """Take an entry over from an owner that is gone; its attempt from now on, 0 when it is not so any more."""
        idle = int(lease * 1000)
        keys = (self.name, owned.at.stream)
        answer = link.script(scripts.RECLAIM, keys, owned.at.id, owned.owner, owned.attempt, idle, bridge, int(counts))
        return int(answer)

    def read(self, link: Link, at: Entry, attempt: int) -> Delivery | None:
        """The request of an entry, whoever owns it; None when it was deleted."""
        found = link.call("XRANGE", at.stream, at.id, at.id)
        return Delivery(at, attempt, _value(found[0][1]), at.stream != self.name) if found else None

    def read_next(self, link: Link, bridge: str, wait: float) -> list[Delivery]:
        """Wait for new entries and take them, at most one of each stream; none after `wait` seconds, or when the wait
        was ended from outside.
        """
        block = max(1, int(wait * 1000))
        command = ("XREADGROUP", "GROUP", self.name, bridge, "COUNT", 1, "BLOCK", block, "STREAMS")
        answer = link.call(*command, *self.streams, *(">" for _ in self.streams), wait=wait)
        return [
            self._delivery((stream, entry, 1, _value(fields)))
            for stream, entries in answer or ()
            for entry, fields in entries
        ]

    def move(self, link: Link, delivery: Delivery, owner: str, target: str, about: bytes) -> str | None:
        """Put a request into another queue's stream, and end its delivery here; its new entry's id. None: not the
        owner. `about`: as of a commit.
        """
        keys = (self.name, delivery.at.stream, target)
        answer = link.script(scripts.MOVE, keys, delivery.at.id, owner, delivery.attempt, about)
        return bytes(answer).decode() if answer else None

    # -- slots

    def announce(self, link: Link, life: str, about: bytes, lease: float, idle: Sequence[str] = ()) -> bool:
        """Say for one lease that this worker lives. False when nobody could know any more, and its credits were void:
        those of the `idle` slots are put down again.
        """
        keys = (self.name, self.announce_prefix + life, self.credits)
        return bool(link.script(scripts.ANNOUNCE, keys, about, int(lease * 1000), *idle))

    def denounce(self, link: Link, life: str) -> None:
        """Say that this worker takes nothing any more: from now on its credits are void."""
        link.call("DEL", self.announce_prefix + life)

    def put_credit(self, link: Link, slot: str) -> bool:
        """Say that this slot is idle; False when that had been said."""
        return bool(link.script(scripts.CREDIT, (self.name, self.credits), slot))

    def withdraw_credit(self, link: Link, slot: str) -> bool:
        """Take an idle slot's credit back; False when a ticket is on its way."""
        return bool(link.call("LREM", self.credits, 1, slot))

    def claim(self, link: Link, owner: str, ticket: Ticket) -> Delivery | None:
        """Become the owner of a ticket's entry; None when the ticket is void. May be repeated after a lost reply."""
        keys = (self.name, ticket.stream)
        answer = link.script(scripts.CLAIM, keys, ticket.entry, ticket.bridge, ticket.attempt, owner)
        return self._delivery(answer) if answer else None

    def next(self, link: Link, slot: str, wait: float, lease: float) -> Delivery | None:
        """Wait for a new entry and take it; None after `wait` seconds, or when the wait was ended from outside.

        Both streams may have one at once: then that of the lane is taken, and the other one given back.
        """
        first, *more = self.read_next(link, slot, wait) or (None,)
        for delivery in more:
            self.release(link, Held(delivery.at, slot, delivery.attempt), lease)
        return first

    def recover(self, link: Link, consumer: str, lease: float) -> Delivery | None:
        """What a consumer owns, after a reply was lost."""
        keys = (self.name, self.released)
        answer = link.script(scripts.RECOVER, keys, consumer, self._lane, int(lease * 1000) + 1)
        return self._delivery(answer) if answer else None

    def publish(
        self,
        link: Link,
        delivery: Delivery,
        owner: str,
        response: str,
        cancel: str | None,
        record: str,
        snapshot: bytes,
    ) -> Published:
        """Write a snapshot that is not the last one; `record` as record() gave it."""
        self.post_publish(link, delivery, owner, response, cancel, record, snapshot)
        return self.published(link)

    def post_publish(
        self,
        link: Link,
        delivery: Delivery,
        owner: str,
        response: str,
        cancel: str | None,
        record: str,
        snapshot: bytes,
    ) -> None:
        """As publish(), whose answer is to be taken by published(), before anything else is asked on this link."""
        keys = (self.name, delivery.at.stream, response) + (() if cancel is None else (cancel,))
        link.post_script(scripts.PUBLISH, keys, delivery.at.id, owner, delivery.attempt, snapshot, record)

    def published(self, link: Link) -> Published:
        """The answer to post_publish()."""
        try:
            return _PUBLISHED[link.reply()]
        except Forbidden:
            return "refused"

    def commit(
        self,
        link: Link,
        delivery: Delivery,
        owner: str,
        response: str | None,
        snapshot: bytes,
        *,
        ttl: int = 0,
        before: bytes = b"",
        duration: float | None = None,
        take: bool = False,
        record: str = "",
        record_ttl: float = 1.0,
        about: bytes = b"",
    ) -> tuple[Literal["done", "settled", "stale", "refused"], Delivery | None]:
        """Write the terminal snapshot, end the delivery and, with `take`, become the owner of the next entry.

        `before` is a snapshot that is to be seen just before the terminal one. `settled`: this was done before, by the
        same owner at the same attempt, and the reply was lost. `stale`: it is somebody else's by now. `refused`: the
        response may not be written. With these two, nothing was. `about`: what is kept of it for those who ask later.
        """
        listener = () if response is None else (response,)
        keys = (self.name, delivery.at.stream, self.settled_prefix + owner, *listener)
        try:
            answer = link.script(
                *(scripts.COMMIT, keys, delivery.at.id, owner, delivery.attempt, snapshot, ttl, before),
                "" if duration is None else f"{duration:.6f}",
                *(int(take), record, round(record_ttl * 1000), about, self._lane),
            )
        except Forbidden:
            return "refused", None
        return answer[0].decode(), self._delivery(answer[1:]) if len(answer) > 1 else None

    def bury(
        self,
        link: Link,
        delivery: Delivery,
        owner: str,
        response: str | None,
        snapshot: bytes,
        reason: str,
        ttl: int = 0,
        record: str = "",
        last_owner: str = "",
        ran: bool = False,
        most: int = 0,
        about: bytes = b"",
    ) -> bool | str:
        """End a delivery for good: a snapshot, if anybody listens, and a copy among the dead letters.

        `last_owner`: who had it before `owner`, if that matters more. `ran`: whether this attempt was a run, as those
        before it were. `most`: bytes of a field that the copy keeps, 0 for all. False: not the owner. A text: it was
        ended, but this is what could not be written, and why. `about`: as of a commit.
        """
        arguments = (delivery.at.id, owner, delivery.attempt, snapshot, ttl, reason.encode(errors="replace"))
        letter = (DEAD_LETTERS, record, delivery.attempt - (not ran), last_owner or owner, most, about)
        listener = () if response is None else (response,)
        without = [(self.dead, listener, "")]
        if listener:
            without += [(self.dead, (), f"the response {response!r}")]
        without += [(self.name, listener, f"the dead letter in {self.dead}")]
        if listener:
            without += [(self.name, (), f"the response {response!r} and the dead letter in {self.dead}")]
        for dead, response_key, missing in without:
            try:
                answer = link.script(
                    scripts.BURY, (self.name, delivery.at.stream, dead, *response_key), *arguments, *letter
                )
            except Forbidden as error:
                forbidden = error
                continue
            fault = f"{missing}: {forbidden}" if missing else ""
            if isinstance(answer, bytes):
                fault = f"{fault} {answer.decode(errors='replace')}".strip()
            return fault or bool(answer)
        raise forbidden

    def record(self, id: str | int) -> str:
        """The key of what is known of the requests with this id, whatever is in it."""
        return self.record_prefix + hashlib.sha256(str(id).encode(errors="surrogatepass")).hexdigest()[:32]

    def enroll(
        self, link: Link, delivery: Delivery, owner: str, record: str, response: str, ttl: int
    ) -> Literal["first", "follows", "stale", "refused", "crowded"]:
        """Whether this entry is to be run: `follows` was ended here, since another one has its id.

        `refused`: the response may not be written. `crowded`: too many follow already. With these two, it goes on.
        """
        keys = (self.name, delivery.at.stream, record, response)
        try:
            answer = link.script(scripts.ENROLL, keys, delivery.at.id, owner, delivery.attempt, ttl)
        except Forbidden:
            return "refused"
        return answer.decode()  # type: ignore[no-any-return]

    def ran(self, link: Link, at: Entry) -> bool:
        """Whether this entry was run and given back."""
        return bool(link.call("EXISTS", self._ran_key(at)))

    def _ran_key(self, at: Entry) -> str:
        return f"{self.ran_prefix}{at.stream}/{at.id}"

    def setup_took(self, link: Link, seconds: float) -> None:
        """Add one setup to the statistics."""
        link.call("XADD", self.setup_time, "MAXLEN", 100, "*", "duration", f"{seconds:.6f}")

    def setup_failed(self, link: Link) -> None:
        """Count a worker that could not be set up."""
        link.call("HINCRBY", self.counts, "setup_failed", 1)

    # -- bridges and slots

    def describe(self, link: Link, life: str, about: bytes) -> None:
        """Say what this process is and does, for those who look. Raises ServerLost, GroupMissing; what the server
        refuses beyond that is not worth a process.
        """
        try:
            link.script(scripts.DESCRIBE, (self.name, self.processes), life, about)
        except (ServerLost, GroupMissing):
            raise
        except ServerError as error:
            log.debug("this process cannot be seen in `cog-celery status`: %s", error)

    def undescribe(self, link: Link, life: str) -> None:
        """This process ends as it should. Raises as describe() does."""
        try:
            link.call("HDEL", self.processes, life)
        except (ServerLost, GroupMissing):
            raise
        except ServerError as error:
            log.debug("this process stays in `cog-celery status` for an hour: %s", error)

    def extend(self, link: Link, held: Sequence[Held]) -> list[Literal["held", "lost", "deleted"]]:
        """Begin the lease of each anew; what became of it. What was in a stream or group that is gone is lost."""
        if not held:
            return []
        parts = [part for one in held for part in (one.at.stream, one.at.id, one.owner, one.attempt)]
        return [_VERDICTS[verdict] for verdict in link.script(scripts.EXTEND, (self.name,), *parts)]

    def release(self, link: Link, held: Held, lease: float, *, ran: bool = False, counts: bool = False) -> bool:
        """Give an entry back, to be taken at once, and the attempt does not count; if it `counts`, a bridge makes it
        the next one at its next sweep. False: not the owner.
        """
        keys = (self.name, held.at.stream, self.released) + ((self._ran_key(held.at),) if ran else ())
        whose = held.owner if counts else RELEASED
        arguments = (held.at.id, held.owner, held.attempt, int(lease * 1000) + 1, whose)
        return bool(link.script(scripts.RELEASE, keys, *arguments))

    def forget(self, link: Link, consumer: str) -> None:
        """Delete a consumer, where nothing is pending for it."""
        link.script(scripts.FORGET, (self.name, *self.streams), consumer)

    def idle_consumers(self, link: Link, idle: float) -> list[str]:
        """Consumers of ours that have nothing pending and were not heard of for `idle` seconds."""
        seen: dict[str, bool] = {}
        for stream in self.streams:
            for flat in link.call("XINFO", "CONSUMERS", stream, self.name):
                about = dict(zip(flat[::2], flat[1::2], strict=True))
                name = bytes(about[b"name"]).decode(errors="replace")
                if BRIDGE.fullmatch(name) or SLOT.fullmatch(name) or name == RELEASED:
                    unheard = about[b"pending"] == 0 and about[b"idle"] > idle * 1000
                    seen[name] = seen.get(name, True) and unheard
        return [name for name, unheard in seen.items() if unheard]

    def _delivery(self, answer: Sequence[bytes | int | None]) -> Delivery:
        stream, entry, attempt, value = answer
        assert isinstance(stream, bytes) and isinstance(entry, bytes)
        assert isinstance(attempt, int) and not isinstance(value, int)
        at = Entry(stream.decode(errors="surrogateescape"), entry.decode())
        return Delivery(at, attempt, value, at.stream != self.name)


_PUBLISHED: dict[int, Published] = {0: "lost", 1: "shown", 2: "canceled", 3: "refused"}
_VERDICTS: dict[int, Literal["held", "lost", "deleted"]] = {0: "lost", 1: "held", 2: "deleted"}


def _owned(stream: str, line: list[bytes | int]) -> Owned:
    entry, owner, idle, attempt = line
    assert isinstance(entry, bytes) and isinstance(owner, bytes)
    return Owned(Entry(stream, entry.decode()), owner.decode(errors="surrogateescape"), int(idle), int(attempt))


def _value(fields: Sequence[bytes]) -> bytes | None:
    return next((bytes(v) for k, v in zip(fields[::2], fields[1::2], strict=True) if k == b"value"), None)
