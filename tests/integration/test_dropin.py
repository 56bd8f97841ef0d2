"""`python -m cog_celery.redis_queue` where `python -m cog.server.redis_queue` was: only the module's name changes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import cast

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from tests.conftest import FleetFactory
from tests.support.fleet import MODELS, Fleet
from tests.support.monitor import Monitor
from tests.support.processes import Child, wait_until
from tests.support.producer import failed, processing, succeeded


def queue_exists(fleet: Fleet) -> None:
    """What its producer does before it starts Cog's worker."""
    fleet.client.xgroup_create(fleet.queue, fleet.queue, id="0", mkstream=True)


def up(fleet: Fleet) -> None:
    wait_until(lambda: fleet.client.exists(f"{fleet.queue}-setup-time"), "setup", timeout=30)


@pytest.fixture(scope="module")
def dropin(shared_fleet: FleetFactory) -> Fleet:
    """The documented command on a queue that exists."""
    fleet = shared_fleet("modes", shape="dropin", start=False)
    if fleet.shape != "peer":
        queue_exists(fleet)
    return fleet.start()


def test_a_consumer_reads_the_same_statuses_outputs_logs_and_errors(dropin: Fleet, monitor: Monitor) -> None:
    sequence = dropin.producer.sequence
    assert sequence(monitor, {"mode": "hello"}) == [processing(), succeeded("hello world")]
    assert sequence(monitor, {"mode": "yields", "text": "y", "count": 2, "seconds": 0.4}) == [
        processing(),
        processing(["y 0"]),
        processing(["y 0", "y 1"]),
        succeeded(["y 0", "y 1"]),
    ]
    assert sequence(monitor, {"mode": "prints", "text": "line", "count": 1, "seconds": 0.4}) == [
        processing(),
        processing(logs=["line 0"]),
        succeeded("printed", ["line 0"]),
    ]
    assert sequence(monitor, {"mode": "hello", "count": "many"}) == [
        failed("1 validation error for Input\ncount\n  value is not a valid integer (type=type_error.integer)")
    ]
    assert sequence(monitor, {"mode": "fails", "text": "no luck"})[-1]["error"] == "no luck"


def test_statistics_and_depth_are_where_watchers_look(dropin: Fleet) -> None:
    dropin.producer.predict({"mode": "hello"})
    wait_until(lambda: dropin.client.xlen(f"{dropin.queue}-run-time"), "the run time")
    dropin.wait_idle()
    assert dropin.client.xlen(f"{dropin.queue}-setup-time") == 1


@pytest.mark.ours
def test_consumers_are_named_after_the_consumer_id(dropin: Fleet) -> None:
    dropin.producer.predict({"mode": "hello"})
    consumers = cast("list[dict[str, str]]", dropin.client.xinfo_consumers(dropin.queue, dropin.queue))
    assert consumers
    assert all(consumer["name"].startswith("consumer-0") for consumer in consumers)


@pytest.mark.ours
def test_it_waits_quietly_for_the_group_and_picks_it_up_within_a_second(fleet: FleetFactory) -> None:
    early = fleet("modes", start=False)
    dropin = early.start_dropin()
    up(early)
    time.sleep(1.5)
    assert not early.client.exists(early.queue)
    dropin.check_running()
    assert len(dropin.text().splitlines()) < 40, dropin.text()
    queue_exists(early)
    since = time.monotonic()
    request = early.producer.send({"mode": "hello"})
    early.producer.wait(request)
    assert time.monotonic() - since < 2.0


@pytest.mark.ours
def test_sigterm_finishes_what_runs_and_exits_with_0(fleet: FleetFactory) -> None:
    one = fleet("modes", shape="dropin", start=False)
    queue_exists(one)
    one.start()
    request = one.producer.send({"mode": "sleeps", "seconds": 1})
    one.producer.wait_for(request, lambda response: True)
    one.workers[0].terminate()
    assert one.workers[0].wait() == 0
    assert (one.producer.get(request) or {})["status"] == "succeeded"
    one.check_nothing_left()


@pytest.mark.ours
def test_sigterm_before_it_is_up_exits_with_1(fleet: FleetFactory) -> None:
    slow = fleet("slow_setup", start=False)
    queue_exists(slow)
    dropin = slow.start_dropin()
    wait_until(lambda: slow.runners(), "the runner")
    dropin.terminate()
    assert dropin.wait() == 1
    slow.check_nothing_left()


@pytest.mark.ours
def test_seven_arguments_are_enough_and_the_eighth_is_the_timeout(fleet: FleetFactory) -> None:
    timed = fleet("modes", start=False, cancel_grace=0.5)
    queue_exists(timed)
    timed.start_dropin("1")
    timed.wait_ready(1)
    assert timed.producer.predict({"mode": "sleeps", "seconds": 30}) == failed("Prediction timed out")
    assert timed.producer.predict({"mode": "hello"}) == succeeded("hello world")


@pytest.mark.ours
def test_a_command_that_leaves_model_id_out_is_accepted_and_variables_are_obeyed(fleet: FleetFactory) -> None:
    """host port queue upload_url consumer_id log_queue timeout: seven, as a known example has it."""
    known = fleet("modes", start=False, dialect="cog-0.6", slots=2)
    queue_exists(known)
    words = ["127.0.0.1", str(known.server.port), known.queue, "", "consumer", "log-queue", "30"]
    known.workers.append(
        known.start_child("dropin", [sys.executable, "-m", "cog_celery.redis_queue", *words], cwd=known.model)
    )
    known.wait_ready(1)
    response = known.producer.wait(known.producer.send({"mode": "hello"}))
    assert response["logs"] == "" and response["metrics"]["predict_time"] >= 0


@pytest.mark.ours
def test_flags_do_the_same_and_win_over_positions(fleet: FleetFactory, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/setup", method="POST").respond_with_data("")
    flagged = fleet("modes", start=False, cancel_grace=0.5)
    queue_exists(flagged)
    flags = {
        "--redis-host": "127.0.0.1",
        "--redis-port": str(flagged.server.port),
        "--input-queue": flagged.queue,
        "--upload-url": "",
        "--consumer-id": "by-flag",
        "--model-id": "m",
        "--log-queue": f"{flagged.queue}-setup-logs",
        "--predict-timeout": "1",
        "--report-setup-run-url": httpserver.url_for("/setup"),
        "--max-failure-count": "5",
    }
    words = ["no-such-host.invalid", "1", "no-such-queue", "http://no-such-host.invalid/", "position", "p", "no-logs"]
    command = [sys.executable, "-m", "cog_celery.redis_queue", *words]
    command += [word for flag in flags.items() for word in flag]
    flagged.workers.append(flagged.start_child("dropin", command, cwd=flagged.model))
    flagged.wait_ready(1)
    assert flagged.producer.predict({"mode": "sleeps", "seconds": 30}) == failed("Prediction timed out")
    assert flagged.producer.predict({"mode": "a_file"})["output"].startswith("data:")
    consumers = cast("list[dict[str, str]]", flagged.client.xinfo_consumers(flagged.queue, flagged.queue))
    assert all(consumer["name"].startswith("by-flag") for consumer in consumers)
    lines = [json.loads(entry) for entry in flagged.client.lrange(f"{flagged.queue}-setup-logs", 0, -1)]
    assert [(line["id"], line["line"]) for line in lines] == [("m", "setup of modes")]
    wait_until(lambda: httpserver.log, "the setup report")


@pytest.mark.ours
def test_the_log_queue_of_the_positions_gets_the_setup_logs(fleet: FleetFactory) -> None:
    logged = fleet("slow_setup", start=False)
    queue_exists(logged)
    logged.start_dropin(log_queue=f"{logged.queue}-logs")
    logged.wait_ready(1)
    entries = [json.loads(entry) for entry in logged.client.lrange(f"{logged.queue}-logs", 0, -1)]
    assert [entry["line"] for entry in entries] == ["importing", "loading weights", "from a child", "setup done"]
    assert {entry["id"] for entry in entries} == {"model-id"}


def test_the_upload_url_of_the_positions_takes_multipart_as_cogs_servers_did(
    fleet: FleetFactory, httpserver: HTTPServer
) -> None:
    def put(request: HTTPRequest) -> HTTPResponse:
        # Such a server knows its own URL and the form with the part `file`, nothing else.
        name = request.files["file"].filename
        return HTTPResponse(json.dumps({"url": f"http://files.example/{name}"}), content_type="application/json")

    httpserver.expect_request("/upload", method="PUT").respond_with_handler(put)
    httpserver.expect_request(re.compile("/upload/.+")).respond_with_data("not found", status=404)
    url = httpserver.url_for("/upload")
    old = fleet("modes", shape="dropin", start=False)
    if old.shape == "peer":
        old.options["upload_url"] = url
        old.start()
    else:
        queue_exists(old)
        old.start_dropin(upload_url=url)
        old.wait_ready(1)
    assert old.producer.predict({"mode": "a_file"}) == succeeded("http://files.example/hello.txt")
    urls = [f"http://files.example/file{i}.txt" for i in range(3)]
    assert old.producer.predict({"mode": "yields_files"}) == succeeded(urls)


@pytest.mark.ours
def test_modules_in_the_models_folder_do_not_shadow_ours(fleet: FleetFactory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "modes", folder)
    for name in ("redis", "celery", "kombu", "click", "msgspec", "urllib3", "yaml", "worker", "cli"):
        (folder / f"{name}.py").write_text('raise ImportError("this is the model\'s own")\n')
    # The model may import what is beside it.
    (folder / "helper.py").write_text("VALUE = 5\n")
    predict = (folder / "predict.py").read_text().replace("import ctypes\n", "import ctypes\nimport helper\n", 1)
    (folder / "predict.py").write_text(predict)
    shadowed = fleet(folder, start=False)
    queue_exists(shadowed)
    shadowed.start_dropin()
    shadowed.wait_ready(1)
    assert shadowed.producer.predict({"mode": "hello"}) == succeeded("hello world")


@pytest.mark.ours
@pytest.mark.parametrize("words", [[], ["127.0.0.1"], ["127.0.0.1", "not-a-port", "q", "", "c", "m", "l"]])
def test_a_wrong_command_line_is_an_error_that_says_what_is_wrong(fleet: FleetFactory, words: list[str]) -> None:
    wrong = fleet("modes", start=False)
    child = wrong.start_child("dropin", [sys.executable, "-m", "cog_celery.redis_queue", *words], cwd=wrong.model)
    assert child.wait() == 2
    assert "Traceback" not in child.text() and child.text().strip()


@pytest.mark.ours
def test_a_folder_without_a_model_is_an_error_that_says_so(fleet: FleetFactory, tmp_path: Path) -> None:
    empty = fleet(tmp_path, start=False)
    child: Child = empty.start_dropin()
    assert child.wait() not in (0, -9)
    assert "cog.yaml" in child.text() and "Traceback" not in child.text()
