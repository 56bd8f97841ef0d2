"""What queues and their processes are about, as far as Redis knows: it works when no worker does.

It must not know how it is shown, and changes nothing. Of a list's requests no byte comes over the wire, however many
wait and however large they are; whatever is read may be hostile.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec
import redis

from cog_celery.delivery import scripts
from cog_celery.delivery.presence import About, Noted, Running, SlotSeen
from cog_celery.delivery.requests import OLDEST_ENTRY, OUR_PREFIX
from cog_celery.delivery.stream import BRIDGE, RELEASED, SLOT, Queue, QueueSettings, slot_life
from cog_celery.settings import parse_queue

WINDOW: Final = 300.0
"""Seconds of which rates and times are told."""
MOST_NOTES: Final = 1000
"""Steps of the last minutes that are looked at for one queue, and for a few of them together."""
NOTES_IN_ALL: Final = 4000
MOST_PENDING: Final = 2000
"""Lines of a pending list that are read."""
SCANNED: Final = 10_000
"""Keys that one SCAN looks at."""
MOST_SCANS: Final = 100
_RAW: Final = ("XPENDING", "XRANGE", "XREVRANGE", "HGETALL", "HMGET", "XLEN", "LLEN", "TIME", "SCAN", "STRLEN")
_ENTRY: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_OWNER: Final = re.compile(r"(.*~[0-9a-f]{8})\.(\d{1,4})b?", re.DOTALL)

T = TypeVar("T")

# -- what is told


class Held(msgspec.Struct, frozen=True):
    """A line of the pending list: `idle` seconds since its owner was heard of."""

    entry: str
    owner: str
    idle: float
    attempt: int


class ProcessSeen(msgspec.Struct, frozen=True):
    """A bridge or worker. `age`: seconds since its last heartbeat, None when it never sent one here.

    `state`: what it said last; or `late`, when its heartbeat is overdue; `gone`, when that was a lease ago; `unknown`,
    when all that is known of it are entries that it owns.
    """

    life: str
    role: Literal["bridge", "worker", "other"]
    state: str
    age: float | None
    version: str = ""
    model: str = ""
    model_version: str = ""
    slots: tuple[SlotSeen, ...] = ()

    @property
    def alive(self) -> bool:
        return self.state not in ("gone", "unknown")


class Spread(msgspec.Struct, frozen=True):
    """Of some seconds: half are at most `p50`, and so on."""

    p50: float
    p95: float
    max: float


class Rates(msgspec.Struct, frozen=True):
    """The last minutes. `seconds`: how many these are, fewer where much has happened; `per_second`: predictions that
    ended; `outcomes`: those by status, failed ones as `failed:model` and so on.
    """

    seconds: float
    ended: int
    per_second: float
    outcomes: dict[str, int]
    reclaimed: int
    released: int
    buried: int
    in_queue: Spread | None
    run: Spread | None
    predict: Spread | None


class QueueSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A queue; None for what could not be read, and `problems` say why. Ages and times in seconds.

    `waiting`: in no slot yet, though a bridge may have them; `running`: with a slot, or a consumer that is not ours.
    `in_lane`: how many of `length` are in its lane, if it has one. `total`: what its processes have counted since it
    was made.
    """

    name: str
    exists: bool
    settings: QueueSettings | None = None
    length: int | None = None
    in_lane: int | None = None
    waiting: int | None = None
    running: int | None = None
    dead: int | None = None
    oldest: float | None = None
    total: dict[str, int] = {}
    processes: tuple[ProcessSeen, ...] = ()
    rates: Rates | None = None
    problems: tuple[str, ...] = ()

    @property
    def workers(self) -> list[ProcessSeen]:
        return [one for one in self.processes if one.role != "bridge"]

    @property
    def bridges(self) -> list[ProcessSeen]:
        return [one for one in self.processes if one.role == "bridge"]

    def slots(self) -> Counter[str]:
        """How many slots of workers that live are in which state."""
        return Counter(slot.state for worker in self.workers if worker.alive for slot in worker.slots)

    def troubles(self) -> list[str]:
        """What somebody should look after, a sentence each."""
        if not self.exists:
            return ["it does not exist: nobody has sent to it, and no bridge or worker serves it"]
        troubles = list(self.problems)
        if not any(bridge.alive for bridge in self.bridges) and (self.waiting or self.workers):
            troubles.append("no bridge lives: nothing is given to idle slots")
        if self.settings is not None and self.settings.front:
            return troubles + self._late()
        takers = sum(self.slots()[state] for state in ("idle", "busy"))
        if self.waiting and not takers and not self.running:
            wait = "1 request waits" if self.waiting == 1 else f"{self.waiting} requests wait"
            troubles.append(f"{wait}, and no worker is ready to take them")
        return troubles + self._late()

    def _late(self) -> list[str]:
        troubles = []
        for process in self.processes:
            if process.state == "late":
                troubles.append(f"{process.life} is late: its last heartbeat is {process.age:.1f} s old")
            elif process.state == "gone" and any(slot.running for slot in process.slots):
                troubles.append(f"{process.life} is gone, and what it ran is reclaimed once its lease is over")
            elif process.alive:
                troubles += _out(process)
        return troubles


def _out(process: ProcessSeen) -> list[str]:
    """Slots that take nothing until a GPU is back, or a model can be set up: a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for index, slot in enumerate(process.slots):
        if slot.state == "out":
            by_reason.setdefault(short(slot.reason or "it does not say why", 200), []).append(str(index))
    return [
        f"{process.life}: {'slot' if len(slots) == 1 else 'slots'} {', '.join(slots)} out: {reason}"
        for reason, slots in by_reason.items()
    ]


# -- queues


class Look:
    """Looks at queues, with one client. Raises redis.RedisError when the server is out of reach."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        # redis-py makes dicts of fields, where equal names are lost, and trips over what other servers leave out.
        for command in _RAW:
            client.set_response_callback(command, lambda response, **options: response)

    def names(self) -> tuple[list[str], bool]:
        """The queues that this server has, by their settings; whether all keys were looked at."""
        found: set[str] = set()
        cursor: Any = b"0"
        for _ in range(MOST_SCANS):
            cursor, keys = self._client.execute_command(
                *("SCAN", cursor, "MATCH", f"{OUR_PREFIX}*:settings", "COUNT", SCANNED)
            )
            for key in keys:
                try:
                    found.add(parse_queue(key.decode().removeprefix(OUR_PREFIX).removesuffix(":settings")))
                except ValueError:
                    continue  # not ours
            if int(cursor) == 0:
                return sorted(found), True
        return sorted(found), False

    def queues(self, names: Sequence[str], *, notes: bool = True) -> list[QueueSeen]:
        """All of them, in two round trips; `notes`: with rates and times of the last minutes."""
        pipe = self._client.pipeline(transaction=False)
        pipe.execute_command("TIME")
        pipe.execute_command("SCRIPT LOAD", scripts.OLDEST.source)
        # The settings come before the rest: what they are is never younger than what is judged by them.
        for name in names:
            pipe.execute_command("HGETALL", Queue(name).settings_key)
        when, _, *stored = pipe.execute(raise_on_error=False)
        now = seconds_of(when)
        most = max(50, min(MOST_NOTES, NOTES_IN_ALL // max(1, len(names)))) if notes else 0
        settings = [_settings(flat) for flat in stored]
        queues = [
            Queue(name, priority=bool(known and known.priority)) for name, known in zip(names, settings, strict=True)
        ]
        for queue in queues:
            _ask(pipe, queue, now, most)
        replies = iter(pipe.execute(raise_on_error=False))
        return [
            _queue(queue, now, known, flat, replies, most)
            for queue, known, flat in zip(queues, settings, stored, strict=True)
        ]


def _ask(pipe: Any, queue: Queue, now: float, most: int) -> None:
    for stream in queue.streams:
        pipe.execute_command("XLEN", stream)
        pipe.execute_command("XPENDING", stream, queue.name)
        pipe.execute_command("XPENDING", stream, queue.name, "-", "+", MOST_PENDING)
        pipe.execute_command("EVALSHA", scripts.OLDEST.sha, 2, queue.name, stream)
    pipe.execute_command("XLEN", queue.dead)
    pipe.execute_command("HGETALL", queue.counts)
    pipe.execute_command("HGETALL", queue.processes)
    if most:
        since = max(0, int((now - WINDOW) * 1000))
        pipe.execute_command("XREVRANGE", queue.recent, "+", since, "COUNT", most)


def _queue(
    queue: Queue, now: float, settings: QueueSettings | None, stored: Any, replies: Iterator[Any], most: int
) -> QueueSeen:
    problems: list[str] = []

    def read(what: str, kind: type[T], reply: Any) -> T | None:
        if isinstance(reply, redis.RedisError) or not isinstance(reply, kind):
            if "NOGROUP" not in str(reply) and reply is not None:
                problems.append(f"{what} cannot be read: {short(str(reply), 200)}")
            return None
        return reply

    read("the settings", list, stored)
    lengths: dict[str, int] = {}
    owners: Counter[str] = Counter()
    held: list[Held] = []
    oldest: list[str] = []
    grouped = True
    for stream in queue.streams:
        length = read("the stream", int, next(replies))
        if length is not None:
            lengths[stream] = length
        summary = read("the consumer group", list, next(replies))
        grouped = grouped and summary is not None
        for owner, number in (summary and summary[3]) or ():
            owners[text(owner)] += int(number)
        held += map(read_held, read("the pending list", list, next(replies)) or ())
        first = read("the oldest request", bytes, next(replies))
        oldest += [] if first is None else [text(first)]
    dead = read("the dead letters", int, next(replies))
    counts = read("the counts", list, next(replies))
    described = read("the processes", list, next(replies))
    notes = read("the last minutes", list, next(replies)) if most else None
    released = owners.get(RELEASED, 0)
    dispatched = sum(count for owner, count in owners.items() if BRIDGE.fullmatch(owner))
    in_group = sum(owners.values())
    waits = [line.entry for line in held if line.owner == RELEASED or BRIDGE.fullmatch(line.owner)] + oldest
    all = sum(lengths.values()) if len(lengths) == len(queue.streams) else None
    lease = (settings or QueueSettings()).lease
    return QueueSeen(
        name=queue.name,
        exists=bool(settings or all or grouped),
        settings=settings,
        length=all,
        in_lane=lengths.get(queue.high),
        waiting=None if all is None else max(0, all - in_group) + released + dispatched,
        running=in_group - dispatched - released if grouped else None,
        dead=dead,
        oldest=max((age for entry in waits if (age := age_of(entry, now)) is not None), default=None),
        total={text(what): int(count) for what, count in pairs(counts or ()) if count.isdigit() and len(count) < 20},
        processes=_processes(described or [], held, lease, now),
        rates=_rates(notes, now, most) if notes is not None else None,
        problems=tuple(problems),
    )


def _settings(flat: Any) -> QueueSettings | None:
    if not isinstance(flat, list) or not flat:
        return None
    stored = {text(name): msgspec.Raw(value) for name, value in pairs(flat)}
    try:
        return msgspec.json.decode(msgspec.json.encode(stored), type=QueueSettings)
    except msgspec.MsgspecError:
        return None


def _processes(described: list[bytes], held: Sequence[Held], lease: float, now: float) -> tuple[ProcessSeen, ...]:
    """Those that speak for themselves, with what the pending list knows better; and those that only have entries."""
    by_life: dict[str, list[Held]] = {}
    for line in held:
        if line.owner != RELEASED:
            by_life.setdefault(slot_life(line.owner) if SLOT.fullmatch(line.owner) else line.owner, []).append(line)
    seen = []
    for key, value in pairs(described):
        at, _, told = value.partition(b" ")
        try:
            about = msgspec.json.decode(told, type=About)
            age = max(0.0, now - int(at) / 1000)
        except (ValueError, OverflowError, RecursionError):
            continue  # somebody else's
        name = text(key)
        state = "gone" if age > lease else "late" if age > lease * 2 / 3 else about.state
        slots = _slots(about.slots, by_life.pop(name, []), age)
        seen.append(ProcessSeen(name, about.role, state, age, about.version, about.model, about.model_version, slots))
    for life, lines in by_life.items():
        ours = SLOT.fullmatch(lines[0].owner)
        role: Literal["bridge", "worker", "other"] = (
            "worker" if ours else "bridge" if BRIDGE.fullmatch(life) else "other"
        )
        slots = tuple(_slot(SlotSeen(), [line], 0.0) for line in lines) if role != "bridge" else ()
        seen.append(ProcessSeen(life, role, "unknown", None, slots=slots))
    order = {"bridge": 0, "worker": 1, "other": 2}
    return tuple(sorted(seen, key=lambda one: (order[one.role], not one.alive, one.life)))


def _slots(told: Sequence[SlotSeen], lines: Sequence[Held], age: float) -> tuple[SlotSeen, ...]:
    """The slots as they are now: the heartbeat says what its entries are called, the pending list which there are."""
    by_index: dict[int, list[Held]] = {}
    for line in lines:
        match = _OWNER.fullmatch(line.owner)
        if match:
            by_index.setdefault(int(match[2]), []).append(line)
    return tuple(_slot(slot, by_index.get(index, []), age) for index, slot in enumerate(told))


def _slot(told: SlotSeen, lines: Sequence[Held], age: float) -> SlotSeen:
    known = {one.entry: one for one in told.running}
    running = []
    for line in lines:
        one = known.get(line.entry)
        # What its worker has not told of is younger than its last heartbeat, and was not extended since.
        seconds = one.seconds + age if one else line.idle
        id, uploading = (one.id, one.uploading) if one else (line.entry, False)
        running.append(Running(id, line.entry, line.attempt, seconds, uploading))
    state = "busy" if running else "idle" if told.state == "busy" else told.state
    return msgspec.structs.replace(told, state=state, running=tuple(running))


def _rates(notes: list[Any], now: float, most: int) -> Rates:
    steps: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    times: dict[str, list[float]] = {"waited": [], "ran": [], "predicted": []}
    for _, fields in notes:
        what, _, _, _, about = read_note(fields)
        steps[what] += 1
        if about is None or what not in ("ended", "buried"):
            continue
        outcomes[f"failed:{about.fault}" if about.status == "failed" else about.status] += 1
        for name, values in times.items():
            if (value := getattr(about, name)) is not None:
                values.append(value)
    seconds = WINDOW
    if len(notes) >= most:
        seconds = min(WINDOW, max(0.001, now - milliseconds(notes[-1][0]) / 1000))
    ended = steps["ended"] + steps["buried"]
    return Rates(
        *(seconds, ended, ended / seconds, dict(sorted(outcomes.items()))),
        *(steps["reclaimed"], steps["released"], steps["buried"]),
        *(_spread(times[name]) for name in ("waited", "ran", "predicted")),
    )


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    values.sort()
    return Spread(statistics.median_low(values), values[min(len(values) - 1, int(len(values) * 0.95))], values[-1])


# -- replies


def read_note(fields: Sequence[bytes]) -> tuple[str, str, str, str, Noted | None]:
    """What, entry, owner, attempt, and what is known of the prediction."""
    named = {bytes(name): value for name, value in pairs(fields)}
    what, entry, owner, attempt = (text(named.get(name, b"")) for name in (b"what", b"entry", b"owner", b"attempt"))
    try:
        return what, entry, owner, attempt, msgspec.json.decode(named.get(b"about", b""), type=Noted)
    except (ValueError, RecursionError):
        return what, entry, owner, attempt, None


def read_held(line: Sequence[Any]) -> Held:
    entry, owner, idle, attempt = line
    return Held(text(entry), text(owner), int(idle) / 1000, int(attempt))


def pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=False)


def text(value: bytes) -> str:
    return bytes(value).decode(errors="replace")


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


def seconds_of(reply: Any) -> float:
    """A TIME. Raises the error that came instead."""
    if isinstance(reply, Exception):
        raise reply
    return int(reply[0]) + int(reply[1]) / 1e6


def milliseconds(id: bytes) -> int:
    return int(bytes(id).partition(b"-")[0])


def order_of(entry: str) -> tuple[int, int]:
    match = _ENTRY.fullmatch(entry)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def sent_at(entry: str) -> float | None:
    """When an entry was added, None when its id tells no time."""
    at = order_of(entry)[0]
    return at / 1000 if OLDEST_ENTRY <= at < 1 << 50 else None


def age_of(entry: str, now: float) -> float | None:
    sent = sent_at(entry)
    return None if sent is None else max(0.0, now - sent)
