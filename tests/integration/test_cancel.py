"""Canceling: before the start, while waiting, and while running, whatever the predictor does."""

from __future__ import annotations

import time
from typing import cast

import pytest

from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.producer import Request, bare, canceled, processing, succeeded

pytestmark = pytest.mark.ours


def running(fleet: Fleet, input: dict[str, object], has: str = "") -> Request:
    """A request that has started; with `has`, one whose `output` or `logs` are there."""
    request = fleet.producer.send(input)
    fleet.producer.wait_for(request, lambda response: bool(response[has]) if has else True)
    return request


def cancel(fleet: Fleet, request: Request, timeout: float) -> dict[str, object]:
    """Cancel, and return the terminal snapshot, which must come within `timeout` seconds, or one more if the machine is
    busy.
    """
    since = time.monotonic()
    fleet.producer.cancel(request)
    response = bare(fleet.producer.wait(request))
    taken = time.monotonic() - since
    assert taken < timeout + 1.0, f"canceled after {taken:.2f} s"
    return response


def test_a_running_prediction_is_canceled_within_a_second(modes: Fleet) -> None:
    request = running(modes, {"mode": "sleeps", "seconds": 30})
    assert cancel(modes, request, 1.0) == canceled()


def test_a_canceled_snapshot_has_no_error(modes: Fleet) -> None:
    request = running(modes, {"mode": "sleeps", "seconds": 30})
    modes.producer.cancel(request)
    assert "error" not in modes.producer.wait(request)


def test_output_and_logs_so_far_stay_in_the_canceled_snapshot(modes: Fleet, monitor: Monitor) -> None:
    request = running(modes, {"mode": "prints_and_yields", "text": "x", "seconds": 30}, has="output")
    assert cancel(modes, request, 1.0) == canceled(["x 0"], ["x 0"])


@pytest.mark.parametrize("mode", ["sleeps_then_cleans_up", "yields_then_cleans_up"])
def test_finally_blocks_run_and_what_they_log_is_there(modes: Fleet, mode: str) -> None:
    request = running(modes, {"mode": mode, "seconds": 30}, has="logs")
    response = cancel(modes, request, 1.0)
    assert response["status"] == "canceled"
    assert response["logs"] == ["began", "cleaned up"]


def test_the_same_runner_serves_the_next_prediction(modes: Fleet) -> None:
    before = modes.producer.predict({"mode": "identity"})["output"]["pid"]
    request = running(modes, {"mode": "sleeps", "seconds": 30})
    cancel(modes, request, 1.0)
    assert modes.producer.predict({"mode": "identity"})["output"]["pid"] == before


def test_a_predictor_stuck_in_c_is_killed_after_the_grace_and_its_slot_serves_on(modes: Fleet) -> None:
    request = running(modes, {"mode": "stuck"}, has="logs")
    grace = float(cast(float, modes.options["cancel_grace"]))
    assert cancel(modes, request, grace + 1.0) == canceled(logs=["stuck"])
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("SET", ["1"]),
        ("SET", [""]),
        ("SET", ["1", "EX", "60"]),
        ("RPUSH", ["1"]),
        ("HSET", ["a", "1"]),
        ("SADD", ["1"]),
        ("XADD", ["*", "a", "1"]),
    ],
)
def test_a_cancel_key_of_any_type_cancels(modes: Fleet, command: str, arguments: list[str]) -> None:
    request = running(modes, {"mode": "sleeps", "seconds": 30})
    modes.client.execute_command(command, request.cancel_key, *arguments)
    assert modes.producer.wait(request, timeout=2)["status"] == "canceled"


def test_a_key_that_exists_before_the_start_cancels_without_entering_predict(modes: Fleet, monitor: Monitor) -> None:
    count = modes.producer.predict({"mode": "identity"})["output"]["predictions"]
    modes.client.set("canceled-already", "1")
    sequence = modes.producer.sequence(monitor, {"mode": "prints"}, cancel_key="canceled-already")
    assert sequence == [processing(), canceled()]
    assert modes.producer.predict({"mode": "identity"})["output"]["predictions"] == count + 1


def test_a_waiting_prediction_is_canceled_when_its_turn_comes(modes: Fleet, monitor: Monitor) -> None:
    first = running(modes, {"mode": "sleeps", "seconds": 2})
    waiting = modes.producer.send({"mode": "prints"})
    modes.producer.cancel(waiting)
    assert modes.producer.get(waiting) is None
    assert modes.producer.wait(first)["status"] == "succeeded"
    assert [bare(one.value) for one in modes.producer.history(monitor, waiting)] == [processing(), canceled()]


def test_a_key_that_comes_after_the_end_changes_nothing(modes: Fleet, monitor: Monitor) -> None:
    request = modes.producer.send({"mode": "hello"})
    modes.producer.wait(request)
    modes.producer.cancel(request)
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")
    assert len(monitor.sets(request.response_queue)) == 2


def test_canceling_one_prediction_leaves_the_next_alone(modes: Fleet) -> None:
    """The signal of a cancel that comes as the prediction ends must not hit the one behind it."""
    for _ in range(5):
        request = running(modes, {"mode": "sleeps", "seconds": 0.1})
        behind = modes.producer.send({"mode": "sleeps", "seconds": 0.1, "text": "behind"})
        modes.producer.cancel(request)
        assert modes.producer.wait(request)["status"] in ("canceled", "succeeded")
        assert bare(modes.producer.wait(behind)) == succeeded("behind")


def test_a_request_without_a_cancel_key_is_served(modes: Fleet) -> None:
    assert modes.producer.predict({"mode": "hello"}, cancel_key=None) == succeeded("hello world")
