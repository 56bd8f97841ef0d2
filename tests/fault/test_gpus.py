"""GPUs that fail under slots: theirs go out and nothing else, their work is done elsewhere, and they come back.

NVML is a fake at its binding; everything else is real.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.gpus import Machine, uuid
from tests.support.processes import Child, wait_until
from tests.support.producer import Request
from tests.support.servers import free_port

pytestmark = pytest.mark.ours


class Host:
    """A worker on a machine with GPUs, with a bridge."""

    def __init__(self, fleet: FleetFactory, machine: Machine, model: str | Path = "modes", **options: Any) -> None:
        self.machine = machine
        self.port = free_port()
        options = {"lease": 3, "cancel_grace": 1, "metrics_port": self.port, **options}
        self.fleet: Fleet = fleet(model, start=False, **options)
        self.fleet.start_bridge(metrics_port=free_port())
        self.worker: Child = self.fleet.start_worker(gpus=options.get("gpus", "auto"), env=machine.variables)

    def run(self, *words: str) -> tuple[int, str]:
        """A command of ours on this host."""
        command = [sys.executable, "-m", "cog_celery", *words]
        env = self.fleet.environment({}, {})
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        return ran.returncode, ran.stdout + ran.stderr

    def slots(self) -> list[Mapping[str, Any]]:
        """As `cog-celery status` shows them."""
        status, said = self.run("status", "--queue", self.fleet.queue, "--output", "json")
        assert status == 0, said
        [queue] = json.loads(said)["queues"]
        return [slot for one in queue["processes"] if one["role"] == "worker" for slot in one["slots"]]

    def states(self) -> list[str]:
        return [str(slot["state"]) for slot in self.slots()]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return answer.read().decode()  # type: ignore[no-any-return]

    def wait_idle(self, slots: int) -> None:
        wait_until(lambda: self.fleet.credits() == slots, f"{slots} idle slots", 30)

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.worker.text(), f"{line!r} in the worker's log", 40)

    def running_on(self, index: int, seconds: float) -> Request:
        """A prediction that runs on that GPU of two; one runs on the other, too."""
        producer, queue = self.fleet.producer, self.fleet.queue
        requests = [producer.send({"mode": "sleeps", "seconds": seconds}) for _ in range(2)]
        for request in requests:
            producer.wait_for(request, lambda response: True)
        for line in self.fleet.client.xpending_range(queue, queue, "-", "+", 2):
            if str(line["consumer"]).endswith(f".{index}"):
                [request] = [one for one in requests if one.entry == line["message_id"]]
                return request
        raise AssertionError("nothing runs there")


def test_a_gpu_that_is_lost_takes_its_slot_out_and_nothing_else_until_it_is_there_again(
    fleet: FleetFactory, tmp_path: Path
) -> None:
    host = Host(fleet, Machine(tmp_path, None, None))
    host.wait_idle(2)
    producer = host.fleet.producer
    outputs = [producer.send({"mode": "identity", "seconds": 0.2}) for _ in range(4)]
    assert {producer.wait(one)["output"]["gpu"] for one in outputs} == {uuid(0), uuid(1)}

    request = host.running_on(1, 3)
    host.machine.change(1, error="GPU_IS_LOST")
    host.wait_for("slot 1 on GPU 1 is out: GPU 1: GPU is lost")
    response = producer.wait(request, timeout=15)
    assert (response["status"], response["output"]) == ("succeeded", "world"), "it ran on the other GPU"
    assert re.search(rf"reclaimed from \S+\.1: attempt 2.*{request.id}", host.fleet.log()), "which counts as an attempt"
    assert producer.predict({"mode": "identity"})["output"]["gpu"] == uuid(0)
    host.wait_idle(1)

    lost = host.slots()[1]
    assert (lost["state"], lost["gpu"], lost["devices"]) == ("out", "1", uuid(1))
    assert lost["reason"] == "GPU 1: GPU is lost"
    status, shown = host.run("status", "--queue", host.fleet.queue)
    assert status == 0 and "slot 1 out: GPU 1: GPU is lost" in shown
    told = host.metrics()
    assert re.search(r'cog_celery_slots\{queue="\S+",state="out"\} 1.0', told)
    assert f'cog_celery_gpu_well{{gpu="1",uuid="{uuid(1)}"}} 0.0' in told
    assert f'cog_celery_gpu_well{{gpu="0",uuid="{uuid(0)}"}} 1.0' in told
    assert f'cog_celery_gpu_memory_used_bytes{{gpu="0",uuid="{uuid(0)}"}}' in told
    assert f'cog_celery_gpu_memory_used_bytes{{gpu="1",uuid="{uuid(1)}"}}' not in told
    assert host.run("health", "--queue", host.fleet.queue, "--role", "worker", "--ready")[0] == 0
    assert len(host.fleet.runners()) == 1

    host.machine.change(1, error=None)
    host.wait_for("slot 1 on GPU 1 is back")
    host.wait_idle(2)
    assert host.states() == ["idle", "idle"]

    host.machine.wait_listening(0, 1)
    host.machine.event(1, 79)  # while it is idle
    host.wait_for("slot 1 on GPU 1 is out: GPU 1: Xid 79")
    host.wait_idle(1)
    host.machine.wait_listening(0)  # what happens while NVML is opened anew, no driver tells
    host.machine.event(0, 48)
    host.wait_for("no slot is left: GPU 0: Xid 48")
    assert host.worker.wait() == 1


def test_a_process_that_dies_of_its_gpu_is_not_the_models_failure_and_its_request_not_tried_for_ever(
    fleet: FleetFactory, tmp_path: Path
) -> None:
    """Its death is known before the driver's word, and so is the model's exception."""
    machine = Machine(tmp_path, None, None)
    machine.change(0, old=True)  # no events: it is looked at every 5 s
    machine.change(1, old=True)
    host = Host(fleet, machine, max_attempts=1)
    host.wait_idle(2)
    request = host.running_on(1, 2)
    [pid] = [
        process.pid
        for process in host.fleet.runners()
        if uuid(1).encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    ]
    host.machine.change(1, error="UNKNOWN")
    os.kill(pid, signal.SIGKILL)
    response = host.fleet.producer.wait(request, timeout=15)
    assert response["error"].startswith("Prediction failed: it was lost with its worker 1 times"), response
    host.wait_for("slot 1 on GPU 1 is out: GPU 1: Unknown Error")
    assert "its GPU failed" in host.worker.text()
    released = r'predictions_total\{fault="",outcome="released"'
    wait_until(lambda: re.search(released, host.metrics()), "the attempt to be counted")
    # And a model that fails on a GPU that is well has failed.
    assert host.fleet.producer.predict({"mode": "raises"})["status"] == "failed"


def test_all_that_runs_at_once_on_a_gpu_that_is_lost_runs_elsewhere_and_all_of_its_slots_come_back(
    fleet: FleetFactory, tmp_path: Path
) -> None:
    """A model of three predictions at once: six slots on two GPUs."""
    host = Host(fleet, Machine(tmp_path, None, None), "concurrent", dialect="cog-0.6")
    host.wait_idle(6)
    producer = host.fleet.producer
    requests = [producer.send({"mode": "sleeps", "text": str(number), "seconds": 3}) for number in range(6)]
    for request in requests:
        producer.wait_for(request, lambda response: True)
    host.machine.change(0, error="GPU_IS_LOST")
    responses = [producer.wait(request, timeout=20) for request in requests]
    assert {(one["status"], one["output"]) for one in responses} == {("succeeded", str(text)) for text in range(6)}
    assert len({one["metrics"]["pid"] for one in responses}) == 1, "the other runner"
    host.wait_for("slot 0, 1, 2 on GPU 0 is out")
    assert host.states() == ["out"] * 3 + ["idle"] * 3
    host.machine.change(0, error=None)
    host.wait_idle(6)
    assert host.states() == ["idle"] * 6


MODEL = """
import os, time
from cog import BasePredictor

class Predictor(BasePredictor):
    def setup(self) -> None:
        if os.path.exists(os.environ["BAD"]) and "{bad}" in os.environ["CUDA_VISIBLE_DEVICES"]:
            raise RuntimeError("CUDA error: out of memory")

    def predict(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"] + " " + os.environ["CUDA_DEVICE_ORDER"]
"""


def test_a_slot_that_cannot_be_set_up_is_out_from_the_start_and_tried_again(
    fleet: FleetFactory, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    (folder / "predict.py").write_text(MODEL.format(bad="MIG-10aa"))
    machine = Machine(tmp_path, None, (0, 1), None)
    machine.change(2, error="GPU_IS_LOST")
    host = Host(fleet, machine, folder, env={"BAD": str(bad)})
    host.wait_for("is ready: 2 of 4 slots")
    host.wait_for("slot 1 on GPU 1:0 is out: Predictor errored during setup: CUDA error: out of memory")
    host.wait_for("runner 3 on GPU 2 is out: GPU 2: GPU is lost")
    host.wait_idle(2)
    assert host.states() == ["idle", "out", "idle", "out"]
    assert "cog_celery_setup_failures_total{queue" in host.metrics()
    seen = {host.fleet.producer.predict({})["output"] for _ in range(3)}
    assert seen <= {f"{uuid(0)} PCI_BUS_ID", "MIG-11aa-0000 PCI_BUS_ID"}
    bad.unlink()
    host.wait_for("slot 1 on GPU 1:0 is back")
    host.wait_idle(3)
    machine.change(2, error=None)
    host.wait_idle(4)


def test_all_gpus_lost_at_the_start_is_the_end_of_the_worker(fleet: FleetFactory, tmp_path: Path) -> None:
    machine = Machine(tmp_path, None, None)
    machine.change(0, error="GPU_IS_LOST")
    machine.change(1, error="GPU_IS_LOST")
    host = Host(fleet, machine)
    assert host.worker.wait() == 1
    assert "GPU 0: GPU is lost" in host.worker.text()
