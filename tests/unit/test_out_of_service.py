"""Runners that are out of service: when they go, when they are tried again, and what is left of what cannot die."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cog_celery.gpus.assigning import Share
from cog_celery.gpus.finding import Device
from cog_celery.gpus.monitor import Monitor
from cog_celery.runners import kin, runner
from cog_celery.runners.guardian import Guardian
from cog_celery.runners.runner import Runner, RunnerCommand
from cog_celery.slots import respawning
from cog_celery.slots.respawning import RespawningRunner
from cog_celery.slots.workshop import Workshop
from cog_celery.worker.roster import Roster
from tests.support.processes import Process, wait_until

MODEL = """
import os
from cog import BasePredictor

class Predictor(BasePredictor):
    def setup(self) -> None:
        print("setup", flush=True)
        if os.path.exists("bad"):
            raise RuntimeError("CUDA error")

    def predict(self) -> str:
        return ""
"""


class Stage:
    """A worker's runners, without its slots and servers."""

    def __init__(self, folder: Path, guardian: Guardian, spawner: ThreadPoolExecutor) -> None:
        self.bad = folder / "bad"
        (folder / "cog.yaml").write_text("predict: predict.py:Predictor\n")
        (folder / "predict.py").write_text(MODEL)
        self.lines: list[str] = []
        self.failed: list[str] = []
        self.ended: list[str] = []
        self.changes = 0
        settings = SimpleNamespace(python=sys.executable, model_dir=str(folder), setup_timeout=30.0)
        self.shop = cast(
            Workshop,
            SimpleNamespace(
                settings=settings,
                guardian=guardian,
                spawner=spawner,
                draining=threading.Event(),
                on_setup_lines=self.lines.extend,
                on_setup_failed=self.failed.append,
                on_out=self.look,
            ),
        )
        devices = [Device("0", "GPU-0"), Device("1", "GPU-1")]
        self.monitor = Monitor(devices)  # which nobody has opened
        self.runners = [
            RespawningRunner(f"runner {index}", self.shop, dict(os.environ), 1, share, self.monitor)
            for index, share in enumerate(Share(device.id, device.label, (device,)) for device in devices)
        ]
        self.roster = Roster(self.runners, cast(Any, [self]), self.monitor, self.changed, self.ended.append)

    def changed(self) -> None:
        self.changes += 1

    def look(self) -> None:
        self.roster.update()

    def serves(self, runner: RespawningRunner) -> bool:
        """This stands for a slot of none of them."""
        return False

    def kill(self, index: int) -> None:
        """As the kernel does it, and its slot has noticed."""
        seat = self.runners[index].seat(0)
        os.kill(seat.pid, signal.SIGKILL)
        wait_until(lambda: not self.runners[index].lives(0), "its end to be told")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(respawning, "SETUP_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(respawning, "OUT_PAUSES", (0.05, 0.05, 60.0))
    with closing(Guardian()) as guardian, ThreadPoolExecutor(1) as spawner:
        stage = Stage(tmp_path, guardian, spawner)
        yield stage
        for one in stage.runners:
            one.close()


def states(stage: Stage) -> list[str | None]:
    return [one.out for one in stage.runners]


def respawn(stage: Stage, index: int) -> bool:
    return stage.runners[index].respawn(0, lambda seconds: None)


def test_one_that_cannot_be_set_up_again_goes_out_alone_and_is_tried_at_growing_pauses(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    first = stage.runners[0]
    for one in stage.runners:
        one.set_up()
    stage.bad.touch()
    stage.kill(0)
    assert not respawn(stage, 0)
    reason = "its predictor could not be set up again: Predictor errored during setup: CUDA error"
    assert states(stage) == [reason, None]
    assert stage.failed == ["runner 0"] * 3 and stage.changes == 1 and stage.ended == []
    assert f"runner 0 on GPU 0 is out: {reason}" in caplog.text
    assert not respawn(stage, 0), "a turn does not try it again"
    assert len(stage.failed) == 3

    assert not first.try_again(lambda seconds: None), "it is too early"
    assert len(stage.failed) == 3
    first._again_at = 0.0
    assert not first.try_again(lambda seconds: None)
    assert states(stage) == ["Predictor errored during setup: CUDA error", None]
    assert len(stage.failed) == 4 and not first.try_again(lambda seconds: None), "it is too early again"
    assert len(stage.failed) == 4

    stage.bad.unlink()
    first._again_at = 0.0
    took: list[float] = []
    assert first.try_again(took.append)
    assert states(stage) == [None, None] and first.lives(0) and len(took) == 1
    assert "runner 0 on GPU 0 is back" in caplog.text and stage.changes == 2


def test_when_none_is_left_that_is_said_with_the_reason(stage: Stage) -> None:
    for one in stage.runners:
        one.set_up()
    stage.bad.touch()
    stage.kill(0)
    stage.kill(1)
    assert not respawn(stage, 0) and stage.ended == []
    assert not respawn(stage, 1)
    assert stage.ended == [f"no slot is left: {stage.runners[0].out}"]


def test_a_gpu_that_is_gone_ends_a_setup_and_the_pauses_between_setups(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(respawning, "SETUP_PAUSES", (60.0,))
    monkeypatch.setattr(respawning, "LOOK", 0.02)
    [one, _] = stage.runners
    one.set_up()
    stage.bad.touch()
    stage.kill(0)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(respawn(stage, 0)))
    thread.start()
    wait_until(lambda: stage.failed, "the first of the setups to fail")
    one.lose("GPU 0: GPU is lost")
    thread.join(5)
    assert answers == [False] and states(stage) == ["GPU 0: GPU is lost", None]
    assert not one.try_again(lambda seconds: None), "its GPU is gone"
    one.regain()
    assert states(stage) == ["it is to be set up again, after GPU 0: GPU is lost", None]
    stage.bad.unlink()
    assert one.try_again(lambda seconds: None) and states(stage) == [None, None]


def test_a_process_that_cannot_be_killed_is_left_behind_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that is stuck in a driver."""
    (tmp_path / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    (tmp_path / "predict.py").write_text(MODEL)
    real_kill: Callable[..., None] = os.killpg
    monkeypatch.setattr(runner, "KILL_PATIENCE", 0.2)
    monkeypatch.setattr(os, "killpg", lambda group, number: None)
    monkeypatch.setattr(kin, "_kill_one", lambda pid, born: None)
    monkeypatch.setattr(kin.kill_kin, "__defaults__", (0.1,))
    with closing(Guardian()) as guardian, caplog.at_level(logging.ERROR):
        command = RunnerCommand(sys.executable, str(tmp_path), dict(os.environ))
        stuck = Runner(command, guardian)
        process = Process.read(stuck.pid)
        stuck.setup(command, lambda lines: None, 30)
        stuck.end()
        assert stuck.ended and stuck.exitcode == -signal.SIGKILL
        assert process is not None and process.alive
        assert f"runner {stuck.pid}: it or what it started was killed and does not end" in caplog.text
        real_kill(stuck.pid, signal.SIGKILL)
        stuck._process.wait()
