"""Predictions that share something: a slot, with the uploads of one behind the other, and a runner, several at once.

It must not know how they are kept apart.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

from tests.soak.scene import Input, Scene, Worker, kill_all
from tests.soak.trial import Trial
from tests.support.fleet import MODELS
from tests.support.processes import wait_until
from tests.support.web import Handler, Web

PAUSE = 3.0
"""Seconds between faults."""
PER_FAULT = 20


class SlowStore(Web):
    """Takes files, each after a while that is left to chance."""

    def __init__(self, rng: random.Random, longest: float) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._rng, self._longest = rng, longest
        self.on("*", self._take)

    def _take(self, handler: Handler) -> None:
        with self.lock:
            wait = self._rng.uniform(0, self._longest)
            self.seen.clear()
        self.stopping.wait(wait)
        self.names.add(handler.path)
        handler.answer(201)


def uploads_behind(trial: Trial) -> None:
    for lease, faults in trial.leases(40):
        _uploads_behind(trial, lease, faults)


def _uploads_behind(trial: Trial, lease: float, faults: int) -> None:
    with (
        SlowStore(random.Random(trial.rng.random()), 0.8) as store,
        trial.scene(lease=lease, workers=2, upload_url=store.url, max_attempts=20, drain_timeout=0.3) as scene,
    ):
        row = trial.row(
            "worker killed or restarted while uploads are behind the running prediction",
            "0 lost, 0 with two terminals, every file is there",
            f"requests, {faults} faults",
            lease,
        )
        behind = _Sampler(scene)
        load = scene.load(PER_FAULT * faults, PER_FAULT / PAUSE, _files)
        workers = scene.workers()
        for n in range(faults):
            trial.progress(n, faults)
            began = time.monotonic()
            index = trial.rng.randrange(len(workers))
            victim = workers[index]
            wait_until(lambda life=victim.life: scene.owned(life), f"{victim.name} to be at work", 60)  # type: ignore[misc]
            time.sleep(trial.rng.uniform(0, 0.2))
            workers[index] = _fault(trial, scene, victim)
            time.sleep(max(0.0, began + PAUSE - time.monotonic()))
        sent = load.finish()
        statuses = scene.settle(sent, 2 * lease + 15)
        behind.stop()
        for one in sent:
            output = scene.output(one) if statuses.get(one.mark) == "succeeded" else None
            there = isinstance(output, list) and all(url.removeprefix(store.url) in store.names for url in output)
            row.check(there, f"{one.mark} of {one.at:.3f} ended {statuses.get(one.mark) or 'never'} with {output}")
        row.tell("looks that saw two predictions of a slot", behind.seen)
        if not behind.seen:
            row.problems.append("no upload was ever seen behind a running prediction: nothing was tried")
        scene.judge(row)


def _fault(trial: Trial, scene: Scene, victim: Worker) -> Worker:
    if trial.rng.random() < 0.5:
        kill_all(victim.child)
    else:
        victim.child.terminate()
        status = victim.child.wait(45)
        assert status == 0, f"{victim.name} ended with {status} after SIGTERM"
    return scene.start_worker(victim.name)


def _files(rng: random.Random) -> Input:
    return {"action": "FILES", "seconds": rng.uniform(0, 0.1), "n": rng.randrange(1, 7)}


class _Sampler:
    """Counts the looks at the pending list that found a second consumer of a slot at work."""

    def __init__(self, scene: Scene) -> None:
        self.seen = 0
        self._scene = scene
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            owners = set(self._scene.owners())
            self.seen += any(f"{owner}b" in owners for owner in owners)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def shared_runner(trial: Trial) -> None:
    for lease, faults in trial.leases(40):
        _shared_runner(trial, lease, faults)


def _shared_runner(trial: Trial, lease: float, faults: int) -> None:
    with trial.scene(lease=lease, workers=2, model=_concurrent(trial.folder), at_once=4, max_attempts=20) as scene:
        row = trial.row(
            "a runner of four predictions at once, killed, or its worker",
            "0 lost, 0 with two terminals; what a dying runner had fails, or runs again",
            f"requests, {faults} faults",
            lease,
        )
        load = scene.load(PER_FAULT * faults, PER_FAULT / PAUSE, _await)
        workers = scene.workers()
        most = 0
        for n in range(faults):
            trial.progress(n, faults)
            began = time.monotonic()
            index = trial.rng.randrange(len(workers))
            victim = workers[index]
            wait_until(lambda life=victim.life: len(scene.owned(life)) > 1, f"{victim.name} to run two", 60)  # type: ignore[misc]
            most = max(most, len(scene.owned(victim.life)))
            if trial.rng.random() < 0.5:
                for runner in scene.fleet.runners():
                    if runner.parent == victim.child.pid:
                        os.kill(runner.pid, signal.SIGKILL)
            else:
                kill_all(victim.child)
                workers[index] = scene.start_worker(victim.name)
            time.sleep(max(0.0, began + PAUSE - time.monotonic()))
        sent = load.finish()
        statuses = scene.settle(sent, 2 * lease + 15)
        for one in sent:
            status = statuses.get(one.mark)
            died = status == "failed" and "exitcode -9" in str(scene.error(one))
            row.check(status == "succeeded" or died, f"{one.mark} ended {status or 'never'}: {scene.error(one)}")
        row.tell("most at once", most)
        scene.judge(row)


def _await(rng: random.Random) -> Input:
    return {"action": "SLEEP", "seconds": rng.uniform(0.1, 0.6)}


def _concurrent(folder: Path) -> Path:
    """The action predictor, as one that serves four at once."""
    model = folder / "concurrent"
    if not model.exists():
        shutil.copytree(MODELS / "actions", model, ignore=shutil.ignore_patterns("__pycache__"))
        (model / "cog.yaml").write_text('predict: "predict.py:Together"\nconcurrency:\n  max: 4\n')
    return model
