"""Processes that die, or stand still, right after one particular step of delivery: every failpoint that there is.

It must not know what a step does, but for what has to be going on so that it is reached.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cog_celery.failpoints import PLACES, VARIABLE
from tests.soak.report import Row
from tests.soak.scene import Input, Scene
from tests.soak.trial import FIVE, LEASE, Trial
from tests.support.processes import Child

AT_ONCE = 4
"""Armed processes at a time."""
PATIENCE = 60.0
"""Seconds within which a process must reach its place."""
TICK = 0.1
DEEP = 30
"""Entries of a stream that is deep enough: all are busy."""
GHOST = "ghost~00000000.0"
"""A slot of a worker that never was: what it owns is to be taken over."""
MAX_ATTEMPTS = 3
PROMISE = "the six invariants of delivery"


@dataclass(frozen=True)
class Way:
    """How a place is reached: `ghosts` are entries of a dead owner, at this attempt; `ends`: at SIGTERM only."""

    ghosts: int | None = None
    ends: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    at_work: bool = False
    """Whether it must own an entry before SIGTERM."""


WAYS = {
    "bridge.reclaimed": Way(ghosts=1),
    "bridge.buried": Way(ghosts=MAX_ATTEMPTS),
    "bridge.released": Way(ghosts=1, ends=True, at_work=True),
    "slot.released": Way(ends=True, options={"drain_timeout": 0.1}, at_work=True),
    "worker.denounced": Way(ends=True),
}
"""The others are reached by serving."""


def failpoints(trial: Trial) -> None:
    for lease, times in trial.leases(20):
        places = trial.asked.places or (PLACES if lease == LEASE else trial.rng.sample(PLACES, min(times, FIVE)))
        each = times if lease == LEASE else 1
        row = trial.row(f"each of {len(places)} failpoints", PROMISE, "deaths and stops", lease)
        for number, place in enumerate(places):
            trial.say(f"{place}, {number + 1} of {len(places)}")
            _place(trial, row, place, lease, each)


@dataclass
class Armed:
    """A process that is to die or to stop at a place."""

    child: Child
    name: str
    action: str
    since: float
    told: bool = False
    """Whether it was sent SIGTERM."""
    wake_at: float | None = None
    """When it is to go on: it has stopped."""
    hit: bool = False


def _place(trial: Trial, whole: Row, place: str, lease: float, times: int) -> None:
    way = WAYS.get(place, Way())
    bridge = place.startswith("bridge.")
    with trial.scene(lease=lease, workers=1, slots=2, max_attempts=MAX_ATTEMPTS, turn=0 if bridge else 1) as scene:
        row = Row(whole.part, place, PROMISE, whole.unit, whole.seed)
        armed: list[Armed] = []
        started = hits = misses = 0
        while hits < times or armed:
            trial.progress(hits, times, f"at {place}")
            while started < times and len(armed) < AT_ONCE:
                armed.append(_arm(scene, place, way, started))
                started += 1
            _lure(scene, way, lease)
            for one in list(armed):
                if _step(scene, row, one, way, place, lease):
                    armed.remove(one)
                    if one.hit:
                        hits += 1
                    else:
                        misses += 1
                        started -= 1  # another one in its place
            assert misses <= 3 * times + 5, f"{misses} processes ended without coming past {place}"
            time.sleep(TICK)
        scene.judge(row)
        whole.held += row.held
        whole.of += row.of
        whole.problems += [f"{place}: {problem}" for problem in row.problems]


def _arm(scene: Scene, place: str, way: Way, number: int) -> Armed:
    rng = scene.rng
    action = "stop" if number % 4 == 3 else "kill"
    nth = 1 if way.ends else rng.choice((1, 1, 2, 3))
    env = {VARIABLE: f"{place}#{nth}={action}"}
    name = f"armed{len(scene.fleet.children)}"
    if place.startswith("bridge."):
        child = scene.fleet.start_bridge(env=env, name=name, **way.options)
    else:
        child = scene.fleet.start_worker(env=env, name=name, slots=1, **way.options)
    return Armed(child, name, action, time.monotonic())


def _step(scene: Scene, row: Row, one: Armed, way: Way, place: str, lease: float) -> bool:
    """Look after an armed process; True when there is nothing more to look after."""
    now = time.monotonic()
    if not one.child.running:
        status = one.child.process.returncode
        if one.hit:  # it had stopped, went on, and was told to end
            row.check(status == 0, f"{one.child.name} went on at {place} and ended with {status}")
        elif status == -signal.SIGKILL and one.action == "kill":
            one.hit = True
            row.check(True, "")
            scene.note(f"{one.child.name} died at {place}")
        elif status != 0 or not one.told:
            row.problems.append(f"{one.child.name} ended with {status} instead of dying at {place}")
            one.hit = True
        # Else it was told to end, and had nothing to do that leads to the place: another one takes its turn.
        return True
    if not one.hit and _is_stopped(one.child.pid):
        one.hit = True
        one.wake_at = now + lease * scene.rng.uniform(0.3, 1.6)
        scene.note(f"{one.child.name} stopped at {place}")
    if one.wake_at is not None and now > one.wake_at:
        one.wake_at, one.since = None, now
        os.kill(one.child.pid, signal.SIGCONT)
        if not one.told:
            one.told = True
            one.child.terminate()
    if way.ends and not one.told and _is_ready(scene, one.name, way):
        one.told = True
        one.child.terminate()
    if now - one.since > PATIENCE + 2 * lease:
        row.check(False, f"{one.child.name} did not {'end' if one.hit else f'reach {place}'}")
        one.child.discard()
        one.hit = True
        return True
    return False


def _is_ready(scene: Scene, name: str, way: Way) -> bool:
    return bool(scene.owned(f"{name}~") if way.at_work else scene.lives(name))


def _is_stopped(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T"
    return False


def _lure(scene: Scene, way: Way, lease: float) -> None:
    """Whatever leads to a place: requests of several kinds, bad ones among them, and entries of a dead owner."""
    client, queue, rng = scene.client, scene.fleet.queue, scene.rng
    if scene.fleet.depth() < DEEP:
        for _ in range(3):
            scene.send(_request(rng.random()))
        scene.send_bad({"value": "{"})
    if way.ghosts is None:
        return
    taken: Any = client.xreadgroup(queue, GHOST, {queue: ">"}, count=1)
    for _, entries in taken:
        for entry, _ in entries:
            # Silent for a lease already.
            client.xclaim(
                *(queue, queue, GHOST, 0, [entry]), idle=int(lease * 1000) + 1, retrycount=way.ghosts, justid=True
            )


def _request(chance: float) -> Input:
    if chance < 0.4:
        return {"action": "SLEEP", "seconds": chance / 4}
    if chance < 0.6:
        return {"action": "SLEEP", "seconds": 0.6}
    if chance < 0.8:
        return {"action": "LOGS", "n": 2, "seconds": 0.2}
    return {"action": "FILES", "n": 2}
