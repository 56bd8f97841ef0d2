"""The cog-0.6 form of responses, and a queue's dialect as a thing that is decided once."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import wait_until

pytestmark = pytest.mark.ours

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(scope="module")
def dialect(shared_fleet: FleetFactory) -> Fleet:
    """A fleet whose queue speaks cog-0.6."""
    return shared_fleet("modes", dialect="cog-0.6", cancel_grace=1)


def sequence(fleet: Fleet, monitor: Monitor, input: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The snapshots, without times, after a check that they echo the request."""
    request = fleet.producer.send(input, version="v1", other={"kept": True}, **fields)
    snapshots = [snapshot.value for snapshot in fleet.producer.history(monitor, request)]
    for snapshot in snapshots:
        for name, value in {
            "id": request.id,
            "input": input,
            "response_queue": request.response_queue,
            "cancel_key": request.cancel_key,
            "version": "v1",
            "other": {"kept": True},
        }.items():
            assert snapshot.pop(name) == value
        for name in ("started_at", "completed_at"):
            if name in snapshot:
                assert TIME.fullmatch(snapshot[name])
    return snapshots


def test_the_request_is_echoed_with_status_output_logs_times_and_metrics(dialect: Fleet, monitor: Monitor) -> None:
    start, end = sequence(dialect, monitor, {"mode": "hello"})
    started_at = start.pop("started_at")
    assert start == {"status": "processing", "output": None, "logs": ""}
    assert end.pop("started_at") == started_at <= end.pop("completed_at")
    assert 0 <= end.pop("metrics")["predict_time"] < 1
    assert end == {"status": "succeeded", "output": "hello world", "logs": ""}


def test_logs_are_one_string_of_stripped_lines_without_blank_ones(dialect: Fleet, monitor: Monitor) -> None:
    text = json.dumps([[1, b"one\n\n  two  \n\r10%\r20%\n".hex(), 0]])
    end = sequence(dialect, monitor, {"mode": "writes", "text": text})[-1]
    assert end["logs"] == "one\ntwo\n10%\n20%\n"


def test_a_failure_has_its_error_and_no_metrics(dialect: Fleet, monitor: Monitor) -> None:
    end = sequence(dialect, monitor, {"mode": "fails", "text": "no luck"})[-1]
    assert (end["status"], end["error"], end["output"]) == ("failed", "no luck", None)
    assert end["logs"].endswith("ValueError: no luck\n")
    assert "metrics" not in end


def test_a_refused_input_is_one_failed_snapshot_without_a_start(dialect: Fleet, monitor: Monitor) -> None:
    [end] = sequence(dialect, monitor, {"mode": "hello", "count": "many"})
    assert end["status"] == "failed" and "value is not a valid integer" in end["error"]
    assert "started_at" not in end
    assert end["output"] is None and end["logs"] == ""


def test_a_canceled_one_has_no_error(dialect: Fleet) -> None:
    request = dialect.producer.send({"mode": "sleeps", "seconds": 30})
    dialect.producer.wait_for(request, lambda response: True)
    dialect.producer.cancel(request)
    response = dialect.producer.wait(request)
    assert response["status"] == "canceled" and "error" not in response
    assert response["completed_at"]


def test_a_process_with_another_dialect_stops_and_says_so(dialect: Fleet) -> None:
    worker = dialect.start_worker(dialect="cog-0.4")
    assert worker.wait() not in (0, -9)
    assert "cog-0.4" in worker.text() and "cog-0.6" in worker.text() and dialect.queue in worker.text()
    bridge = dialect.start_bridge(dialect="cog-0.4")
    assert bridge.wait() not in (0, -9)
    assert "cog-0.4" in bridge.text() and "cog-0.6" in bridge.text() and dialect.queue in bridge.text()


def test_a_process_that_was_told_none_speaks_the_queues_own(fleet: FleetFactory) -> None:
    told = fleet("modes", start=False)
    told.start_bridge(dialect="cog-0.6")
    wait_until(lambda: told.client.exists(f"cog-celery:{told.queue}:settings"), "the settings")
    told.start_worker()
    told.wait_ready(1)
    request = told.producer.send({"mode": "hello"})
    assert told.producer.wait(request)["logs"] == ""
