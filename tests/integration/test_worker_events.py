"""Celery's view of a fleet: one row per prediction, none for turns; revoke by prediction id; no inputs anywhere."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.producer import bare, canceled, succeeded
from tests.support.servers import UNDER_ACL, as_user

pytestmark = pytest.mark.ours


def client_app(url: str) -> Celery:
    """An application that knows nothing of ours but the broker and its key prefix."""
    app = Celery("observer", broker=as_user("monitor", url), set_as_current=False)
    # The monitor of deploy/redis is what our own applications are, and acknowledges nothing.
    options = {"ack_emulation": False} if UNDER_ACL else {}
    app.conf.broker_transport_options = {"global_keyprefix": "cog-celery:broker:", **options}
    return app


class Rows:
    """The task events that a receiver of Celery's own gets."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self.events: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _receive(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.events.append})
            with receiver.consumer_context() as (connection, _, _):
                self._ready.set()
                while not self._stop.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    def of(self, id: str) -> list[str]:
        """The types of the events of one row, in order."""
        return [event["type"] for event in list(self.events) if event.get("uuid") == id]

    def tasks(self) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["type"].startswith("task-")]

    def wait(self, id: str, last: str) -> list[str]:
        wait_until(lambda: last in self.of(id), f"the event {last} of {id}, got {self.tasks()}")
        return self.of(id)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def app(modes: Fleet) -> Iterator[Celery]:
    with client_app(modes.server.url) as app:
        yield app


@pytest.fixture
def rows(app: Celery) -> Iterator[Rows]:
    rows = Rows(app)
    yield rows
    rows.stop()


def test_each_prediction_is_a_row_of_its_own_and_turns_are_not_shown(modes: Fleet, rows: Rows) -> None:
    requests = [modes.producer.send({"mode": "hello"}) for _ in range(10)]
    for request in requests:
        modes.producer.wait(request)
    for request in requests:
        assert rows.wait(request.id, "task-succeeded") == ["task-received", "task-started", "task-succeeded"]
    # The last of the test before may be there, too.
    sent = {name for request in modes.producer.sent for name in (request.id, request.entry)}
    assert {event["uuid"] for event in rows.tasks() if event["hostname"].startswith(f"{modes.queue}@")} <= sent


@pytest.mark.parametrize("id", ["not/safe id", "", "x" * 500, None])
def test_a_row_without_a_safe_id_is_named_after_its_entry(modes: Fleet, rows: Rows, id: str | None) -> None:
    request = modes.producer.send({"mode": "hello"}, id=id)
    modes.producer.wait(request)
    assert rows.wait(request.entry, "task-succeeded")


def test_a_row_tells_the_time_of_its_prediction(modes: Fleet, rows: Rows) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 0.3})
    modes.producer.wait(request)
    rows.wait(request.id, "task-succeeded")
    [event] = [event for event in rows.tasks() if event["uuid"] == request.id and event["type"] == "task-succeeded"]
    assert 0.3 <= event["runtime"] < 2


def test_a_row_of_a_running_prediction_is_there_before_it_ends(modes: Fleet, rows: Rows) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 30})
    rows.wait(request.id, "task-started")
    assert modes.producer.wait_for(request, lambda response: True)["status"] == "processing"
    modes.producer.cancel(request)
    modes.producer.wait(request)


@pytest.mark.parametrize(
    ("input", "last"),
    [
        ({"mode": "fails", "text": "no luck"}, "task-failed"),
        ({"mode": "hello", "count": "many"}, "task-failed"),
        ({"mode": "os_exit", "count": 1}, "task-failed"),
    ],
)
def test_a_failed_prediction_is_a_failed_row(modes: Fleet, rows: Rows, input: dict[str, Any], last: str) -> None:
    request = modes.producer.send(input)
    assert modes.producer.wait(request)["status"] == "failed"
    assert rows.wait(request.id, last)[-1] == last


def test_a_canceled_prediction_is_a_revoked_row(modes: Fleet, rows: Rows) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 30})
    modes.producer.wait_for(request, lambda response: True)
    modes.producer.cancel(request)
    modes.producer.wait(request)
    assert rows.wait(request.id, "task-revoked")[-1] == "task-revoked"


def test_no_input_is_in_any_event_nor_in_what_inspect_shows(modes: Fleet, app: Celery, rows: Rows) -> None:
    secret = f"secret-{uuid.uuid4().hex}"
    failed = modes.producer.send({"mode": "fails", "text": secret})
    modes.producer.wait(failed)
    rows.wait(failed.id, "task-failed")
    request = modes.producer.send({"mode": "sleeps", "seconds": 30, "text": secret})
    modes.producer.wait_for(request, lambda response: True)
    shown = app.control.inspect(timeout=1).active()
    modes.producer.cancel(request)
    modes.producer.wait(request)
    rows.wait(request.id, "task-revoked")
    assert shown, "the worker answers while it predicts"
    assert secret not in json.dumps(shown)
    assert secret not in json.dumps(rows.tasks(), default=str)


@pytest.mark.parametrize("terminate", [False, True])
def test_revoke_of_a_running_predictions_id_cancels_it(modes: Fleet, app: Celery, terminate: bool) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 30})
    modes.producer.wait_for(request, lambda response: True)
    app.control.revoke(request.id, terminate=terminate)
    assert bare(modes.producer.wait(request, timeout=3)) == canceled()
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_revoke_of_a_waiting_predictions_id_cancels_it_when_its_turn_comes(modes: Fleet, app: Celery) -> None:
    first = modes.producer.send({"mode": "sleeps", "seconds": 3})
    modes.producer.wait_for(first, lambda response: True)
    waiting = modes.producer.send({"mode": "prints"})
    app.control.revoke(waiting.id)
    assert bare(modes.producer.wait(first)) == succeeded("world")
    assert bare(modes.producer.wait(waiting)) == canceled()


def test_a_revoked_id_is_forgotten_once_it_was_used(modes: Fleet, app: Celery) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 30}, id="used-again")
    modes.producer.wait_for(request, lambda response: True)
    app.control.revoke("used-again")
    assert modes.producer.wait(request, timeout=3)["status"] == "canceled"
    assert modes.producer.predict({"mode": "hello"}, id="used-again") == succeeded("hello world")


def test_the_worker_answers_remote_control_while_it_predicts(modes: Fleet, app: Celery) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 30})
    modes.producer.wait_for(request, lambda response: True)
    since = time.monotonic()
    replies = app.control.ping(timeout=2, limit=1)
    assert replies and time.monotonic() - since < 2
    modes.producer.cancel(request)
    modes.producer.wait(request)
