"""Processes that die, and processes that are told to end: runners, workers with all that is under them, bridges.

It must not know how what they leave is taken over.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Sequence

from tests.soak.journal import Event
from tests.soak.report import Row
from tests.soak.scene import Input, Scene, Sent, Worker, kill_all
from tests.soak.trial import Trial
from tests.support.processes import wait_until

PER_DEATH = 20
"""Requests for each death of a worker or bridge: 1,000 under 50."""
RECOVERY = 3.0
"""Seconds beyond a lease within which another attempt must have begun."""


def runner_killed(trial: Trial) -> None:
    with trial.scene() as scene:
        row = trial.row("runner killed", "failed snapshot p99 ≤ 1 s, next prediction succeeds", "kills")
        took = []
        times = trial.times(200)
        for n in range(times):
            trial.progress(n, times)
            victim = scene.send({"action": "SLEEP", "seconds": 60})
            runner = scene.journal.wait_start(victim.mark).runner
            time.sleep(trial.rng.uniform(0, 0.2))
            at = time.time()
            os.kill(runner, signal.SIGKILL)
            status = scene.wait(victim)
            took.append(time.time() - at)
            after = scene.wait(scene.send({"action": "OK"}))
            row.check(
                (status, after) == ("failed", "succeeded"), f"{victim.mark} ended {status}, the one after it {after}"
            )
        row.worst("failed snapshot p99", [sorted(took)[math.ceil(0.99 * len(took)) - 1]], 1.0)
        row.tell("the slowest", max(took), "s")
        scene.judge(row)


def worker_killed(trial: Trial) -> None:
    for lease, kills in trial.leases(50, 50):
        _worker_killed(trial, lease, kills)


def _worker_killed(trial: Trial, lease: float, kills: int) -> None:
    # With the default lease a retry begins 10.5 s after its death, as every third kill does: a request may meet many.
    pause = 3.5
    with trial.scene(lease=lease, workers=2, max_attempts=20) as scene:
        row = trial.row(
            "worker killed with everything under it, and restarted under the same name",
            "0 lost, 0 with two terminals, second attempt starts within lease + 3 s",
            f"requests, {kills} kills",
            lease,
        )
        workers = scene.workers()
        load = scene.load(PER_DEATH * kills, PER_DEATH / pause, _short)
        deaths = []
        for n in range(kills):
            trial.progress(n, kills)
            began = time.monotonic()
            index = trial.rng.randrange(len(workers))
            victim = workers[index]
            # At work: an idle worker's death costs nothing.
            wait_until(lambda life=victim.life: scene.owned(life), f"{victim.name} to be at work", 60)  # type: ignore[misc]
            time.sleep(trial.rng.uniform(0, 0.1))
            runners = {process.pid for process in scene.fleet.runners() if process.parent == victim.child.pid}
            deaths.append((kill_all(victim.child), runners))
            workers[index] = scene.start_worker(victim.name)
            time.sleep(max(0.0, began + pause - time.monotonic()))
        _all_succeeded(scene, row, load.finish(), 2 * lease + 15)
        again = [late for at, runners in deaths for late in _second_starts(scene, at, runners)]
        row.worst("second attempt", again, lease + RECOVERY)
        row.tell("interrupted", len(again))
        scene.judge(row)


def _short(rng: random.Random) -> Input:
    return {"action": "SLEEP", "seconds": rng.uniform(0.1, 0.35)}


def _second_starts(scene: Scene, at: float, runners: set[int]) -> list[float]:
    """How long after a death the requests that its runners were at were begun again."""
    began: list[Event] = []
    runs = scene.journal.runs()
    ended = {(event.mark, event.runner) for event in scene.journal.events() if event.event == "end"}
    for starts in runs.values():
        began += [
            one for one in starts if one.runner in runners and one.at <= at and (one.mark, one.runner) not in ended
        ]
    return [next((one.at for one in runs[run.mark] if one.at > at), math.inf) - at for run in began]


def _all_succeeded(scene: Scene, row: Row, sent: Sequence[Sent], patience: float) -> None:
    """Count the requests that ended well; the others are lost, or failed."""
    statuses = scene.settle(sent, patience)
    for one in sent:
        status = statuses.get(one.mark)
        row.check(status == "succeeded", f"{one.mark} of {one.at:.3f} ended {status or 'never'}")


def bridge_killed(trial: Trial) -> None:
    for lease, kills in trial.leases(50):
        _bridge_killed(trial, lease, kills)


def _bridge_killed(trial: Trial, lease: float, kills: int) -> None:
    pause = 2.5
    # Without turns every request passes through a bridge.
    with trial.scene(lease=lease, bridges=2, slots=2, turn=0) as scene:
        row = trial.row(
            "bridge killed at random points",
            "0 lost, 0 double, runs started twice ≤ 1 %",
            f"requests, {kills} kills",
            lease,
        )
        load = scene.load(PER_DEATH * kills, PER_DEATH / pause, _tiny)
        bridges = list(scene.fleet.bridges)
        for n in range(kills):
            trial.progress(n, kills)
            index = trial.rng.randrange(len(bridges))
            scene.serving_bridge(bridges[index])
            time.sleep(trial.rng.uniform(0, 2 * (pause - 0.7)))
            bridges[index].kill()
            bridges[index].wait()
            bridges[index] = scene.fleet.start_bridge()
        _all_succeeded(scene, row, load.finish(), 2 * lease + 15)
        twice = sum(len(starts) > 1 for starts in scene.journal.runs().values())
        row.worst("runs started twice", [100 * twice / row.of], 1.0, "%")
        scene.judge(row)


def _tiny(rng: random.Random) -> Input:
    return {"action": "SLEEP", "seconds": rng.uniform(0, 0.04)}


def rolling_restart(trial: Trial) -> None:
    for lease, rounds in trial.leases(20):
        _rolling_restart(trial, lease, rounds)


def _rolling_restart(trial: Trial, lease: float, rounds: int) -> None:
    with trial.scene(lease=lease, bridges=2, workers=2) as scene:
        row = trial.row(
            "rolling restart of all workers and bridges",
            "0 lost, 0 failed, every exit status 0",
            f"requests, {rounds} rounds",
            lease,
        )
        # A round takes some seven seconds, and ends when all are back.
        load = scene.load(25 * rounds, 25 / 7, _short)
        workers, bridges = scene.workers(), list(scene.fleet.bridges)
        slowest = []
        for n in range(rounds):
            for index, worker in enumerate(workers):
                trial.progress(n, rounds)
                slowest.append(_end(row, worker.child.name, worker))
                workers[index] = scene.start_worker(worker.name)
            for index, bridge in enumerate(bridges):
                bridge.terminate()
                if status := bridge.wait(30):
                    row.problems.append(f"{bridge.name} ended with {status} after SIGTERM")
                bridges[index] = scene.fleet.start_bridge()
                scene.serving_bridge(bridges[index])
        _all_succeeded(scene, row, load.finish(), 2 * lease + 15)
        twice = sum(len(starts) > 1 for starts in scene.journal.runs().values())
        row.worst("runs started twice", [twice], 0, "")
        row.worst("a worker's drain", slowest)
        scene.judge(row)


def _end(row: Row, name: str, worker: Worker) -> float:
    """SIGTERM to a worker; the seconds until it has ended."""
    began = time.monotonic()
    worker.child.terminate()
    if status := worker.child.wait(45):
        row.problems.append(f"{name} ended with {status} after SIGTERM")
    return time.monotonic() - began
