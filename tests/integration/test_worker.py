"""Workers: slots, GPUs, sharing, setup, reports, draining."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from tests.conftest import FleetFactory
from tests.support.monitor import Monitor
from tests.support.processes import wait_until
from tests.support.producer import TERMINAL, succeeded

pytestmark = pytest.mark.ours


def test_two_workers_share_two_hundred_sleeping_predictions_evenly_and_setup_ran_once_per_slot(
    fleet: FleetFactory,
) -> None:
    two = fleet("modes", workers=2, slots=2)
    requests = [two.producer.send({"mode": "identity", "seconds": 0.05}) for _ in range(200)]
    outputs = [two.producer.wait(request, timeout=30)["output"] for request in requests]
    shares = Counter(output["pid"] for output in outputs)
    assert len(shares) == 4, "each slot has a runner of its own"
    assert min(shares.values()) >= 35, f"200 predictions on 4 slots: {shares}"
    assert {output["setups"] for output in outputs} == {1}
    assert two.client.xlen(f"{two.queue}-setup-time") == 4
    for pid in shares:
        assert sorted(output["predictions"] for output in outputs if output["pid"] == pid) == list(
            range(1, shares[pid] + 1)
        )


def test_every_request_has_exactly_one_terminal_snapshot(fleet: FleetFactory, monitor: Monitor) -> None:
    """200 quick requests, two bridges, two workers with two slots each."""
    two = fleet("modes", bridges=2, workers=2, slots=2)
    requests = [two.producer.send({"mode": "hello", "text": str(i)}) for i in range(200)]
    for i, request in enumerate(requests):
        assert two.producer.wait(request, timeout=30)["output"] == f"hello {i}"
    two.wait_idle()
    terminal: Counter[str] = Counter()
    started: Counter[str] = Counter()
    for command in monitor.commands():
        if command.name == "SET" and command.args[1].startswith(b"response-"):
            status = json.loads(command.args[2])["status"]
            (terminal if status in TERMINAL else started)[command.args[1].decode()] += 1
    expected = Counter(request.response_queue for request in requests)
    assert terminal == expected
    assert started == expected


@pytest.mark.parametrize("turn", [0, 0.2])
def test_a_turn_of_any_length_serves_everything_in_order(fleet: FleetFactory, monitor: Monitor, turn: float) -> None:
    one = fleet("modes", turn=turn)
    for _ in range(3):
        requests = [one.producer.send({"mode": "hello", "text": str(i)}) for i in range(20)]
        for i, request in enumerate(requests):
            assert one.producer.wait(request)["output"] == f"hello {i}"
        time.sleep(0.25)
    keys = [request.response_queue.encode() for request in one.producer.sent]
    sets = [command.args[1] for command in monitor.commands() if command.name == "SET" and command.args[1] in keys]
    assert sets == [key for key in keys for _ in range(2)]


def test_two_slots_on_two_gpus_see_one_each(fleet: FleetFactory) -> None:
    two = fleet("modes", gpus="0,1")
    requests = [two.producer.send({"mode": "identity", "seconds": 0.3}) for _ in range(6)]
    seen = {(output["pid"], output["gpu"]) for output in (two.producer.wait(one)["output"] for one in requests)}
    assert sorted(gpu for _, gpu in seen) == ["0", "1"]
    assert len({pid for pid, _ in seen}) == 2


def test_gpus_are_counted_within_the_mask_of_the_worker(fleet: FleetFactory) -> None:
    masked = fleet("modes", start=False, gpus="0,1")
    masked.env["CUDA_VISIBLE_DEVICES"] = "4,7"
    masked.start()
    requests = [masked.producer.send({"mode": "identity", "seconds": 0.3}) for _ in range(4)]
    assert {masked.producer.wait(request)["output"]["gpu"] for request in requests} == {"4", "7"}


def test_sigterm_finishes_what_runs_and_loses_nothing(fleet: FleetFactory) -> None:
    drained = fleet("modes", slots=2)
    running = [drained.producer.send({"mode": "sleeps", "seconds": 3, "text": str(i)}) for i in range(2)]
    for request in running:
        drained.producer.wait_for(request, lambda response: True)
    waiting = [drained.producer.send({"mode": "hello", "text": str(i)}) for i in range(5)]
    [worker] = drained.workers
    worker.terminate()
    assert worker.wait() == 0
    assert [drained.producer.get(request)["output"] for request in running] == ["0", "1"]  # type: ignore[index]
    assert [drained.producer.get(request) for request in waiting] == [None] * 5
    assert drained.announced() == 0
    drained.start_worker()
    assert [drained.producer.wait(request)["output"] for request in waiting] == [f"hello {i}" for i in range(5)]


def test_an_idle_worker_ends_at_once(fleet: FleetFactory) -> None:
    idle = fleet("modes")
    since = time.monotonic()
    idle.workers[0].terminate()
    assert idle.workers[0].wait() == 0
    assert time.monotonic() - since < 8, "it does not wait for its drain's limit"
    assert idle.announced() == 0


def test_a_second_sigterm_releases_what_runs_for_another_worker_at_once(fleet: FleetFactory) -> None:
    two = fleet("modes", workers=2, lease=3)
    request = two.producer.send({"mode": "sleeps", "seconds": 5, "text": "done"})
    two.producer.wait_for(request, lambda response: True)
    [running] = two.client.xpending_range(two.queue, two.queue, "-", "+", 2)
    first = two.workers[int(str(running["consumer"]).startswith("w1"))]
    first.terminate()
    wait_until(lambda: two.announced() == 1, "the worker to withdraw")
    first.terminate()
    first.wait(5)
    since = time.monotonic()
    assert two.producer.wait(request)["output"] == "done"
    assert time.monotonic() - since < 5 + 2.5, "released, and so run again, at once"
    assert two.client.xlen(f"{two.queue}-dead") == 0


def test_the_drain_limit_releases_what_runs(fleet: FleetFactory) -> None:
    two = fleet("modes", lease=1, drain_timeout=0.5)
    request = two.producer.send({"mode": "sleeps", "seconds": 1.5, "text": "done"})
    two.producer.wait_for(request, lambda response: True)
    first = two.workers[0]
    first.terminate()
    first.wait(5)
    two.start_worker()
    assert two.producer.wait(request, timeout=15)["output"] == "done"


def test_a_setup_that_raises_is_reported_and_consumes_nothing(fleet: FleetFactory, httpserver: HTTPServer) -> None:
    reports: list[dict[str, Any]] = []

    def report(request: HTTPRequest) -> HTTPResponse:
        reports.append(request.get_json())
        return HTTPResponse(status=200)

    httpserver.expect_request("/setup", method="POST").respond_with_handler(report)
    broken = fleet("setup_raises", start=False, report_setup_run_url=httpserver.url_for("/setup"))
    broken.start_bridge()
    request = broken.producer.send()
    assert broken.start_worker().wait() not in (0, -9)
    assert broken.producer.get(request) is None
    assert (broken.depth(), broken.pending()) == (1, 0)
    assert broken.announced() == 0
    [body] = reports
    assert set(body) == {"status", "started_at", "completed_at", "logs"}
    assert body["status"] == "failed"
    assert "looking for weights" in body["logs"]
    assert "Predictor errored during setup: no weights here" in body["logs"]
    assert "RuntimeError: no weights here" in body["logs"]


def test_a_setup_that_ends_its_process_is_told_apart_from_one_that_raises(
    fleet: FleetFactory, httpserver: HTTPServer
) -> None:
    reports: list[dict[str, Any]] = []

    def report(request: HTTPRequest) -> HTTPResponse:
        reports.append(request.get_json())
        return HTTPResponse(status=500)

    httpserver.expect_request("/setup", method="POST").respond_with_handler(report)
    broken = fleet("setup_exits", start=False, report_setup_run_url=httpserver.url_for("/setup"))
    worker = broken.start_worker()
    assert worker.wait() not in (0, -9)
    assert (
        "Predictor setup failed for an unknown reason. It might have run out of memory? (exitcode 7)"
        in (reports[0]["logs"])
    )
    broken.check_nothing_left()


def test_a_good_setup_is_reported_once(fleet: FleetFactory, httpserver: HTTPServer) -> None:
    reports: list[dict[str, Any]] = []

    def report(request: HTTPRequest) -> HTTPResponse:
        reports.append(request.get_json())
        return HTTPResponse(status=200)

    httpserver.expect_request("/setup", method="POST").respond_with_handler(report)
    good = fleet("slow_setup", report_setup_run_url=httpserver.url_for("/setup"), log_queue="setup-logs", model_id="m1")
    wait_until(lambda: reports, "the report")
    [body] = reports
    assert set(body) == {"status", "started_at", "completed_at", "logs"}
    assert body["status"] == "succeeded"
    time_form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z?"
    assert re.fullmatch(time_form, body["started_at"]) and re.fullmatch(time_form, body["completed_at"])
    assert body["started_at"] < body["completed_at"]
    lines = ["importing", "loading weights", "from a child", "setup done"]
    assert body["logs"].split("\n")[:4] == lines
    # The log queue has the same lines, one each.
    entries = [json.loads(entry) for entry in good.client.lrange("setup-logs", 0, -1)]
    assert [entry["line"] for entry in entries] == lines
    assert all(set(entry) == {"stage", "id", "line", "timestamp_sec"} for entry in entries)
    assert {(entry["stage"], entry["id"]) for entry in entries} == {("setup", "m1")}
    times = [entry["timestamp_sec"] for entry in entries]
    assert times == sorted(times) and times[-1] - times[1] > 1.0, "the lines came as they were written"


def test_a_report_that_nobody_takes_holds_nothing_up(fleet: FleetFactory) -> None:
    lonely = fleet("modes", report_setup_run_url="http://127.0.0.1:9/nobody")
    assert lonely.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_failures_in_a_row_beyond_the_limit_end_the_worker(fleet: FleetFactory) -> None:
    limited = fleet("modes", max_failure_count=2)
    for mode in ("fails", "fails", "hello", "fails", "fails"):
        limited.producer.predict({"mode": mode})
    assert limited.workers[0].running, "a success in between starts the count again"
    limited.producer.predict({"mode": "fails"})
    assert limited.workers[0].wait() >= 0, "it was not killed"
    after = limited.producer.send({"mode": "hello"})
    limited.check_nothing_left(but=limited.bridges)
    limited.start_worker()
    assert limited.producer.wait(after)["output"] == "hello world"


def test_limits_are_settings(fleet: FleetFactory) -> None:
    limited = fleet("modes", max_log_bytes=500, max_request_bytes=5000, response_ttl=60)
    request = limited.producer.send({"mode": "prints", "text": "x" * 90, "count": 50})
    logs = limited.producer.wait(request)["logs"]
    assert logs[:5] == [f"{'x' * 90} {i}" for i in range(5)]
    assert len(logs) == 6 and "bytes" in logs[-1], "one line says how much was left out"
    limited.producer.predict({"mode": "prints_and_yields", "text": "y" * 90, "count": 20, "seconds": 0.03})
    wait_until(lambda: "prints more than --max-log-bytes: the rest is left out here" in limited.log(), "a line of it")
    assert f"{'y' * 90} 4" in limited.log()
    assert f"{'y' * 90} 19" not in limited.log()
    assert 0 < limited.client.ttl(request.response_queue) <= 60
    large = limited.producer.send({"mode": "hello", "text": "x" * 5000})
    assert "5000" in limited.producer.wait(large)["error"]


def test_the_same_worker_starts_as_a_plain_celery_worker(fleet: FleetFactory) -> None:
    plain = fleet("modes", start=False)
    plain.start_bridge()
    celery = [sys.executable, "-m", "celery", "-A", "cog_celery", "worker", "-l", "info"]
    options: dict[str, str | int] = {"queue": plain.queue, "model_dir": str(plain.model), "slots": 2}
    options["log_format"] = "json"
    plain.workers.append(plain.start_child("celery", celery, options=options))
    plain.slots = 2
    plain.wait_ready(1)
    requests = [plain.producer.send({"mode": "identity", "seconds": 0.2}) for _ in range(4)]
    assert len({plain.producer.wait(request)["output"]["pid"] for request in requests}) == 2
    printing = plain.producer.send({"mode": "prints", "text": "a line", "count": 1})
    plain.producer.wait(printing)

    def story() -> list[dict[str, Any]]:
        lines = plain.workers[0].text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in told if line.get("prediction_id") == printing.id]

    wait_until(lambda: len(story()) == 2, "its lines in the log")
    assert [line["event"] for line in story()] == ["model", "finished"]
    assert story()[0]["message"] == "a line 0"


def test_the_file_ready_exists_exactly_while_the_worker_can_take_work(fleet: FleetFactory) -> None:
    """In Kubernetes. Where /var/run/cog cannot be written, that is logged and nothing more."""
    pod = fleet("modes", start=False)
    pod.env["KUBERNETES_SERVICE_HOST"] = "127.0.0.1"
    pod.start()
    assert pod.producer.predict({"mode": "hello"}) == succeeded("hello world")
