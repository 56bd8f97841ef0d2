"""Slots whose runner, files or time fail them, or that are stopped from outside: what was promised still holds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.conftest import FleetFactory, missing
from tests.integration.test_worker_events import client_app
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import wait_until
from tests.support.producer import Request, bare, canceled, failed, succeeded
from tests.support.web import Handler, Web

pytestmark = pytest.mark.ours

GRACE = 1.0
"""Of `modes`, seconds."""


def running(fleet: Fleet, input: dict[str, Any]) -> Request:
    request = fleet.producer.send(input)
    fleet.producer.wait_for(request, lambda response: True)
    return request


def runner(fleet: Fleet) -> int:
    """The process id of the only runner."""
    [process] = fleet.runners()
    return process.pid


# Snapshots in time


def test_a_single_yield_is_shown_at_once(modes: Fleet, monitor: Monitor) -> None:
    request = modes.producer.send({"mode": "yields", "text": "y", "count": 3, "seconds": 0.4})
    start, *shown, end = modes.producer.history(monitor, request)
    assert [len(snapshot.value["output"]) for snapshot in shown] == [1, 2, 3]
    # A stall of the machine may hit one; being late as a rule hits them all.
    assert min(one.time - start.time - 0.4 * i for i, one in enumerate(shown)) < 0.06
    assert shown[0].time - start.time < 0.4, "not only with the second one"
    assert len(end.value["output"]) == 3


def test_yields_a_tenth_of_a_second_apart_get_a_set_each(modes: Fleet, monitor: Monitor) -> None:
    request = modes.producer.send({"mode": "yields", "text": "y", "count": 10, "seconds": 0.1})
    history = modes.producer.history(monitor, request)
    lengths = {len(one.value["output"] or []) for one in history if one.value["status"] == "processing"}
    assert len(lengths - {0}) >= 6, "some may be hit by stalls of the machine"
    assert len(history) <= 12


def test_an_endless_burst_costs_a_bounded_number_of_sets(modes: Fleet, monitor: Monitor) -> None:
    request = modes.producer.send({"mode": "yields", "text": "y", "count": 200, "seconds": 0.005})
    history = modes.producer.history(monitor, request)
    assert len(history[-1].value["output"]) == 200
    assert 6 <= len(history) < 40


# Runners that do not answer, or not yet


def test_a_prediction_that_its_runner_does_not_even_accept_is_canceled_after_the_grace(modes: Fleet) -> None:
    modes.wait_ready(1)
    pid = modes.producer.predict({"mode": "identity"})["output"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    request = modes.producer.send({"mode": "hello"})
    wait_until(lambda: modes.pending() == 1, "the slot to have it")
    time.sleep(0.3)
    assert modes.producer.get(request) is None
    modes.producer.cancel(request)
    since = time.monotonic()
    response = modes.producer.wait(request, timeout=GRACE + 10)
    assert GRACE - 0.3 < time.monotonic() - since < GRACE + 5
    assert bare(response) == canceled()
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")


SLOW_TO_SET_UP = """
import os
import time

from cog import BasePredictor

DELAY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay")


class Predictor(BasePredictor):
    def setup(self) -> None:
        with open(DELAY) as file:
            time.sleep(float(file.read()))

    def predict(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"
"""


@pytest.fixture
def app(modes: Fleet) -> Iterator[Celery]:
    """An application that knows nothing of ours but the broker and its key prefix."""
    with client_app(modes.server.url) as app:
        yield app


def node(fleet: Fleet) -> str:
    """The Celery name of the first worker."""
    return f"{fleet.queue}@w0-{fleet.queue}"


@pytest.mark.parametrize("named", [True, False], ids=["by its id", "by its entry, for it has no id"])
def test_a_revoke_that_comes_while_a_slot_sets_its_runner_up_again_cancels_the_prediction(
    fleet: FleetFactory, tmp_path: Path, app: Celery, named: bool
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "cog.yaml").write_text('predict: "predict.py:Predictor"\n')
    (model / "predict.py").write_text(SLOW_TO_SET_UP)
    (model / "delay").write_text("0")
    one = fleet(model)
    (model / "delay").write_text("1.5")
    os.kill(runner(one), signal.SIGKILL)
    request = one.producer.send({"seconds": 30}, **({} if named else {"id": None}))
    wait_until(lambda: "ended between predictions" in one.log(), "the death to be noticed")
    [reply] = app.control.revoke(request.id or request.entry, destination=[node(one)], reply=True, timeout=1)
    assert one.producer.get(request) is None, "it was started before it was revoked"
    response = one.producer.wait(request, timeout=5)
    assert bare(response) == canceled(), reply


def test_a_slot_comes_back_when_the_folder_for_its_files_does(fleet: FleetFactory, tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    one = fleet("modes", env={"TMPDIR": str(folder)})
    pid = runner(one)
    while folder.exists():  # processes write their heartbeats there meanwhile
        shutil.rmtree(folder, ignore_errors=True)
    os.kill(pid, signal.SIGKILL)
    request = one.producer.send({"mode": "identity"})
    wait_until(lambda: "ERROR cog_celery.slots.respawning: runner 0" in one.log(), "the slot to fail", timeout=5)
    folder.mkdir()
    response = one.producer.wait(request, timeout=8)
    assert response["status"] == "succeeded" and response["output"]["pid"] != pid
    one.workers[0].check_running()
    one.wait_ready(1)
    assert one.producer.predict({"mode": "a_file", "text": "x"})["status"] == "succeeded"


# Time that is not the predictor's


def slowly(seconds: float) -> Any:
    def reply(handler: Handler) -> None:
        time.sleep(seconds)
        handler.answer(200)

    return reply


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 2 MB, and for 64 files and folders."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=64", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        missing("leave to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("model", "what"), [("reads_file", "The input file in a data: URL"), ("gives_out", "An output file")]
)
def test_a_full_disk_fails_what_needs_it_as_the_platforms_fault_and_the_slot_goes_on(
    small_disk: Path, fleet: FleetFactory, tmp_path: Path, model: str, what: str
) -> None:
    served = fleet(model, env={"TMPDIR": str(small_disk)})
    (tmp_path / "large").write_bytes(b"x" * 4_000_000)
    large, small = {"how": "yields as_is", "path": str(tmp_path / "large")}, {"how": "text", "path": "x"}
    if model == "reads_file":
        large, small = {"file": "data:," + "x" * 4_000_000}, {"file": "data:,x"}
    for _ in range(2):
        snapshot = served.producer.predict(large)
        assert snapshot["error"] == (
            f"{what} could not be stored: No space left on device. Make room on the worker's disk for temporary files."
        )
        assert snapshot["logs"] == []
        assert served.producer.predict(small)["status"] == "succeeded"
    wait_until(lambda: served.log().count("PlatformError") == 2, "both failures to be told of")
    assert not list(small_disk.rglob("large*")), "it takes up no room afterwards"
    wait_until(lambda: not list(small_disk.glob("cog-celery-runner-*/cog-celery-*")), "the last input to be removed")
    if model == "reads_file":
        with suppress(OSError):
            for number in range(100):
                (small_disk / str(number)).touch()
        assert served.producer.predict(small)["error"] == (
            "The input files could not be stored: No space left on device. "
            "Make room on the worker's disk for temporary files."
        )
        [heartbeat] = small_disk.glob("cog-celery-*/worker-*.json")
        beat = json.loads(heartbeat.read_bytes())["at"]
        wait_until(lambda: json.loads(heartbeat.read_bytes())["at"] > beat, "the next heartbeat all the same")
        (small_disk / "0").unlink()
        (small_disk / "1").unlink()
        (small_disk / "2").unlink()
        assert served.producer.predict(small)["status"] == "succeeded"


def test_a_temporary_folder_that_a_cleaner_has_taken_is_made_again(fleet: FleetFactory, tmp_path: Path) -> None:
    one = fleet("reads_file", env={"TMPDIR": str(tmp_path)})
    [folder] = tmp_path.glob("cog-celery-runner-*")
    pid = runner(one)
    folder.rmdir()
    assert one.producer.predict({"file": "data:,x"})["status"] == "succeeded"
    assert (runner(one), folder.stat().st_mode & 0o777) == (pid, 0o700)


def test_a_prediction_that_was_over_in_time_is_not_timed_out_by_its_slow_upload(fleet: FleetFactory) -> None:
    with Web() as web:
        web.on("*", slowly(2.5))
        one = fleet("modes", predict_timeout=2, upload_url=f"{web.url}/up")
        for input in (
            {"mode": "yields_files", "text": "f", "count": 1, "seconds": 0.1},
            {"mode": "a_file", "text": "f"},
        ):
            assert one.producer.predict(input)["status"] == "succeeded", input
        # One that is not over by then is timed out all the same.
        response = one.producer.predict({"mode": "yields_files", "text": "f", "count": 1, "seconds": 30})
        assert response == failed("Prediction timed out", response["output"])


# Stopped from outside


def test_a_shutdown_by_remote_control_finishes_what_runs_and_answers_it(fleet: FleetFactory, app: Celery) -> None:
    one = fleet("modes")
    request = running(one, {"mode": "yields", "text": "y", "count": 10, "seconds": 0.15})
    app.control.broadcast("shutdown", destination=[node(one)])
    assert one.workers[0].wait(10) == 0
    assert bare(one.producer.get(request) or {}) == succeeded([f"y {i}" for i in range(10)])
    one.check_nothing_left(but=one.bridges)
    assert one.announced() == 0 and one.depth() == 0
    assert "Error on stopping" not in one.log() and "Traceback" not in one.log()


def test_sigquit_releases_what_runs_for_another_worker(fleet: FleetFactory, monitor: Monitor) -> None:
    one = fleet("modes", lease=2)
    request = running(one, {"mode": "identity", "seconds": 1.5})
    one.workers[0].process.send_signal(signal.SIGQUIT)
    assert one.workers[0].wait(8) == 0
    one.check_nothing_left(but=one.bridges)
    [line] = one.client.xpending_range(one.queue, one.queue, "-", "+", 10)
    assert not str(line["consumer"]).endswith(".0"), "the dead slot still owns it"
    assert line["times_delivered"] == 1
    one.start_worker()
    assert one.producer.wait(request)["status"] == "succeeded"
    statuses = [snapshot.value["status"] for snapshot in monitor.sets(request.response_queue)]
    assert statuses == ["processing", "processing", "succeeded"]
    assert "Traceback" not in one.log()
