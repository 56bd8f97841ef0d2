"""Redis that dies and comes back, with its data or without, and Redis that stands still.

It must not know how a process waits for it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

import redis

from bench.procfs import cpu_seconds
from tests.soak.report import Row
from tests.soak.scene import Input, Scene, Sent
from tests.soak.trial import DEFAULT_LEASE, Trial
from tests.support.processes import Process, wait_until

PER_DEATH = 50
"""Requests for each death of the server: 1,000 under 20."""
OLD = 1.0
"""Seconds after which a request may not be lost any more: the server's log of changes is synced once a second."""
DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec")
CPU = 5.0
"""Percent of a core for each process while the server stands still."""
LINE_EVERY = 5.0
"""Seconds for each line that a process may log meanwhile."""


def killed(trial: Trial) -> None:
    for lease, times in trial.leases(20):
        _killed(trial, lease, times)


def _killed(trial: Trial, lease: float, times: int) -> None:
    pause = 5.0
    with trial.scene(server_options=DURABLE, lease=lease, slots=2) as scene:
        row = trial.row(
            "Redis killed and restarted, AOF everysec",
            "0 requests older than 1 s lost",
            f"requests, {times} kills",
            lease,
        )
        load = scene.load(PER_DEATH * times, PER_DEATH / pause, _short)
        deaths, back = [], []
        for n in range(times):
            trial.progress(n, times)
            time.sleep(pause - 1 + trial.rng.uniform(-1, 1))
            at = time.time()
            scene.note("Redis is killed")
            scene.server.restart(trial.rng.uniform(0.1, 1.0))
            deaths.append((at, time.time()))
            scene.note("Redis is back")
            back.append(_serving_again(scene, 2 * lease + 20))
        sent = load.finish()
        statuses = scene.settle(sent, 3 * lease + 20)
        young = 0
        for one in sent:
            if statuses.get(one.mark) is None and any(at - OLD <= one.at <= until for at, until in deaths):
                young += 1
                continue
            status = statuses.get(one.mark)
            row.check(status == "succeeded", f"{one.mark} of {one.at:.3f} ended {status or 'never'}")
        row.worst("serving after", back)
        row.tell("younger ones lost", young)
        scene.judge(row)


def _short(rng: random.Random) -> Input:
    return {"action": "SLEEP", "seconds": rng.uniform(0.02, 0.2)}


def _serving_again(scene: Scene, timeout: float) -> float:
    """The seconds until a new request, sent from now on, is answered."""
    began = time.monotonic()

    def send() -> list[Sent]:
        with suppress(redis.ConnectionError, redis.TimeoutError):
            return [scene.send({"action": "OK"})]
        return []

    (sent,) = wait_until(send, "the server to take a request", 20)
    status = scene.wait(sent, timeout)
    assert status == "succeeded", status
    return time.monotonic() - began


def emptied(trial: Trial) -> None:
    for lease, times in trial.leases(10):
        with trial.scene(durable=False, lease=lease, workers=2) as scene:
            row = trial.row("Redis restarted empty", "serving new requests ≤ 5 s, nobody hangs", "restarts", lease)
            took, whole = [], []
            for n in range(times):
                trial.progress(n, times)
                # Both slots are at work, and something waits.
                before = [scene.send({"action": "SLEEP", "seconds": trial.rng.uniform(0.2, 2)}) for _ in range(4)]
                scene.journal.wait_start(before[trial.rng.randint(0, 1)].mark)
                time.sleep(trial.rng.uniform(0, 0.5))
                scene.note("Redis is restarted empty")
                scene.server.restart(trial.rng.uniform(0, 1))
                began = time.monotonic()
                took.append(_serving_again(scene, 30))
                wait_until(lambda: scene.fleet.credits() >= 2, "both slots to be idle", 3 * lease + 20)
                whole.append(time.monotonic() - began)
                for child in scene.fleet.children:
                    child.check_running()
                row.check(took[-1] <= 5, f"serving after {took[-1]:.2f} s")
            row.worst("serving after", took, 5)
            row.worst("all slots idle after", whole)
            scene.judge(row)


def stopped(trial: Trial) -> None:
    for seconds in (12, 60)[: trial.times(2)]:
        _stopped(trial, seconds)


def _stopped(trial: Trial, seconds: float) -> None:
    # The default lease, which nobody names.
    with trial.scene(workers=2) as scene:
        short = seconds < 3 * DEFAULT_LEASE
        promise = "per process ≤ 5 % of a core and ≤ 1 log line per 5 s meanwhile; back ≤ 2 s"
        row = trial.row(
            f"Redis stopped (SIGSTOP) for {seconds:g} s",
            f"{promise}; no runner was stopped and nothing ran twice" if short else promise,
            "processes",
            DEFAULT_LEASE,
        )
        # It runs on through the short outage, and is given up in the long one.
        running = scene.send({"action": "SLEEP", "seconds": seconds + 8})
        runner = scene.journal.wait_start(running.mark).runner
        time.sleep(trial.rng.uniform(0, 2))
        everyone = sorted(scene.fleet.processes(), key=lambda process: process.pid)
        names = {process.pid: _what(process) for process in everyone}
        logs = {child.pid: child.text().count("\n") for child in scene.fleet.children}
        before = {process.pid: cpu_seconds([process.pid]) for process in everyone}
        began = time.monotonic()
        os.kill(scene.server.pid, signal.SIGSTOP)
        try:
            while time.monotonic() - began < seconds:
                trial.progress(int(time.monotonic() - began), int(seconds))
                time.sleep(0.5)
            took = time.monotonic() - began
            shares = [100 * (cpu_seconds([process.pid]) - before[process.pid]) / took for process in everyone]
            lines = [child.text().count("\n") - logs[child.pid] for child in scene.fleet.children]
        finally:
            os.kill(scene.server.pid, signal.SIGCONT)
        back = _serving_again(scene, 60)
        for process, share in zip(everyone, shares, strict=True):
            row.check(share <= CPU, f"{names[process.pid]} took {share:.1f} % of a core")
        row.worst("a process", shares, CPU, "%")
        row.worst("log lines of a process", lines, took / LINE_EVERY, "")
        row.worst("back after", [back], 2.0)
        _what_ran(scene, row, running, runner, once=short)
        scene.judge(row)


def _what_ran(scene: Scene, row: Row, running: Sent, runner: int, *, once: bool) -> None:
    status = scene.settle([running], 120)[running.mark]
    starts = scene.journal.starts(running.mark)
    if status != "succeeded":
        row.problems.append(f"what ran ended {status or 'never'}")
    if once and len(starts) > 1:
        row.problems.append(f"what ran was started {len(starts)} times")
    if once and runner not in {process.pid for process in scene.fleet.runners()}:
        row.problems.append("the runner is gone")
    row.tell("runs of what ran", len(starts))


def _what(process: Process) -> str:
    """A process in a word or two."""
    words: Sequence[str] = ("bridge", "worker", "_runner", "runners/kin.py")
    return next((word for word in words if word in process.command), process.command[:40])
