"""Owners that fall silent and come back: cut off from Redis by a black hole, or stopped past their lease.

It must not know how a late answer is kept out.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress

from tests.soak.report import Row
from tests.soak.scene import Scene, Worker
from tests.soak.trial import Trial
from tests.support.processes import wait_until
from tests.support.proxy import Proxy

AT_ONCE = 10
"""Workers that fall silent together."""
RECOVERY = 3.0
"""Seconds beyond a lease within which another attempt must have begun."""
PROMISE = "0 stale writes, run elsewhere ≤ lease + 3 s, and nowhere else"

Silence = Callable[[Scene, Sequence[Worker], float], float]
"""Silences workers, waits and lets them speak again; when they fell silent (Unix time)."""


def cut_off(trial: Trial) -> None:
    proxies: list[Proxy] = []

    def black_hole(scene: Scene, workers: Sequence[Worker], lease: float) -> float:
        at = time.time()
        for proxy in proxies[: len(workers)]:
            proxy.black_hole()
        time.sleep(3 * lease)
        for proxy in proxies[: len(workers)]:
            proxy.heal()
        return at

    for lease, times in trial.leases(100):
        with ExitStack() as stack, trial.scene(lease=lease, workers=0) as scene:
            row = trial.row("worker cut off (black hole) for 3 leases", PROMISE, "silences", lease)
            workers = []
            for n in range(min(AT_ONCE, times)):
                proxies.append(Proxy(scene.server))
                stack.callback(proxies[-1].close)
                workers.append(scene.start_worker(f"cut{n}", env={"REDIS_URL": proxies[-1].url}))
            _silence(scene, row, workers, times, lease, black_hole)
            proxies.clear()


def stopped(trial: Trial) -> None:
    def worker_and_runner(scene: Scene, workers: Sequence[Worker], lease: float) -> float:
        return _stop_past_the_lease(scene, workers, lease, and_runners=True)

    def worker_alone(scene: Scene, workers: Sequence[Worker], lease: float) -> float:
        return _stop_past_the_lease(scene, workers, lease, and_runners=False)

    ways: Sequence[tuple[str, Silence]] = (("worker and runner", worker_and_runner), ("worker alone", worker_alone))
    for lease, times in trial.leases(100):
        for what, silence in ways:
            with trial.scene(lease=lease, workers=0) as scene:
                row = trial.row(f"{what} stopped past the lease, and continued", PROMISE, "silences", lease)
                workers = [scene.start_worker(f"stop{n}") for n in range(min(AT_ONCE, times))]
                _silence(scene, row, workers, times, lease, silence)


def _stop_past_the_lease(scene: Scene, workers: Sequence[Worker], lease: float, *, and_runners: bool) -> float:
    """Each goes on at a time of its own: from where another may have taken over to where that one has ended."""
    groups = {worker.child.pid: [worker.child.pid] for worker in workers}
    if and_runners:
        for process in scene.fleet.runners():
            if process.parent in groups:
                groups[process.parent].append(process.pid)
    at = time.time()
    try:
        for pids in groups.values():
            _signal(pids, signal.SIGSTOP)
        for wake_at, worker in sorted((at + lease * scene.rng.uniform(1.0, 2.2), pid) for pid in groups):
            time.sleep(max(0.0, wake_at - time.time()))
            _signal(groups[worker], signal.SIGCONT)
    finally:
        for pids in groups.values():
            _signal(pids, signal.SIGCONT)
    return at


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _all_get_tickets(scene: Scene, workers: Sequence[Worker], slots: int) -> None:
    """A slot may be idle, and say so, a second before Celery's consumer has a connection again."""
    silent = set(workers)
    until = time.monotonic() + 30
    while silent:
        assert time.monotonic() < until, f"no tickets reach {[one.life for one in silent]}"
        sent = [scene.send({"action": "SLEEP", "seconds": 0.2}) for _ in range(slots)]
        while not all(scene.fleet.producer.get(one.request) for one in sent):
            silent -= {one for one in silent if scene.owned(one.life)}
        scene.settle(sent, 30)


def _silence(scene: Scene, row: Row, workers: Sequence[Worker], times: int, lease: float, silence: Silence) -> None:
    """In rounds: every worker is at work when it falls silent, and idle again before the next round."""
    scene.start_worker("elsewhere", slots=len(workers))
    slots = 2 * len(workers)
    after: list[float] = []

    def idle() -> bool:
        return scene.fleet.credits() >= slots

    while row.of < times:
        scene.progress(row.of, times)
        victims = workers[: times - row.of]
        wait_until(idle, "all slots to be idle", 5 * lease + 30)
        if row.of:
            _all_get_tickets(scene, workers, slots)
        # As many as there are slots. All that run elsewhere have ended when a lease is over.
        sent = [scene.send({"action": "SLEEP", "seconds": lease * scene.rng.uniform(0.3, 0.95)}) for _ in range(slots)]
        wait_until(lambda: all(scene.owned(one.life) for one in victims), "the workers to be at work")  # noqa: B023
        time.sleep(scene.rng.uniform(0, 0.2))
        held = {entry for victim in victims for entry in scene.owned(victim.life)}
        at = silence(scene, victims, lease)
        statuses = scene.settle(sent, 3 * lease + 15)
        for one in sent:
            starts = scene.journal.starts(one.mark)
            after += [again.at - at for again in starts[1:]]
            most = 2 if one.request.entry in held else 1
            fine = statuses[one.mark] == "succeeded" and 1 <= len(starts) <= most
            problem = f"{one.mark} ended {statuses[one.mark] or 'never'} after {len(starts)} runs"
            if most == 2:
                row.check(fine, problem)
            elif not fine:
                row.problems.append(f"{problem}, and its worker was never silent")
    wait_until(idle, "those that were silent to be back", 5 * lease + 30)
    row.worst("run elsewhere after", after, lease + RECOVERY)
    row.tell("taken over", len(after))
    scene.judge(row)
