"""A runner that dies takes its prediction along, never its worker, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time

import pytest

from cog_celery.delivery.stream import SLOT
from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import Process, wait_until
from tests.support.producer import Request, bare, failed, processing, succeeded
from tests.support.web import Web, reply

pytestmark = pytest.mark.ours


def died(exitcode: int) -> str:
    return f"Prediction failed for an unknown reason. It might have run out of memory? (exitcode {exitcode})"


def owner(fleet: Fleet) -> str:
    """Of the first entry that is pending."""
    lines = fleet.client.xpending_range(fleet.queue, fleet.queue, "-", "+", 1)
    return "".join(str(line["consumer"]) for line in lines)


def started(fleet: Fleet, input: dict[str, object]) -> tuple[Request, int]:
    """A running prediction, and the process it runs in."""
    pid = fleet.producer.predict({"mode": "identity"})["output"]["pid"]
    request = fleet.producer.send(input)
    fleet.producer.wait_for(request, lambda response: True)
    return request, pid


def test_kill_9_in_the_middle_of_a_prediction_is_a_failure_at_once_and_the_next_one_succeeds(
    modes: Fleet, monitor: Monitor
) -> None:
    request, pid = started(modes, {"mode": "sleeps", "seconds": 30})
    since = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    modes.producer.wait(request)
    assert time.monotonic() - since < 5, "a second, where nothing else runs"
    sequence = [bare(snapshot.value) for snapshot in monitor.sets(request.response_queue)]
    assert sequence == [processing(), failed(died(-9))]
    after = modes.producer.predict({"mode": "identity"})["output"]
    assert after["pid"] != pid
    assert after["setups"] == 1
    assert "SIGKILL" in modes.workers[0].text()


def test_one_that_dies_before_it_takes_its_input_has_another_fetch_the_files(fleet: FleetFactory) -> None:
    fleet_ = fleet("reads_file")
    [runner] = fleet_.runners()
    os.kill(runner.pid, signal.SIGSTOP)
    with Web() as web:
        web.on("/in.txt", reply(200, b"content"))
        request = fleet_.producer.send({"file": f"{web.url}/in.txt"})
        wait_until(lambda: SLOT.fullmatch(owner(fleet_)), "the claim")
        os.kill(runner.pid, signal.SIGKILL)
        assert fleet_.producer.wait(request)["output"].startswith("in.txt content")
    assert "Traceback" not in fleet_.log()


@pytest.mark.parametrize(
    ("input", "exitcode", "logs"),
    [
        ({"mode": "os_exit", "count": 5}, 5, ["last words"]),
        ({"mode": "sys_exit", "count": 3}, 3, None),
        ({"mode": "kills_itself"}, -9, []),
        ({"mode": "segfault"}, -11, None),
    ],
)
def test_a_predictor_that_ends_its_process_fails_with_the_exit_code(
    modes: Fleet, input: dict[str, object], exitcode: int, logs: list[str] | None
) -> None:
    response = modes.producer.predict(input)
    assert response["status"] == "failed"
    assert response["error"] == died(exitcode)
    if logs is not None:
        assert response["logs"] == logs
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_output_and_logs_of_a_killed_one_are_kept(modes: Fleet) -> None:
    request, pid = started(modes, {"mode": "prints_and_yields", "text": "x", "seconds": 30})
    modes.producer.wait_for(request, lambda response: bool(response["output"]) and bool(response["logs"]))
    os.kill(pid, signal.SIGKILL)
    assert bare(modes.producer.wait(request)) == failed(died(-9), ["x 0"], ["x 0"])


@pytest.mark.parametrize("pause", [2.0, 0.05, 0.0])
def test_one_that_dies_while_idle_costs_no_prediction(modes: Fleet, monitor: Monitor, pause: float) -> None:
    """Found dead before predict was entered, it is replaced; even when the request comes as it dies."""
    modes.wait_idle()
    pid = modes.producer.predict({"mode": "identity"})["output"]["pid"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(pause)
    response = modes.producer.predict({"mode": "identity"})
    assert response["status"] == "succeeded", response
    assert response["output"]["pid"] != pid


def test_what_a_model_started_dies_with_its_runner(modes: Fleet) -> None:
    request, pid = started(modes, {"mode": "starts_a_child", "seconds": 30})
    response = modes.producer.wait_for(request, lambda response: bool(response["logs"]))
    child = Process.read(int(response["logs"][0].split()[1]))
    assert child is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not child.alive, "the model's child to end", timeout=3)
    assert modes.producer.wait(request)["status"] == "failed"


def test_a_slot_whose_runner_dies_holds_no_other_slot_up(fleet: FleetFactory) -> None:
    two = fleet("modes", slots=2)
    long = [two.producer.send({"mode": "identity", "seconds": 1.5}) for _ in range(2)]
    for request in long:
        two.producer.wait_for(request, lambda response: True)
    first, second = sorted(process.pid for process in two.runners())
    os.kill(first, signal.SIGKILL)
    statuses = sorted(two.producer.wait(request)["status"] for request in long)
    assert statuses == ["failed", "succeeded"]
    pids = {two.producer.predict({"mode": "identity", "seconds": 0.1})["output"]["pid"] for _ in range(3)}
    assert second in pids or len(pids) >= 1
    two.wait_ready(1)
    assert len(two.runners()) == 2


def test_a_runner_that_dies_while_its_slot_is_idle_is_replaced_before_it_is_needed(fleet: FleetFactory) -> None:
    one = fleet("modes", lease=1, turn=0)
    (old,) = one.runners()
    os.kill(old.pid, signal.SIGKILL)
    wait_until(lambda: [runner for runner in one.runners() if runner != old], "another runner")
    one.wait_ready(1)
    since = time.monotonic()
    assert one.producer.predict({"mode": "identity"})["output"]["pid"] != old.pid
    assert time.monotonic() - since < 5
