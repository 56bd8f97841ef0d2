"""Which faults of GPUs are noticed, of whom, and when they are over; NVML is a fake at its binding."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cog_celery.gpus import monitor as module
from cog_celery.gpus.finding import Device, find
from cog_celery.gpus.monitor import Monitor
from tests.support.gpus import DOUBLE_BIT, Machine, uuid, without_nvml
from tests.support.processes import wait_until


class Stage:
    """A machine, its NVML in this process, and a monitor of all its GPUs that runs."""

    def __init__(self, machine: Machine, nvml: Any, devices: Sequence[Device]) -> None:
        self.machine, self.nvml = machine, nvml
        self.monitor = Monitor(devices)
        self.told = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def tell(self) -> None:
        self.told += 1
        self.meanwhile()

    @property
    def troubles(self) -> dict[str, str]:
        return {label: trouble for label, _, trouble in self.monitor.states() if trouble is not None}

    def wait(self, **troubles: str) -> None:
        """`_0`, `_1_1`: the labels `0`, `1:1`."""
        wanted = {label[1:].replace("_", ":"): trouble for label, trouble in troubles.items()}
        wait_until(lambda: self.troubles == wanted, f"{wanted}, and not {self.troubles}", 5)


Make = Callable[..., Stage]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    closed = threading.Event()
    threads: list[threading.Thread] = []
    monkeypatch.setattr(module, "EVERY", 0.1)
    monkeypatch.setattr(module, "GONE_PAUSES", (0.1,))
    monkeypatch.setattr(module, "FAULT_PAUSES", (0.3, 60.0))

    def make(*parts: tuple[int, ...] | None, change: Callable[[Machine], None] = lambda machine: None) -> Stage:
        machine = Machine(tmp_path, *parts)
        nvml = machine.install(monkeypatch)
        devices = [leaf for device in find().devices for leaf in device.leaves]
        change(machine)
        stage = Stage(machine, nvml, devices)
        thread = threading.Thread(target=stage.monitor.run, args=(closed, stage.tell), name="gpus")
        threads.append(thread)
        thread.start()
        wait_until(lambda: nvml.sessions, "NVML to be opened")
        return stage

    yield make
    closed.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def wait_for_events_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 60.0)


@pytest.mark.parametrize(
    ("error", "said"),
    [("GPU_IS_LOST", "GPU is lost"), ("UNKNOWN", "Unknown Error"), ("NOT_FOUND", "Not Found")],
)
def test_a_gpu_that_does_not_answer_is_out_until_it_does(stage: Make, error: str, said: str) -> None:
    two = stage(None, None)
    two.machine.change(1, error=error)
    two.wait(_1=f"GPU 1: {said}")
    wait_until(lambda: two.told == 1, "that to be told")
    two.machine.change(1, error=None)
    two.wait()
    wait_until(lambda: two.told == 2, "that to be told")
    two.machine.event(1, 79)  # and its events are heard again
    two.wait(_1="GPU 1: Xid 79, it has fallen off the bus")


def test_one_that_is_lost_at_the_start_is_watched_all_the_same(stage: Make) -> None:
    two = stage(None, None, change=lambda machine: machine.change(0, error="GPU_IS_LOST"))
    two.wait(_0="GPU 0: GPU is lost")
    two.machine.change(0, error=None)
    two.wait()


def test_a_loss_is_noticed_by_the_wait_itself(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_events_alone(monkeypatch)
    two = stage(None, None)
    two.machine.wait_listening(0, 1)
    two.machine.change(0, error="GPU_IS_LOST")
    two.wait(_0="GPU 0: GPU is lost")


def test_a_fault_that_is_reported_is_out_for_a_pause_that_grows(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULT_PAUSES", (1.5, 60.0))
    two = stage(None, None)
    two.machine.wait_listening(0, 1)
    two.machine.event(0, 48)
    two.wait(_0="GPU 0: Xid 48, a memory error that could not be corrected")
    two.wait()
    two.machine.wait_listening(0, 1)
    two.machine.event(0, 0, kind=DOUBLE_BIT)
    two.wait(_0="GPU 0: a memory error that could not be corrected")
    assert two.monitor._troubles[uuid(0)].again_at - time.monotonic() > 30


def test_what_is_reported_while_a_fault_is_told_is_not_lost(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """To tell may take as long as Redis is out of reach."""
    monkeypatch.setattr(module, "FAULT_PAUSES", (60.0,))
    two = stage(None, None)
    two.machine.wait_listening(0, 1)
    two.meanwhile = lambda: two.machine.event(0, 48) if two.told == 1 else None
    two.machine.event(1, 79)
    two.wait(
        _0="GPU 0: Xid 48, a memory error that could not be corrected", _1="GPU 1: Xid 79, it has fallen off the bus"
    )


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 94])
def test_what_a_program_did_is_no_fault_of_the_gpu(stage: Make, xid: int, caplog: pytest.LogCaptureFixture) -> None:
    one = stage(None)
    one.machine.wait_listening(0)
    one.machine.event(0, xid)
    wait_until(lambda: f"GPU 0 reports Xid {xid}" in caplog.text, "the line")
    one.machine.event(0, 999)  # of which nothing is known
    one.wait(_0="GPU 0: Xid 999")


def test_of_a_gpu_in_mig_mode_an_instance_fails_alone_if_that_is_said(
    stage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAULT_PAUSES", (60.0,))
    split = stage((0, 1), None)
    split.machine.wait_listening(0, 1)
    session = split.nvml._generation
    split.machine.event(0, 95, instance=2)  # instances are numbered from 1 in the fake, places from 0
    split.wait(_0_1="GPU 0:1: Xid 95, a memory error that was not contained")
    wait_until(lambda: split.nvml._generation > session, "NVML to be opened without it")
    split.machine.wait_listening(0, 1)
    split.machine.event(0, 79)
    wait_until(lambda: set(split.troubles) == {"0:0", "0:1"}, "the whole GPU to be out")


def test_a_driver_that_wants_a_reset_is_believed(stage: Make) -> None:
    one = stage(None)
    one.machine.change(0, action=4)  # drain, and reset when that suits
    one.machine.event(0, 13)
    assert one.monitor.trouble([uuid(0)]) is None
    one.machine.change(0, action=1)
    one.wait(_0="GPU 0: its driver says that it must be reset")
    one.machine.change(0, action=0)
    one.wait()


def test_without_events_it_is_looked_at(stage: Make) -> None:
    one = stage(None, change=lambda machine: machine.change(0, old=True))
    one.machine.change(0, error="GPU_IS_LOST")
    one.wait(_0="GPU 0: GPU is lost")


def test_one_that_is_out_is_not_held_open_so_that_it_can_be_reset(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULT_PAUSES", (60.0,))
    two = stage(None, None)
    two.machine.wait_listening(0, 1)
    two.machine.event(1, 79)
    wait_until(lambda: two.nvml.held == {uuid(0)}, "GPU 1 to be let go of")
    assert [usage.label for usage in two.monitor.read()] == ["0"]


def test_an_nvml_that_cannot_be_opened_again_says_nothing_of_those_that_were_well(
    stage: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two = stage(None, None)
    two.machine.state["driver"] = False  # for those that come now
    two.machine.change(1, error="GPU_IS_LOST")
    two.wait(_1="GPU 1: GPU is lost")
    wait_until(lambda: "GPUs are not watched" in caplog.text, "that to be said")
    assert set(two.troubles) == {"1"} and two.monitor.trouble([uuid(0)]) is None
    two.machine.state["driver"] = True
    two.machine.change(1, error=None)
    two.wait()
    two.machine.change(0, error="UNKNOWN")
    two.wait(_0="GPU 0: Unknown Error")


def test_a_question_is_answered_as_it_is_now_or_a_moment_later(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA fails a process before the driver has said why."""
    wait_for_events_alone(monkeypatch)
    monkeypatch.setattr(module, "LATE", 10.0)
    two = stage(None, None)
    two.machine.wait_listening(0, 1)
    assert two.monitor.trouble([uuid(0), uuid(1)]) is None
    timer = threading.Timer(0.1, two.machine.event, (1, 79))
    timer.start()
    assert two.monitor.trouble([uuid(0), uuid(1)], late=True) == "GPU 1: Xid 79, it has fallen off the bus"
    timer.join()
    two.machine.change(0, error="UNKNOWN")
    assert two.monitor.trouble([uuid(0)]) == "GPU 0: Unknown Error"


def test_without_nvml_nothing_is_watched_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    without_nvml(monkeypatch)
    monitor = Monitor([Device("0", "0")])
    assert monitor.open() == "nvidia-ml-py is not installed"
    monitor.run(threading.Event(), lambda: None)
    assert monitor.trouble(["0"], late=True) is None


def test_a_driver_that_hangs_holds_up_neither_a_slot_nor_a_scraper(
    stage: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    monkeypatch.setattr(module, "LATE", 0.1)
    two = stage(None, None)
    two.machine.change(1, error="UNKNOWN")
    two.wait(_1="GPU 1: Unknown Error")
    hangs, answers = threading.Event(), threading.Event()
    really = two.nvml.nvmlDeviceGetMemoryInfo

    def never(handle: Any) -> Any:
        if threading.current_thread().name == "gpus":
            return really(handle)
        hangs.set()
        return answers.wait(30)

    monkeypatch.setattr(two.nvml, "nvmlDeviceGetMemoryInfo", never)
    try:
        for _ in range(2):  # the first of them may be who hangs
            assert two.monitor.trouble([uuid(0)], late=True) is None
            assert two.monitor.trouble([uuid(0), uuid(1)]) == "GPU 1: Unknown Error"
            assert two.monitor.read() == []
        assert hangs.is_set() and "NVML has not answered within 0.1 s" in caplog.text
    finally:
        answers.set()
