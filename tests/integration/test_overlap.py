"""Uploads behind: files go on their way while the predictor, or the next prediction, runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cog_celery.files.outputs import MAX_OPEN, PARALLEL
from tests.conftest import FleetFactory
from tests.integration.test_worker_events import client_app
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import wait_until
from tests.support.producer import Request, bare, canceled, processing, succeeded
from tests.support.web import Handler, Web

pytestmark = pytest.mark.ours


class Store(Web):
    """Takes files, and answers for each when it is told to: those whose text is in `held` wait."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[bytes, threading.Event] = {}
        self.waiting: set[bytes] = set()
        self.on("*", self._take)

    def hold(self, text: str) -> None:
        self.held[text.encode()] = threading.Event()

    def let_go(self, text: str) -> None:
        self.held.pop(text.encode()).set()

    def waits(self, text: str) -> None:
        """Wait until the file with this text has come."""
        wait_until(lambda: text.encode() in self.waiting, f"the upload of {text}", interval=0.01)

    def _take(self, handler: Handler) -> None:
        text = self.seen_by(handler)
        if held := self.held.get(text):
            self.waiting.add(text)
            while not held.wait(0.02):
                if self.stopping.is_set():
                    handler.close_connection = True
                    return
        handler.answer(201)

    def seen_by(self, handler: Handler) -> bytes:
        with self.lock:
            return next(seen.body for seen in reversed(self.seen) if seen.peer == handler.client_address)


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with Store() as server:
        yield server


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    yield server
    for held in server.held.values():
        held.set()
    server.held.clear()
    server.waiting.clear()


@pytest.fixture(scope="module")
def overlapping(shared_fleet: FleetFactory, server: Store) -> Fleet:
    """One slot, at a lease of a second: what is not extended is reclaimed soon."""
    return shared_fleet("modes", upload_url=server.url, lease=1, cancel_grace=1)


def files(fleet: Fleet, *texts: str) -> list[Request]:
    return [fleet.producer.send({"mode": "a_file", "text": text}) for text in texts]


def runs(fleet: Fleet) -> int:
    response = fleet.producer.predict({"mode": "identity"})
    return int(response["output"]["predictions"])


def status(fleet: Fleet, request: Request) -> str | None:
    response = fleet.producer.get(request)
    return None if response is None else str(response["status"])


def test_the_next_prediction_is_answered_while_files_of_the_last_are_on_their_way(
    overlapping: Fleet, store: Store
) -> None:
    store.hold("a")
    [first] = files(overlapping, "a")
    store.waits("a")
    for _ in range(3):
        assert overlapping.producer.predict({"mode": "hello"}) == succeeded("hello world")
    assert status(overlapping, first) == "processing"
    store.let_go("a")
    assert bare(overlapping.producer.wait(first)) == succeeded(f"{store.url}/hello.txt")
    overlapping.wait_idle()


def test_one_prediction_ends_behind_the_running_one_and_the_third_waits(overlapping: Fleet, store: Store) -> None:
    store.hold("a")
    store.hold("b")
    first, second, third = files(overlapping, "a", "b", "c")
    store.waits("a")
    store.waits("b")
    # And the slot, which could take the third, waits.
    pending = overlapping.client.xpending_range(overlapping.queue, overlapping.queue, "-", "+", 10)
    assert {line["message_id"] for line in pending} == {first.entry, second.entry}
    assert len({line["consumer"] for line in pending}) == 2  # so that what either of them lost is found
    assert status(overlapping, third) is None
    store.let_go("a")
    overlapping.producer.wait(first)
    overlapping.producer.wait(third)  # since the second is now what is behind
    assert status(overlapping, second) == "processing"
    store.let_go("b")
    assert overlapping.producer.wait(second)["status"] == "succeeded"


def test_the_later_one_of_two_may_end_first(overlapping: Fleet, store: Store) -> None:
    store.hold("a")
    store.hold("b")
    first, second, third = files(overlapping, "a", "b", "c")
    store.waits("a")
    store.waits("b")
    store.let_go("b")
    overlapping.producer.wait(second)
    overlapping.producer.wait(third)
    assert status(overlapping, first) == "processing"
    store.let_go("a")
    assert overlapping.producer.wait(first)["status"] == "succeeded"


def test_the_lease_covers_what_is_behind(overlapping: Fleet, store: Store) -> None:
    before = runs(overlapping)
    store.hold("a")
    [first] = files(overlapping, "a")
    store.waits("a")
    assert overlapping.producer.predict({"mode": "sleeps", "seconds": 3.5})["status"] == "succeeded"
    [line] = overlapping.client.xpending_range(overlapping.queue, overlapping.queue, "-", "+", 10)
    assert line["times_delivered"] == 1 and int(line["time_since_delivered"]) < 1000
    store.let_go("a")
    overlapping.producer.wait(first)
    assert runs(overlapping) == before + 3


def test_what_is_behind_is_canceled_at_once(overlapping: Fleet, store: Store) -> None:
    store.hold("a")
    [first] = files(overlapping, "a")
    store.waits("a")
    running = overlapping.producer.send({"mode": "sleeps", "seconds": 4})
    overlapping.producer.cancel(first)
    assert bare(overlapping.producer.wait(first, timeout=3)) == canceled()
    assert overlapping.producer.wait(running)["status"] == "succeeded"


def test_what_is_behind_is_revoked_by_its_id(overlapping: Fleet, store: Store) -> None:
    store.hold("a")
    [first] = files(overlapping, "a")
    store.waits("a")
    running = overlapping.producer.send({"mode": "sleeps", "seconds": 4})
    with client_app(overlapping.server.url) as app:
        app.control.revoke(first.id)
    assert bare(overlapping.producer.wait(first, timeout=3)) == canceled()
    assert overlapping.producer.wait(running)["status"] == "succeeded"


def test_no_file_is_lost_that_could_not_be_opened_before_the_next_prediction(overlapping: Fleet, store: Store) -> None:
    first = [f"f {index}" for index in range(PARALLEL)]
    for text in first:
        store.hold(text)
    count = MAX_OPEN + 10
    request = overlapping.producer.send({"mode": "yields_files", "text": "f", "count": count})
    for text in first:
        store.waits(text)
    after = overlapping.producer.send({"mode": "hello"})  # with it, what the runner kept goes
    with pytest.raises(AssertionError):
        overlapping.producer.wait(after, timeout=0.3)
    for text in first:
        store.let_go(text)
    assert len(overlapping.producer.wait(request)["output"]) == count
    assert overlapping.producer.wait(after)["status"] == "succeeded"


def test_outputs_keep_their_order_while_the_predictor_works_on(
    overlapping: Fleet, monitor: Monitor, store: Store
) -> None:
    store.hold("f 0")
    request = overlapping.producer.send({"mode": "yields_files", "text": "f", "count": 3, "seconds": 0.1})
    store.waits("f 0")
    wait_until(lambda: {b"f 1", b"f 2"} <= {seen.body for seen in store.seen}, "the later files")
    assert overlapping.producer.get(request)["output"] in (None, [])  # type: ignore[index]
    store.let_go("f 0")
    urls = [f"{store.url}/file{i}.txt" for i in range(3)]
    history = [bare(snapshot.value) for snapshot in overlapping.producer.history(monitor, request)]
    assert history[-2:] == [processing(urls), succeeded(urls)]


def test_a_refused_file_ends_a_prediction_that_runs_on(overlapping: Fleet, store: Store) -> None:
    store.on("/file0.txt", lambda handler: handler.answer(403))
    try:
        response = overlapping.producer.predict({"mode": "yields_files", "text": "f", "count": 100, "seconds": 0.1})
    finally:
        del store.replies["/file0.txt"]
    assert response["status"] == "failed" and "403" in response["error"]
    assert response["output"] == []
    assert overlapping.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_files_of_a_runner_that_died_still_arrive(overlapping: Fleet, store: Store) -> None:
    store.hold("last words")
    request = overlapping.producer.send({"mode": "yields_a_file_and_dies", "text": "last words"})
    store.waits("last words")
    assert overlapping.producer.predict({"mode": "hello"}) == succeeded("hello world")
    store.let_go("last words")
    response = overlapping.producer.wait(request)
    assert response["status"] == "failed" and "exitcode -9" in response["error"]
    assert response["output"] == [f"{store.url}/hello.txt"]


def test_a_drain_waits_for_what_is_behind(fleet: FleetFactory, store: Store) -> None:
    fleet_ = fleet("modes", upload_url=store.url, lease=1)
    store.hold("a")
    [first] = files(fleet_, "a")
    store.waits("a")
    fleet_.producer.predict({"mode": "hello"})
    fleet_.workers[0].terminate()
    wait_until(lambda: fleet_.announced() == 0, "the drain to begin")
    with pytest.raises(AssertionError, match="still runs"):
        fleet_.workers[0].wait(0.5)
    assert "released" not in fleet_.workers[0].text()
    assert status(fleet_, first) == "processing"
    store.let_go("a")
    assert fleet_.producer.wait(first)["status"] == "succeeded"
    assert fleet_.workers[0].wait(10) == 0
    consumers = [line["name"] for line in fleet_.client.xinfo_consumers(fleet_.queue, fleet_.queue)]
    assert not [name for name in consumers if name.startswith("w0-")]


def test_a_prediction_that_timed_out_holds_no_drain_up(fleet: FleetFactory, store: Store) -> None:
    fleet_ = fleet("modes", upload_url=store.url, predict_timeout=0.3, drain_timeout=1)
    store.hold("f 0")
    request = fleet_.producer.send({"mode": "yields_files", "text": "f", "count": 1, "seconds": 30})
    store.waits("f 0")
    fleet_.workers[0].terminate()
    assert fleet_.workers[0].wait(10) == 0
    assert fleet_.producer.wait(request)["error"] == "Prediction timed out"


def test_what_is_behind_at_the_drains_limit_runs_elsewhere(fleet: FleetFactory, store: Store) -> None:
    fleet_ = fleet("modes", upload_url=store.url, lease=1, drain_timeout=0.2)
    store.hold("a")
    [first] = files(fleet_, "a")
    store.waits("a")
    fleet_.workers[0].terminate()
    assert fleet_.workers[0].wait(10) == 0
    store.let_go("a")
    fleet_.start_worker()
    assert fleet_.producer.wait(first)["output"] == f"{store.url}/hello.txt"  # at the same attempt


def test_both_predictions_of_a_killed_worker_run_elsewhere(fleet: FleetFactory, store: Store, monitor: Monitor) -> None:
    fleet_ = fleet("modes", upload_url=store.url, lease=1)
    store.hold("a")
    [first] = files(fleet_, "a")
    store.waits("a")
    second = fleet_.producer.send({"mode": "sleeps", "seconds": 1})
    wait_until(lambda: status(fleet_, second) == "processing", "the second to run")
    fleet_.workers[0].kill()
    store.let_go("a")
    fleet_.start_worker()
    assert fleet_.producer.wait(first)["output"] == f"{store.url}/hello-attempt2.txt"
    assert fleet_.producer.wait(second)["status"] == "succeeded"
    for request in (first, second):
        history = [snapshot.value["status"] for snapshot in monitor.sets(request.response_queue)]
        assert history.count("succeeded") == 1 and history[-1] == "succeeded"


def test_without_overlap_the_next_prediction_waits_for_the_files(fleet: FleetFactory, store: Store) -> None:
    fleet_ = fleet("modes", upload_url=store.url, overlap_uploads=False)
    store.hold("a")
    first, second = files(fleet_, "a", "b")
    store.waits("a")
    assert fleet_.pending() == 1
    store.let_go("a")
    fleet_.producer.wait(first)
    fleet_.producer.wait(second)
    order = [seen.body for seen in store.seen[-2:]]
    assert order == [b"a", b"b"]
