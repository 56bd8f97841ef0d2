"""What is measured, in parts: each starts what it needs, on a server that it may empty, and returns rows of figures.

It must not know what is made of the rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from bench import BenchError, procfs
from bench.fleet import Fleet
from bench.scale.meter import Meter
from bench.scale.site import POLL, Site, bridge, roles
from bench.wire import Wire

Row = dict[str, Any]
Say = Callable[[str], None]

SLOT_COUNTS = (1, 2, 4, 8)
QUEUE_COUNTS = (1, 10, 50, 100, 200)
WORKER_COUNTS = (1, 10, 100, 1000)
BUSY_PER_WORKER = 10
"""Slots at work of each worker of which only the traces in Redis are there."""
TICKETS = 2000
ROUNDS = 3
"""Of as many tickets; the median counts."""
WAITING = 1_000_000
SHORT = 0.05
CLASSES = ((0.0, 100), (SHORT, 60), (1.0, 10), (30.0, 1))
"""Seconds that predictions take, and how many of them each slot has to make."""
BRIDGE_COUNTS = (1, 2)
IDLE = 20.0
"""Seconds for which a fleet without work is watched."""
MIB = 1 << 20

# A credit for each ticket, round robin over lives and queues; all at once. Their workers are only announced.
_CREDITS = """
for number = 1, tonumber(ARGV[1]) do
  local queue = ARGV[3 + number % tonumber(ARGV[2])]
  local life = string.format('ghost-%s-%d~00000000', queue, number % tonumber(ARGV[#ARGV]))
  redis.call('SET', 'cog-celery:' .. queue .. ':worker:' .. life, '')
  redis.call('RPUSH', 'cog-celery:' .. queue .. ':credits', life .. '.' .. number)
end"""
_LEFT = """
local left = 0
for _, queue in ipairs(ARGV) do left = left + redis.call('LLEN', 'cog-celery:' .. queue .. ':credits') end
return left"""


@dataclass(frozen=True)
class Part:
    name: str
    title: str
    measure: Callable[[Wire, Say], Sequence[Row]]


def _slots(wire: Wire, say: Say) -> list[Row]:
    """One bridge and one worker; as many predictions for each slot, all waiting from the beginning."""
    rows: list[Row] = []
    for slots in SLOT_COUNTS:
        with Site(wire, f"slots-{slots}") as site:
            site.start(1, slots)
            site.work(slots * 10, SHORT)
            work = site.work(slots * 120, SHORT)
        linear = work.rate / (rows[0]["rate"] * slots) if rows else 1.0
        rows.append({"slots": slots, "linear": linear, "ideal": work.rate / (slots / SHORT)} | asdict(work))
        say(f"{slots} slots: {work.rate:.1f} /s, {linear:.1%} of linear")
    return rows


def _fleet(wire: Wire, say: Say) -> list[Row]:
    """One bridge, ten workers of ten slots, and of one: predictions of each class, and what they cost."""
    rows: list[Row] = []
    for slots in (10, 1):
        with Site(wire, f"fleet-{slots}") as site:
            say(f"starting ten workers with {slots} slots each")
            site.rest()
            before = site.meter.connections()
            site.start(10, slots)
            memory = {f"{role}_mib": procfs.memory_bytes(of) / MIB for role, of in roles(site.workers_pids()).items()}
            trip_us = site.meter.trip_us()
            for seconds, each in CLASSES:
                work = site.work(each * site.slots, seconds)
                ideal = work.rate / (site.slots / seconds) if seconds else None
                rows.append(
                    {"seconds": seconds, "slots_per_worker": slots, "slots": site.slots, "ideal": ideal}
                    | {"bridge_mib": _bridge_mib(site), "trip_us": trip_us}
                    | {"connections_per_worker": (site.meter.connections() - before) / site.workers}
                    | asdict(work)
                    | memory
                )
                say(f"{seconds:g} s: {work.rate:.1f} /s, {work.server_us:.0f} µs of Redis each")
    return rows


def _bridge_mib(site: Site) -> float:
    return procfs.memory_bytes(site.bridge_pids()) / MIB


def _idle(wire: Wire, say: Say) -> list[Row]:
    """Workers of one slot without work, ten and then a hundred."""
    rows: list[Row] = []
    with Site(wire, "idle") as site:
        site.rest()
        connections = site.meter.connections()
        for workers in (10, 100):
            say(f"starting {workers - site.workers} workers of one slot")
            site.start(workers - site.workers, 1)
            time.sleep(5)
            pids = site.workers_pids()
            before, cpu, bridge_cpu = site.meter.read(), procfs.cpu_seconds(pids), site.bridge_cpu()
            time.sleep(IDLE)
            spent = site.meter.since(before)
            every = spent.seconds * workers
            memory = {f"{role}_mib": procfs.memory_bytes(of) / workers / MIB for role, of in roles(pids).items()}
            row = {
                "workers": workers,
                "trips": spent.trips / every,
                "commands": sum(spent.commands.values()) / every,
                "commands_by_kind": {kind: number / every for kind, number in spent.commands.items()},
                "bytes": sum(spent.bytes.values()) / every,
                "server_share": spent.cpu / spent.seconds,
                "executing_share": spent.executing / spent.seconds,
                "worker_share": (procfs.cpu_seconds(pids) - cpu) / every,
                "bridge_share": (site.bridge_cpu() - bridge_cpu) / spent.seconds,
                "bridge_mib": _bridge_mib(site),
                "connections": (site.meter.connections() - connections) / workers,
                "latency_ms": 1000 * statistics.median(_latency(site) for _ in range(50)),
            }
            rows.append(row | memory)
            say(f"{workers} workers: {row['trips']:.2f} round trips /s each, {memory}")
    return rows


def _latency(site: Site) -> float:
    """Seconds from the XADD of one prediction that takes none until its entry is gone."""
    started = time.monotonic()
    site.fill(1, {"seconds": 0.0})
    return site.drained(0.0005) - started


def _queues(wire: Wire, say: Say) -> list[Row]:
    """One bridge and more and more queues: what it costs without work, and what it costs to send tickets on all."""
    rows: list[Row] = []
    for count in QUEUE_COUNTS:
        queues = [f"queue-{number}" for number in range(count)]
        idle = _idle_bridge(wire, queues)
        rows.append({"queues": count} | idle | _dispatch(wire, queues, lives=1, busy=0))
        say(f"{count} queues: {rows[-1]['bridge_us']:.0f} µs of the bridge for a ticket, {idle}")
    return rows


def _workers(wire: Wire, say: Say) -> list[Row]:
    """One bridge, one queue and more and more workers, of which each has slots at work and idle ones."""
    rows: list[Row] = []
    for count in WORKER_COUNTS:
        rows.append({"workers": count} | _dispatch(wire, ["queue"], lives=count, busy=BUSY_PER_WORKER))
        say(f"{count} workers: {rows[-1]['bridge_us']:.0f} µs of the bridge for a ticket")
    return rows


def _idle_bridge(wire: Wire, queues: Sequence[str]) -> Row:
    with _Bridges(wire, queues) as fleet:
        meter, (pid,) = Meter(wire), fleet.pids(0)
        before, cpu = meter.read(), procfs.cpu_seconds([pid])
        time.sleep(IDLE / 2)
        spent = meter.since(before)
        return {
            "threads": procfs.threads(pid),
            "memory_mib": procfs.memory_bytes([pid]) / MIB,
            "idle_share": (procfs.cpu_seconds([pid]) - cpu) / spent.seconds,
            "idle_trips": spent.trips / spent.seconds,
            "idle_server_share": spent.cpu / spent.seconds,
        }


def _bridges(wire: Wire, say: Say) -> list[Row]:
    """One queue, and more than one bridge."""
    rows: list[Row] = []
    for count in BRIDGE_COUNTS:
        rows.append({"bridges": count} | _dispatch(wire, ["queue"], lives=100, busy=0, bridges=count))
        say(f"{count} bridges: {rows[-1]['tickets_per_second']:.0f} tickets /s")
    return rows


class _Bridges(Fleet):
    """Bridges that serve all queues that they are given."""

    def __init__(self, wire: Wire, queues: Sequence[str], *options: str, count: int = 1) -> None:
        url = f"redis://{wire.host}:{wire.port}/0"
        super().__init__([bridge(url, queues, "--name", f"b{number}", *options) for number in range(count)])
        self._wire = wire
        self._queues = queues

    def __enter__(self) -> Self:
        self._wire.call("FLUSHALL")
        super().__enter__()
        deadline = time.monotonic() + 60
        while any(self._wire.call("HLEN", f"cog-celery:{queue}:processes") < self.size for queue in self._queues):
            if time.monotonic() > deadline:
                raise BenchError(f"the bridges do not serve all queues{self.tail()}")
            time.sleep(POLL)
        time.sleep(1)
        return self


def _dispatch(wire: Wire, queues: Sequence[str], *, lives: int, busy: int, bridges: int = 1) -> Row:
    """Tickets for slots whose workers are only announced, sent as fast as the bridge can; nobody claims them.

    `lives`: of how many workers for each queue; each of them has so many slots that are at work.
    """
    # Long leases: nothing is missed in the second that this takes.
    with _Bridges(wire, queues, "--lease", "120", count=bridges) as fleet:
        pids = {pid for number in range(bridges) for pid in fleet.pids(number)}
        meter = Meter(wire)
        for queue in queues:
            for number in range(lives * busy):
                wire.call("XADD", queue, "*", "value", "{}")
                owner = f"busy-{number // busy}~00000000.{number % busy}"
                wire.call("XREADGROUP", "GROUP", queue, owner, "COUNT", 1, "STREAMS", queue, ">")
        rounds = []
        for _ in range(ROUNDS):
            for number in range(TICKETS):
                body = f'{{"input":{{}},"response_queue":"bench:{number}"}}'
                wire.call("XADD", queues[number % len(queues)], "*", "value", body)
            time.sleep(0.5)
            before, cpu = meter.read(), procfs.cpu_seconds(pids)
            wire.call("EVAL", _CREDITS, 0, TICKETS, len(queues), *queues, lives)
            while wire.call("EVAL", _LEFT, 0, *queues):
                fleet.check()
                time.sleep(POLL / 2)
            spent = meter.since(before)
            rounds.append((TICKETS / spent.seconds, procfs.cpu_seconds(pids) - cpu, spent.cpu, spent.trips))
        rate, bridge_cpu, server_cpu, trips = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        return {
            "tickets_per_second": rate,
            "bridge_us": 1e6 * bridge_cpu / TICKETS,
            "server_us": 1e6 * server_cpu / TICKETS,
            "trips": trips / TICKETS,
        }


def _backlog(wire: Wire, say: Say) -> list[Row]:
    """A million requests wait while two slots work through the beginning."""
    rows: list[Row] = []
    with Site(wire, "backlog", "noop") as site:
        site.start(1, 2)
        for waiting in (0, WAITING):
            server = site.meter.memory()
            started = time.monotonic()
            for first in range(1, waiting + 1, 10_000):
                site.fill(10_000, {"text": "hello"}, first)
            filled = time.monotonic() - started
            entry = (site.meter.memory() - server) / waiting if waiting else 0.0
            begun, at = site.length(), time.monotonic()
            if not waiting:
                site.fill(20_000, {"text": "hello"})
                begun, at = 20_000, time.monotonic()
                site.drained()
            else:
                time.sleep(10)
            done, seconds = begun - site.length(), time.monotonic() - at
            rows.append(
                {
                    "waiting": waiting,
                    "bridge_mib": _bridge_mib(site),
                    "workers_mib": procfs.memory_bytes(site.workers_pids()) / MIB,
                    "rate": done / seconds,
                    "entry_bytes": entry,
                    "fill_seconds": filled,
                }
            )
            say(f"{waiting} waiting: {rows[-1]}")
    return rows


PARTS = {
    part.name: part
    for part in (
        Part("slots", "1 to 8 slots", _slots),
        Part("fleet", "ten workers of ten slots", _fleet),
        Part("idle", "workers without work", _idle),
        Part("queues", "up to 200 queues", _queues),
        Part("workers", "up to 1,000 workers", _workers),
        Part("bridges", "two bridges on one queue", _bridges),
        Part("backlog", "a million requests that wait", _backlog),
    )
}
