"""Bridges and workers of a queue as they are started for measurements of scale, the load on them, and what they cost.

It must not know what is made of the figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench import BenchError, procfs
from bench.contestants import environment
from bench.fleet import Command, Fleet
from bench.scale.meter import Meter, Spent
from bench.wire import Wire

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "bench" / "models"
AT_ONCE = 10
"""Workers that are started side by side."""
START_TIMEOUT = 180.0
POLL = 0.02
STALL = 60.0

_PROGRAM = (sys.executable, "-m", "cog_celery")
# Requests with a response key and a cancel key of their own, all at once in one atomic step.
_FILL = """
for number = ARGV[1], ARGV[2] do
  redis.call('XADD', KEYS[1], '*', 'value', (string.gsub(ARGV[3], '#', string.format('%d', number))))
end"""


def bridge(url: str, queues: Sequence[str], *options: str) -> Command:
    names = (word for queue in queues for word in ("--queue", queue))
    return Command((*_PROGRAM, "bridge", "--redis-url", url, *names, *options), ROOT, environment())


def worker(url: str, queue: str, model: str, slots: int, name: str) -> Command:
    where = ("--redis-url", url, "--queue", queue, "--slots", str(slots), "--name", name)
    return Command((*_PROGRAM, "worker", str(MODELS / model), *where), ROOT, environment())


@dataclass(frozen=True)
class Work:
    """Predictions per second; and for each of them microseconds of CPU, `executing_us` of which Redis spends within
    commands, and round trips, commands and bytes at Redis. Less what is spent without any worker, if that is known.
    """

    rate: float
    server_us: float
    executing_us: float
    bridge_us: float
    workers_us: float
    trips: float
    commands: float
    broker_commands: float
    bytes: float


class Site(AbstractContextManager["Site"]):
    """One bridge and its workers on a fresh queue; more workers may come."""

    def __init__(self, wire: Wire, queue: str, model: str = "sleeps") -> None:
        self.wire = wire
        self.queue = queue
        self._url = f"redis://{wire.host}:{wire.port}/0"
        self._model = model
        self._stack = ExitStack()
        self._fleets: list[Fleet] = []
        self.workers = 0
        self.slots = 0
        self._bridge: Fleet | None = None
        self._without = Spent(1.0, 0.0, 0.0, 0, {}, {}), 0.0
        """What the server spends while nobody works, in how many seconds, and the bridge's CPU seconds in these."""
        wire.call("FLUSHALL")
        wire.call("XGROUP", "CREATE", queue, queue, "0", "MKSTREAM")
        self.meter = Meter(wire)

    def __enter__(self) -> Self:
        self._bridge = self._stack.enter_context(Fleet([bridge(self._url, [self.queue])]))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rest(self, seconds: float = 10.0) -> None:
        """See what the server and the bridge do without any worker: that is no prediction's doing."""
        self._await(lambda: self.wire.call("HLEN", f"cog-celery:{self.queue}:processes"), "the bridge to serve")
        time.sleep(1)
        before, bridge_cpu = self.meter.read(), self.bridge_cpu()
        time.sleep(seconds)
        self._without = self.meter.since(before), self.bridge_cpu() - bridge_cpu

    def start(self, workers: int, slots: int) -> None:
        """Start so many workers with so many slots each; return when all are ready."""
        last = self.workers + workers
        while self.workers < last:
            few = range(self.workers, min(self.workers + AT_ONCE, last))
            commands = [worker(self._url, self.queue, self._model, slots, f"w{number}") for number in few]
            fleet = self._stack.enter_context(Fleet(commands))
            self._fleets.append(fleet)
            self.workers += len(commands)
            self.slots += len(commands) * slots
            fleet.wait_ready(self.wire, self.queue, min(self.slots, 100), START_TIMEOUT)
        credits = f"cog-celery:{self.queue}:credits"
        self._await(lambda: self.wire.call("LLEN", credits) >= self.slots, "all slots to be idle")

    def fill(self, count: int, given: object, first: int = 1) -> None:
        """Add so many requests with the same input, before anybody sees the first."""
        body = json.dumps({"input": given, "response_queue": "bench:#", "cancel_key": "bench:cancel:#"})
        self.wire.call("EVAL", _FILL, 1, self.queue, first, first + count - 1, body)

    def drained(self, poll: float = POLL) -> float:
        """Wait until the stream is empty, asking every `poll` seconds; when that was (seconds, monotonic)."""
        lowest, changed = -1, time.monotonic()
        while length := self.length():
            if length != lowest:
                lowest, changed = length, time.monotonic()
            elif time.monotonic() - changed > STALL:
                raise BenchError(f"{length} predictions were left when nothing moved for {STALL:g} s{self.tail()}")
            time.sleep(poll)
        return time.monotonic()

    def work(self, count: int, seconds: float) -> Work:
        """Have so many predictions made that take so long."""
        self.fill(count, {"seconds": seconds})
        before, bridge_cpu, workers_cpu = self.meter.read(), self.bridge_cpu(), self.workers_cpu()
        elapsed = self.drained(max(POLL, seconds / 20)) - before.at
        spent, bridge_cpu = self.meter.since(before), self.bridge_cpu() - bridge_cpu
        workers_cpu = self.workers_cpu() - workers_cpu
        self._check(count)
        without, bridge_without = self._without
        share = elapsed / without.seconds
        return Work(
            rate=count / elapsed,
            server_us=1e6 * (spent.cpu - share * without.cpu) / count,
            executing_us=1e6 * (spent.executing - share * without.executing) / count,
            bridge_us=1e6 * max(0.0, bridge_cpu - share * bridge_without) / count,
            workers_us=1e6 * workers_cpu / count,
            trips=(spent.trips - share * without.trips) / count,
            commands=(sum(spent.commands.values()) - share * sum(without.commands.values())) / count,
            broker_commands=spent.commands.get("broker", 0) / count,
            bytes=(sum(spent.bytes.values()) - share * sum(without.bytes.values())) / count,
        )

    def length(self) -> int:
        return int(self.wire.call("XLEN", self.queue))

    def bridge_pids(self) -> set[int]:
        assert self._bridge is not None
        return self._bridge.pids(0)

    def bridge_cpu(self) -> float:
        return procfs.cpu_seconds(self.bridge_pids())

    def workers_pids(self) -> set[int]:
        return {pid for fleet in self._fleets for number in range(fleet.size) for pid in fleet.pids(number)}

    def workers_cpu(self) -> float:
        return procfs.cpu_seconds(self.workers_pids())

    def tail(self) -> str:
        assert self._bridge is not None
        return self._bridge.tail() + (self._fleets[-1].tail() if self._fleets else "")

    def _check(self, count: int) -> None:
        """Every one of them succeeded."""
        for first in range(1, count + 1, 500):
            keys = [f"bench:{number}" for number in range(first, min(first + 500, count + 1))]
            for response in self.wire.call("MGET", *keys):
                if response is None or json.loads(response)["status"] != "succeeded":
                    raise BenchError(f"a prediction did not succeed: {response!r}{self.tail()}")
            self.wire.call("UNLINK", *keys)

    def _await(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + STALL
        while not condition():
            if time.monotonic() > deadline:
                raise BenchError(f"waited {STALL:g} s for {what}{self.tail()}")
            time.sleep(POLL)


def roles(pids: Iterable[int]) -> dict[str, set[int]]:
    """Processes of workers by what they are."""
    found: dict[str, set[int]] = {"worker": set(), "runner": set(), "guardian": set()}
    for pid in pids:
        line = procfs.command(pid)
        # A guardian is one small file, given to a bare interpreter.
        role = "runner" if "_runner" in line else "guardian" if " -I -S " in line else "worker" if line else None
        if role:
            found[role].add(pid)
    return found
