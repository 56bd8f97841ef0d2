"""predict_timeout and setup_timeout: what is over its time ends, and the slot serves on."""

from __future__ import annotations

import time

import pytest

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.producer import TIMESTAMPS, bare, failed, processing, succeeded

ERROR = "Prediction timed out"


@pytest.fixture(scope="module")
def timed(shared_fleet: FleetFactory) -> Fleet:
    """A fleet whose predictions may take a second."""
    return shared_fleet("modes", predict_timeout=1, cancel_grace=0.5)


def test_a_prediction_over_its_time_fails_and_a_good_one_succeeds_after_it(timed: Fleet, monitor: Monitor) -> None:
    since = time.monotonic()
    assert timed.producer.sequence(monitor, {"mode": "sleeps", "seconds": 30}) == [processing(), failed(ERROR)]
    assert 1.0 <= time.monotonic() - since < 2.0
    assert timed.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_a_yielding_prediction_over_its_time_keeps_its_output(timed: Fleet, monitor: Monitor) -> None:
    sequence = timed.producer.sequence(monitor, {"mode": "yields", "text": "y", "count": 9, "seconds": 0.7})
    everything = ["y 0", "y 1"]
    assert sequence == [
        processing(),
        processing(everything[:1]),
        processing(everything),
        failed(ERROR, everything),
    ]
    assert timed.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_a_prediction_within_its_time_is_left_alone(timed: Fleet) -> None:
    assert timed.producer.predict({"mode": "sleeps", "seconds": 0.7}) == succeeded("world")


@pytest.mark.ours
def test_a_predictor_stuck_in_c_is_killed_and_its_slot_serves_on(timed: Fleet) -> None:
    since = time.monotonic()
    assert timed.producer.predict({"mode": "stuck"}) == failed(ERROR, logs=["stuck"])
    assert 1.5 <= time.monotonic() - since < 3.0
    assert timed.producer.predict({"mode": "hello"}) == succeeded("hello world")


@pytest.mark.ours
def test_waiting_in_the_queue_does_not_count(timed: Fleet) -> None:
    requests = [timed.producer.send({"mode": "sleeps", "seconds": 0.5, "text": str(i)}) for i in range(4)]
    assert [bare(timed.producer.wait(request)) for request in requests] == [succeeded(str(i)) for i in range(4)]


@pytest.mark.ours
def test_the_time_of_a_timed_out_prediction_is_in_its_snapshot(timed: Fleet) -> None:
    response = timed.producer.wait(timed.producer.send({"mode": "sleeps", "seconds": 30}))
    assert response[TIMESTAMPS]["started_at"] < response[TIMESTAMPS]["completed_at"]


@pytest.mark.ours
def test_a_setup_over_its_time_ends_the_worker(fleet: FleetFactory) -> None:
    late = fleet("slow_setup", start=False, setup_timeout=0.5)
    late.start_bridge()
    request = late.producer.send({"seconds": 0})
    assert late.start_worker().wait() not in (0, -9)
    assert late.producer.get(request) is None
    assert late.pending() == 0
