"""Flower shows a fleet as it is: predictions, their ends and their times, its workers, and nothing that is secret; what
is terminated there is canceled. Seen through its API, and in a browser.

PICTURES=docs has the pictures of the documentation taken again.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.conftest import fleets_on, missing
from tests.integration.test_worker_events import client_app
from tests.support import browser
from tests.support.browser import Browser, browsing
from tests.support.fleet import Fleet
from tests.support.processes import Child, wait_until
from tests.support.producer import Request, bare, canceled
from tests.support.servers import RedisServer, free_port
from tests.support.web import Handler, Web

pytestmark = pytest.mark.ours

QUEUE, WORKER = "thumbnails", "thumbnails@gpu-1"
OPTIONS = (
    "--tasks-columns=name,uuid,state,exception,kwargs,received,runtime,worker",
    "--purge-offline-workers=60",
    "--task-runtime-metric-buckets=0.001,0.01,0.1,1,10,60,600,3600",
)
"""As docs/operations.md says."""
SLOW = """
import time
from cog import BasePredictor

class Predictor(BasePredictor):
    def setup(self) -> None:
        time.sleep(7)

    def predict(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"
"""
"""Twice as long as Flower gives a worker that says nothing."""


class Flower:
    """`celery -A cog_celery flower`, with a password, and what its API says."""

    def __init__(self, fleet: Fleet) -> None:
        self._port, self._user = free_port(), f"somebody:{uuid.uuid4().hex}"
        self.url = f"http://127.0.0.1:{self._port}"
        command = [sys.executable, "-m", "celery", "-A", "cog_celery", "flower"]
        command += ["--address=127.0.0.1", f"--port={self._port}", f"--basic-auth={self._user}", *OPTIONS]
        self.child: Child = fleet.start_child("flower", command, role="monitor")
        wait_until(self._answers, "Flower to answer", 30)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Basic {base64.b64encode(self._user.encode()).decode()}"}

    def _answers(self) -> bool:
        self.child.check_running()
        try:
            return bool(self.get("/healthcheck"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=self.headers), timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Rows by id."""
        tasks: dict[str, dict[str, Any]] = self.json("/api/tasks?limit=1000")
        return tasks

    def wait(self, id: str, state: str, **fields: Any) -> dict[str, Any]:
        """The row, once it says that."""

        def look() -> dict[str, Any] | None:
            row = self.tasks().get(id, {})
            return row if row.items() >= {"state": state, **fields}.items() else None

        try:
            return wait_until(look, "it", 15, interval=0.1) or {}
        except AssertionError:
            raise AssertionError(f"{id} is to be {state} {fields or ''}, and is {self.tasks().get(id)}") from None

    def online(self) -> dict[str, bool]:
        online: dict[str, bool] = self.json("/api/workers?status=true")
        return online


class Watch:
    """Looks again and again which workers are online."""

    def __init__(self, flower: Flower) -> None:
        self._flower = flower
        self.seen: dict[str, list[bool]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            for name, online in self._flower.online().items():
                self.seen.setdefault(name, []).append(online)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Stage:
    """A Redis with a password; a worker with two slots; one whose setup() takes long; Flower. And predictions that have
    ended in each way there is, all of them with a secret in them.
    """

    def __init__(self, server: RedisServer, fleet: Fleet, slow: Fleet, web: Web, secret: str) -> None:
        self.server, self.fleet, self.web, self.secret = server, fleet, web, secret
        self.producer = fleet.producer
        self.flower = Flower(fleet)
        # It answers before it listens: what it has heard of a worker shows that it does.
        wait_until(lambda: self.flower.online().get(WORKER), "Flower to hear of the worker", 15, interval=0.1)
        self.watch = Watch(self.flower)
        self.slow = slow
        slow.start_bridge()
        slow.start_worker(name="gpu-2")
        self.ended = {
            "succeeded": self.send("order-1041", mode="sleeps", seconds=0.3),
            "model": self.send("order-1042", mode="fails"),
            "platform": self.send("order-1043", mode="os_exit"),
            "input": self.send("order-1044", mode="hello", count=f"many {secret}"),
            "canceled": self.send("order-1045", mode="sleeps", seconds=60),
        }
        self.producer.wait_for(self.ended["canceled"], lambda response: True)
        self.producer.cancel(self.ended["canceled"])
        for request in self.ended.values():
            self.producer.wait(request)

    def send(self, id: str | None = None, **input: Any) -> Request:
        """A request with a secret wherever there may be one."""
        urls = [f"{self.web.url}/a?sig={self.secret}"]
        return self.producer.send(
            {"text": self.secret, **input},
            id=id or f"order-{uuid.uuid4().hex[:4]}",
            output_upload_urls=urls,
            context={"token": self.secret},
            traceparent=f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01",
        )

    @contextmanager
    def running(self) -> Iterator[Request]:
        """One that runs meanwhile, and has its row."""
        request = self.send(mode="sleeps", seconds=60)
        try:
            self.flower.wait(request.id, "STARTED")
            yield request
        finally:
            self.producer.cancel(request)
            self.producer.wait(request)


class Uploads(Web):
    """Takes a file when `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.came = threading.Event(), threading.Event()
        self.on("*", self._take)

    def _take(self, handler: Handler) -> None:
        self.came.set()
        while not self.free.wait(0.02):
            if self.stopping.is_set():
                handler.close_connection = True
                return
        handler.answer(201)


@pytest.fixture(scope="module")
def uploads() -> Iterator[Uploads]:
    with Uploads() as web:
        yield web


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, uploads: Uploads) -> Iterator[Stage]:
    secret = f"secret-{uuid.uuid4().hex}"
    server = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    try:
        server.client.config_set("requirepass", secret)
        server.url = f"redis://:{secret}@127.0.0.1:{server.port}/0"
        server.client = redis.Redis.from_url(server.url, decode_responses=True, protocol=2)
        model = tmp_path_factory.mktemp("upscaler")
        (model / "cog.yaml").write_text("predict: predict.py:Predictor\n")
        (model / "predict.py").write_text(SLOW)
        with fleets_on(server, tmp_path_factory.mktemp("fleet")) as make:
            slow = make(model, queue="upscaler", model_id="upscaler", start=False, lease=1, max_attempts=2)
            fleet = make("modes", queue=QUEUE, model_id=QUEUE, gpus="0,1", lease=3, cancel_grace=1, start=False)
            fleet.start_bridge()
            fleet.start_worker(name="gpu-1")
            fleet.wait_ready()
            stage = Stage(server, fleet, slow, uploads, secret)
            try:
                yield stage
            finally:
                stage.watch.stop()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def app(stage: Stage) -> Iterator[Celery]:
    with client_app(stage.server.url) as app:
        yield app


@pytest.fixture(scope="module")
def page(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = browser.program()
    if program is None:
        missing("Chromium")
        return
    with browsing(program, tmp_path_factory.mktemp("browser"), stage.flower.headers) as page:
        yield page


def picture(page: Browser, name: str) -> None:
    if folder := os.environ.get("PICTURES"):
        page.picture(Path(folder, f"{name}.png"))


@pytest.mark.parametrize(
    ("how", "state", "exception"),
    [
        ("succeeded", "SUCCESS", None),
        ("model", "FAILURE", "ModelError"),
        ("platform", "FAILURE", "PlatformError"),
        ("input", "FAILURE", "InvalidInput"),
        ("canceled", "REVOKED", None),
    ],
)
def test_a_row_tells_how_a_prediction_ended_how_long_it_took_and_where(
    stage: Stage, how: str, state: str, exception: str | None
) -> None:
    request = stage.ended[how]
    row = stage.flower.wait(request.id, state, exception=exception)
    assert (row["name"], row["worker"]) == ("thumbnails", WORKER)
    assert row["kwargs"] in [f"queue=thumbnails, slot={slot}, gpu={slot}, attempt=1" for slot in (0, 1)]
    assert row["started"] - 0.001 <= row["timestamp"]
    assert row["runtime"] > 0
    if how == "succeeded":
        assert 0.3 <= row["runtime"] < 2


def test_there_is_a_row_for_every_prediction_and_for_nothing_else(stage: Stage) -> None:
    sent = {request.id for request in stage.producer.sent}
    for id in sent:
        wait_until(lambda id=id: id in stage.flower.tasks(), f"a row of {id}")  # type: ignore[misc]
    assert set(stage.flower.tasks()) == sent


def test_revoke_of_a_prediction_whose_files_are_on_their_way_behind_the_next_one(stage: Stage, app: Celery) -> None:
    uploads = stage.web
    assert isinstance(uploads, Uploads)
    first = stage.send(mode="a_file")
    second = stage.send(mode="a_file")
    assert uploads.came.wait(10)
    with stage.running() as third, stage.running() as fourth:  # in slots that still have the files of those
        assert {row["id"] for row in active(app)} == {request.id for request in (first, second, third, fourth)}
        app.control.revoke(first.id, terminate=True)
        assert stage.producer.wait(first, timeout=5)["status"] == "canceled"
        uploads.free.set()
        assert stage.producer.wait(second)["status"] == "succeeded"
        stage.flower.wait(first.id, "REVOKED")


def active(app: Celery) -> list[dict[str, Any]]:
    """What `celery inspect active` says of the first worker."""
    replies = app.control.inspect([WORKER], timeout=5, limit=1).active() or {}
    found: list[dict[str, Any]] = replies.get(WORKER, [])
    return found


def test_inspect_shows_predictions_and_their_slots(stage: Stage, app: Celery) -> None:
    with stage.running() as request:
        [row] = active(app)
        found = app.control.inspect([WORKER], timeout=5, limit=1).query_task(request.id, "another") or {}
    slot = row["kwargs"]["slot"]
    assert (row["id"], row["name"]) == (request.id, "thumbnails")
    assert row["kwargs"] == {"slot": slot, "gpu": str(slot), "attempt": 1}
    assert 0 < time.time() - row["time_start"] < 30
    assert {id: state for id, (state, _) in found[WORKER].items()} == {request.id: "active"}


def test_nothing_of_a_request_and_no_secret_is_anywhere(stage: Stage, app: Celery) -> None:
    inspect = app.control.inspect([WORKER], timeout=5, limit=1)
    pages = [
        "/tasks",
        "/api/tasks?limit=1000",
        "/api/task/types",
        "/workers",
        "/workers?json=true",
        f"/worker/{WORKER}",
    ]
    pages += ["/api/workers?refresh=true", "/broker", "/metrics", *(f"/task/{one.id}" for one in stage.ended.values())]
    with stage.running() as request:
        pages += [f"/task/{request.id}", f"/api/task/info/{request.id}"]
        shown: dict[str, Any] = {path: stage.flower.get(path) for path in pages}
        shown["inspect"] = [
            *(inspect.active(), inspect.reserved(), inspect.scheduled(), inspect.revoked(), inspect.registered()),
            *(inspect.stats(), inspect.conf(with_defaults=True), inspect.query_task(request.id)),
            inspect.active_queues(),
        ]
    assert request.id in json.dumps(shown["inspect"][0])
    texts = {name: json.dumps(one, default=str) for name, one in shown.items()}
    keys = [request.response_queue, request.cancel_key, "sig=", stage.web.url]
    assert not [(name, word) for name, text in texts.items() for word in (stage.secret, *keys) if word in text]


def test_metrics_have_the_model_s_times_in_buckets_that_fit(stage: Stage) -> None:
    lines = stage.flower.get("/metrics").splitlines()
    [slow] = [line for line in lines if line.startswith("flower_task_runtime_seconds_bucket") and 'le="0.1"' in line]
    [all] = [line for line in lines if line.startswith("flower_task_runtime_seconds_count")]
    [waiting] = [line for line in lines if line.startswith("flower_worker_prefetched_tasks{")]
    assert f'task="thumbnails",worker="{WORKER}"' in all
    assert float(slow.split()[-1]) < float(all.split()[-1])
    assert float(waiting.split()[-1]) == 0
    assert f'flower_worker_online{{worker="{WORKER}"}} 1.0' in lines
    assert not [line for line in lines if "cog_celery.turn" in line]


# In a browser


def cells(table: str) -> str:
    """What has a table's rows as lists of texts."""
    rows = f"[...document.querySelectorAll('{table} tbody tr')]"
    text = "innerText.replaceAll('\\n', '').replace('Copy task UUID', '').trim()"
    return f"{rows}.map(row => [...row.cells].map(cell => cell.{text}))"


def test_the_page_of_tasks_shows_them(stage: Stage, page: Browser) -> None:
    rows = cells("#tasks-table")
    with stage.running() as request:
        page.open(f"{stage.flower.url}/tasks")
        page.wait(f"{rows}.some(row => row.includes('STARTED'))", "the rows")
        by_id = {row[1]: row for row in page.run(rows)}
        assert stage.secret not in page.source()
        picture(page, "flower")
    assert {id: (row[0], row[2], row[3]) for id, row in by_id.items() if id in shown(stage)} == shown(stage)
    assert by_id[request.id][2] == "STARTED"
    assert {row[-1] for row in by_id.values()} == {WORKER}
    assert float(by_id["order-1041"][6].split()[0]) >= 0.3


def shown(stage: Stage) -> dict[str, tuple[str, str, str]]:
    ends = {
        "succeeded": ("SUCCESS", ""),
        "model": ("FAILURE", "ModelError"),
        "platform": ("FAILURE", "PlatformError"),
        "input": ("FAILURE", "InvalidInput"),
        "canceled": ("REVOKED", ""),
    }
    return {stage.ended[how].id: ("thumbnails", *end) for how, end in ends.items()}


def test_terminate_on_the_page_of_a_task_cancels_the_prediction(stage: Stage, page: Browser) -> None:
    with stage.running() as request:
        page.open(f"{stage.flower.url}/task/{request.id}")
        page.wait("document.querySelector('#task-terminate')", "the button")
        assert stage.secret not in page.source()
        picture(page, "flower-task")
        page.click("#task-terminate")
        assert bare(stage.producer.wait(request, timeout=10)) == canceled()
    stage.flower.wait(request.id, "REVOKED")
    page.open(f"{stage.flower.url}/task/{request.id}")
    assert "REVOKED" in page.source() and page.run("document.querySelector('#task-terminate')") is None


def test_the_pages_of_workers_show_them_online_and_what_they_do(stage: Stage, page: Browser) -> None:
    rows = cells("#workers-table")
    with stage.running() as request:
        page.open(f"{stage.flower.url}/workers")
        page.wait(f"{rows}.some(row => row[0] == '{WORKER}' && row[1] == 'Online' && row[2] == '1')", "the worker", 5)
        picture(page, "flower-workers")
        stage.flower.get(f"/api/workers?refresh=true&workername={WORKER}")  # it shows what it last knew
        page.open(f"{stage.flower.url}/worker/{WORKER}")
        pool = page.run("document.querySelector('#tab-pool').innerText")
        assert stage.secret not in page.source()
        assert request.id in page.run("document.querySelector('#tab-tasks').textContent")
    assert "Max concurrency\t2\n" in pool


# Time


def test_workers_stay_online_through_setups_and_predictions(stage: Stage) -> None:
    with stage.running():
        stage.slow.wait_ready(1, timeout=30)
        since = len(stage.watch.seen[WORKER])
        wait_until(lambda: len(stage.watch.seen[WORKER]) > since + 18, "some seconds", 20, interval=0.1)
    seen = {name: stage.watch.seen[name] for name in (WORKER, "upscaler@gpu-2")}
    assert min(map(len, seen.values())) > 20, seen
    # A machine that is very busy may be late with one.
    assert all(online.count(False) <= len(online) / 10 for online in seen.values()), seen
    both = {WORKER: True, "upscaler@gpu-2": True}
    wait_until(lambda: stage.flower.online() == both, "both to be online", 15, interval=0.1)


def test_a_worker_that_was_killed_leaves_no_row_behind_and_comes_back_under_its_name(stage: Stage) -> None:
    fleet, flower = stage.slow, stage.flower
    fleet.wait_ready(1, timeout=30)
    request = fleet.producer.send({"seconds": 60})
    flower.wait(request.id, "STARTED")
    fleet.workers[-1].kill()
    row = flower.wait(request.id, "RETRY")
    assert (row["exception"], row["worker"]) == ("it was lost with its worker", "upscaler@gpu-2")
    (fleet.model / "predict.py").write_text(SLOW.replace("sleep(7)", "sleep(0)"))
    fleet.start_worker(name="gpu-2")
    row = flower.wait(request.id, "STARTED", retries=1)
    assert row["kwargs"] == "queue=upscaler, slot=0, attempt=2"
    fleet.workers[-1].kill()
    flower.wait(request.id, "FAILURE", exception="PlatformError")
    assert fleet.producer.wait(request)["status"] == "failed"
    fleet.start_worker(name="gpu-2")
    wait_until(lambda: flower.online() == {WORKER: True, "upscaler@gpu-2": True}, "two workers and no ghost", 15, 0.1)
    wait_until(lambda: fleet.announced() == 1 and fleet.credits(), "the worker")
