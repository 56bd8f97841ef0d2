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

from cog_celery.delivery.link import Link
from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.requests import PredictionRequest
from cog_celery.delivery.stream import Delivery, Entry, Held
from cog_celery.errors import RunnerProtocolError
from cog_celery.gpus.assigning import Share
from cog_celery.gpus.finding import Device
from cog_celery.gpus.monitor import Monitor
from cog_celery.runners import kin, runner
from cog_celery.runners.guardian import Guardian
from cog_celery.runners.runner import Runner, RunnerCommand
from cog_celery.runners.sharing import Seat, SharedRunner
from cog_celery.slots import respawning
from cog_celery.slots.holding import Current, Desk
from cog_celery.slots.respawning import RespawningRunner
from cog_celery.slots.serving import Serving, _Work
from cog_celery.slots.slot import Slot
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


Unkillable = tuple[RunnerCommand, Callable[..., None]]


@pytest.fixture
def unkillable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unkillable:
    """A runner's command, whose process we cannot kill, as one that is stuck in a driver; and what can."""
    (tmp_path / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    (tmp_path / "predict.py").write_text(MODEL)
    real_kill: Callable[..., None] = os.killpg
    monkeypatch.setattr(runner, "KILL_PATIENCE", 0.2)
    monkeypatch.setattr(os, "killpg", lambda group, number: None)
    monkeypatch.setattr(kin, "_kill_one", lambda pid, born: None)
    monkeypatch.setattr(kin.kill_kin, "__defaults__", (0.1,))
    return RunnerCommand(sys.executable, str(tmp_path), dict(os.environ)), real_kill


def test_a_process_that_cannot_be_killed_is_left_behind_and_said(
    unkillable: Unkillable, caplog: pytest.LogCaptureFixture
) -> None:
    command, real_kill = unkillable
    with closing(Guardian()) as guardian, caplog.at_level(logging.ERROR):
        stuck = Runner(command, guardian)
        process = Process.read(stuck.pid)
        stuck.setup(command, lambda lines: None, 30)
        os.kill(stuck.pid, signal.SIGSTOP)  # or it would end by itself when nobody is there to listen to it
        stuck.end()
        assert stuck.ended and stuck.exitcode == -signal.SIGKILL
        assert process is not None and process.alive
        assert f"runner {stuck.pid}: it or what it started was killed and does not end" in caplog.text
        real_kill(stuck.pid, signal.SIGKILL)
        stuck._process.wait()


@pytest.mark.parametrize("shared", [False, True])
def test_who_waits_for_a_process_that_cannot_be_killed_is_told_so(unkillable: Unkillable, shared: bool) -> None:
    """Or else its slot would keep its request for ever."""
    command, real_kill = unkillable
    told: list[Exception] = []
    with closing(Guardian()) as guardian:
        stuck = Runner(command, guardian)
        try:
            stuck.setup(command, lambda lines: None, 30)
            os.kill(stuck.pid, signal.SIGSTOP)
            one = SharedRunner(stuck, 1) if shared else None
            who: Runner | Seat = stuck if one is None else one.seats[0]

            def wait() -> None:
                with pytest.raises(RunnerProtocolError, match="its process does not end") as raised:
                    while True:
                        assert who.wait(None) == []
                told.append(raised.value)

            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            who.kill()
            thread.join(5)
            assert told, "it waits for ever"
            who.end()
            if one is not None:
                one.close()
            assert who.ended
        finally:
            real_kill(stuck.pid, signal.SIGKILL)
            stuck._process.wait(5)


def test_a_group_is_forgotten_while_its_number_is_still_its_own(tmp_path: Path) -> None:
    """Once it is reaped, the number may be another's, whom the guardian would kill."""

    class Watching(Guardian):
        def forget(self, group: int, mark: str = "") -> None:
            ended.append(os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT))
            super().forget(group, mark)

    ended: list[Any] = []
    (tmp_path / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    (tmp_path / "predict.py").write_text(MODEL)
    with closing(Watching()) as guardian:
        one = Runner(RunnerCommand(sys.executable, str(tmp_path), dict(os.environ)), guardian)
        one.end()
    assert [end.si_pid for end in ended] == [one.pid] and one.exitcode == -signal.SIGKILL


class Counter:
    """A slot's queue, as far as it is asked here."""

    name = "q"

    def __init__(self) -> None:
        self.credits: list[str] = []
        self.released: list[tuple[Held, bool]] = []

    def put_credit(self, link: Link, slot: str) -> bool:
        self.credits.append(slot)
        return True

    def release(self, link: Link, held: Held, lease: float, *, ran: bool = False, counts: bool = False) -> bool:
        self.released.append((held, counts))
        return True


def shop(queue: Counter) -> Any:
    nothing = SimpleNamespace(add=lambda *_: None, end=lambda *_: None)
    return SimpleNamespace(
        settings=SimpleNamespace(redis_url="redis://127.0.0.1:1", turn=1.0),
        agreed=SimpleNamespace(lease=10.0),
        queue=queue,
        outage=None,
        draining=threading.Event(),
        giving_up=threading.Event(),
        tickets_wait=lambda: False,
        telling=nothing,
        rows=nothing,
        on_finished=lambda finished: None,
    )


def test_a_slot_that_came_back_while_its_last_turn_let_go_of_it_is_found_by_the_heartbeat() -> None:
    queue = Counter()
    model = SimpleNamespace(out=None, unfit=None, ended=lambda seat: False, lives=lambda seat: True)
    slot = Slot(0, "w~00000001", shop(queue), cast(Any, model), 0, Share())
    slot.mend()
    assert queue.credits == [], "it was never idle: its worker is not ready yet"
    slot.begin()
    assert queue.credits == [slot.name]
    slot.idle_since = None  # its turn ended when its GPU was not well, and put no credit down
    with slot._busy:
        slot.heed_health()  # its GPU is well again, but the turn has not quite ended
    assert queue.credits == [slot.name]
    slot.mend()
    wait_until(lambda: len(queue.credits) == 2, "its credit")
    wait_until(lambda: slot.idle_since is not None and not slot.busy, "it to be idle")
    slot.mend()
    assert len(queue.credits) == 2


def test_what_timed_out_on_a_gpu_that_is_not_well_is_given_back_as_an_attempt() -> None:
    """Or else a request that makes GPUs hang would go from one to the next for ever."""
    queue = Counter()
    model = SimpleNamespace(ended=lambda seat: True, look_at_gpus=lambda late: "GPU 1: GPU is lost")
    serving = Serving(0, "1", shop(queue), cast(Any, model), 0, cast(Any, None))
    current = Current(Delivery(Entry("q", "1-0"), 1, b"{}"), Desk(cast(Any, None), "w~00000001.0"))
    execution = dict.fromkeys(("predicting", "first_output", "last_output", "unshown"))
    current.execution = cast(Any, SimpleNamespace(reason="timeout", uploading=False, **execution))
    prediction = Prediction()
    prediction.start(0.0)
    prediction.fail(1.0, "Prediction timed out", "platform")
    outlet = SimpleNamespace(fetching=None, uploads=None, bytes_in=0, bytes_out=0)
    work = _Work(current, PredictionRequest(), prediction, cast(Any, outlet), "", 0.0, 0.0)
    assert serving._end(work, 0.0) is None
    assert queue.released == [(current.held, True)]
    serving.close()
