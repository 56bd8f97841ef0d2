"""A day of a fleet in some minutes: ten thousand predictions, a fault every now and then, and what is left of it.

It must not know how a fault is got over.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.soak.report import Row
from tests.soak.scene import Scene, kill_all
from tests.soak.trial import LEASE, Trial
from tests.support.processes import Child
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

PREDICTIONS = 10_000
RATE = 40.0
"""Predictions per second."""
EVERY = 20.0
"""Seconds from one fault to the next."""
SETTLED = 5.0
"""Seconds of service after which a process has all that it needs: its memory and descriptors are counted from then."""
MEMORY = 16 << 20
"""Bytes by which a process may have grown: allocators keep what they were given, and buffers are as large as needed."""
DESCRIPTORS = 2
"""Descriptors by which it may differ: a connection may be in the making."""
FAULTS = ("runner killed", "worker killed", "bridge killed", "Redis paused", "connections cut")


@dataclass(frozen=True)
class Use:
    """What a process holds: bytes of memory (RSS), and open descriptors."""

    memory: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Use | None:
        """None when it is gone."""
        try:
            pages = int(Path("/proc", str(pid), "statm").read_text().split()[1])
            return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))
        except (FileNotFoundError, ProcessLookupError):
            return None


class Fleet:
    """The day's processes, and when each was started: what they hold is counted once they have settled."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.workers = scene.workers()
        self.bridges = list(scene.fleet.bridges)
        self._started: dict[int, float] = {}
        self._first: dict[int, tuple[str, Use]] = {}
        for child in (*self.bridges, *(worker.child for worker in self.workers)):
            self._started[child.pid] = time.monotonic()

    def replace_bridge(self, index: int) -> None:
        self.bridges[index] = self._scene.fleet.start_bridge()
        self._started[self.bridges[index].pid] = time.monotonic()

    def replace_worker(self, index: int) -> None:
        self.workers[index] = self._scene.start_worker(self.workers[index].name)
        self._started[self.workers[index].child.pid] = time.monotonic()

    def look(self) -> None:
        """Count what processes hold that have settled and were not counted yet."""
        for name, child in self._children():
            if child.pid not in self._first and time.monotonic() - self._started[child.pid] > SETTLED:
                use = Use.of(child.pid)
                if use is not None:
                    self._first[child.pid] = (name, use)

    def compare(self, row: Row) -> None:
        """What the survivors hold now, against what they held once they had settled."""
        grown, more = [], []
        for name, child in self._children():
            if child.pid not in self._first:
                continue
            child.check_running()
            first, now = self._first[child.pid][1], Use.of(child.pid)
            assert now is not None
            grown.append((now.memory - first.memory) / 2**20)
            more.append(now.descriptors - first.descriptors)
            if more[-1] > DESCRIPTORS:
                row.problems.append(f"{name} held {first.descriptors} descriptors, and {now.descriptors} in the end")
        row.worst("memory grew by", grown, MEMORY / 2**20, "MiB")
        row.worst("descriptors grew by", more, DESCRIPTORS, "")

    def _children(self) -> list[tuple[str, Child]]:
        children = [(f"bridge {n}", child) for n, child in enumerate(self.bridges)]
        return children + [(worker.name, worker.child) for worker in self.workers]


def day(trial: Trial) -> None:
    faults = trial.times(round(PREDICTIONS / RATE / EVERY))
    predictions = PREDICTIONS if trial.asked.times is None else min(PREDICTIONS, int(faults * EVERY * RATE))
    proxies: list[Proxy] = []

    def through(server: RedisServer) -> Proxy:
        proxies.append(Proxy(server))
        stack.callback(proxies[-1].close)
        return proxies[-1]

    with (
        ExitStack() as stack,
        trial.scene(through=through, lease=LEASE, bridges=2, workers=3, slots=2) as scene,
    ):
        row = trial.row(
            f"a scaled day: {predictions:,} predictions of 20 ms, a random fault every {EVERY:g} s",
            "all terminal, memory and descriptors back where they began",
            "predictions",
            LEASE,
        )
        fleet = Fleet(scene)
        load = scene.load(predictions, RATE, lambda rng: {"action": "SLEEP", "seconds": 0.02})
        # Each kind as often as the others, in an order of chance.
        ahead = [FAULTS[n % len(FAULTS)] for n in range(faults)]
        trial.rng.shuffle(ahead)
        made: Counter[str] = Counter()
        began = time.monotonic()
        while len(load.sent) < predictions:
            trial.progress(len(load.sent), predictions, f"{sum(made.values())} faults")
            fleet.look()
            if ahead and time.monotonic() - began > EVERY * (sum(made.values()) + 0.5):
                fault = ahead.pop()
                made[fault] += 1
                scene.note(fault)
                _make(scene, fleet, fault, proxies[0])
            time.sleep(0.1)
        sent = load.finish()
        statuses = scene.settle(sent, 30)
        for one in sent:
            row.check(
                statuses[one.mark] in ("succeeded", "failed"), f"{one.mark} ended {statuses[one.mark] or 'never'}"
            )
        failed = sum(status == "failed" for status in statuses.values())
        row.worst("failed with their runner", [failed], 2 * made["runner killed"], "")
        for name in FAULTS:
            row.tell(name, made[name])
        scene.judge(row)
        fleet.compare(row)


def _make(scene: Scene, fleet: Fleet, fault: str, proxy: Proxy) -> None:
    rng = scene.rng
    match fault:
        case "runner killed":
            victim = rng.choice(scene.fleet.runners())
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
        case "worker killed":
            index = rng.randrange(len(fleet.workers))
            kill_all(fleet.workers[index].child)
            fleet.replace_worker(index)
        case "bridge killed":
            index = rng.randrange(len(fleet.bridges))
            fleet.bridges[index].kill()
            fleet.bridges[index].wait()
            fleet.replace_bridge(index)
        case "Redis paused":
            os.kill(scene.server.pid, signal.SIGSTOP)
            time.sleep(rng.uniform(0.5, 2 * LEASE))
            os.kill(scene.server.pid, signal.SIGCONT)
        case "connections cut":
            proxy.cut()
