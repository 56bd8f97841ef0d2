"""What becomes of a prediction's row, as Celery's own model of events has it, whatever happens to the prediction."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from celery import Celery
from celery.events.state import State, Task

from cog_celery.delivery.finished import Finished
from cog_celery.telemetry.rows import Rows, node_name
from tests.support.processes import wait_until

HERE, ELSEWHERE = node_name("q", "one"), node_name("q", "two")


class Shown(Rows):
    """What a worker would publish goes to an observer at once."""

    def __init__(self, app: Celery, hostname: str, state: State) -> None:
        super().__init__(app, hostname, "hello")
        self._state = state

    def _send(self, dispatcher: Any, rows: list[dict[str, Any]]) -> None:  # type: ignore[override]
        for row in json.loads(msgspec.json.encode(rows)):
            self._state.event({**row, "local_received": time.time()})


class Seen:
    """Two workers' rows and what an observer has made of them."""

    def __init__(self) -> None:
        self.app = Celery(broker="memory://localhost", set_as_current=False)
        self.state = State()
        self.rows, self.other = Shown(self.app, HERE, self.state), Shown(self.app, ELSEWHERE, self.state)

    def wait(self, condition: Callable[[Task], Any]) -> Task:
        """The row of prediction "a", once that is true."""

        def look() -> Task | None:
            task = self.state.tasks.get("a")
            return task if task and condition(task) else None

        return wait_until(look, "the row to be so", 5)


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    seen.rows.close()
    seen.other.close()
    seen.app.close()


def begin(rows: Rows, attempt: int = 1) -> None:
    rows.begin("a", queue="q", slot=3, gpu="7", attempt=attempt)


def end(rows: Rows, outcome: Any, **fields: Any) -> None:
    known: dict[str, Any] = {"queue": "q", "slot": 3, "id": "a", "entry": "1-1", "attempt": 1, "ran": True}
    rows.end(Finished(**{**known, "outcome": outcome, "received": 10.0, "ended": 12.5, **fields}))


def test_a_row_says_where_it_runs_and_how_often_it_was_tried(seen: Seen) -> None:
    begin(seen.rows, attempt=2)
    task = seen.wait(lambda task: task.state == "STARTED")
    assert (task.name, task.args, task.kwargs) == ("hello", "()", "queue=q, slot=3, gpu=7, attempt=2")
    assert (task.worker.hostname, task.retries) == (HERE, 1)


@pytest.mark.parametrize(
    ("outcome", "fault", "state", "exception"),
    [
        ("succeeded", None, "SUCCESS", None),
        ("failed", "model", "FAILURE", "ModelError"),
        ("failed", "platform", "FAILURE", "PlatformError"),
        ("failed", "input", "FAILURE", "InvalidInput"),
        ("refused", "input", "FAILURE", "InvalidInput"),
        ("canceled", None, "REVOKED", None),
    ],
)
def test_ends_are_told_apart(seen: Seen, outcome: str, fault: Any, state: str, exception: str | None) -> None:
    begin(seen.rows)
    end(seen.rows, outcome, fault=fault)
    task = seen.wait(lambda task: task.state == state)
    assert (task.exception, task.runtime) == (exception, 2.5)


@pytest.mark.parametrize("how", ["given back", "lost"])
def test_the_next_attempts_state_is_shown_after_one_that_came_to_nothing(seen: Seen, how: str) -> None:
    begin(seen.rows)
    seen.wait(lambda task: task.state == "STARTED")
    if how == "lost":
        seen.other.lost("a", HERE, time.time() - 5)
    else:
        end(seen.rows, "released")
    assert seen.wait(lambda task: task.state == "RETRY").worker.hostname == HERE
    begin(seen.other, attempt=2)
    task = seen.wait(lambda task: task.state == "STARTED")
    assert (task.worker.hostname, task.retries) == (ELSEWHERE, 1)
    end(seen.other, "failed", fault="model")
    assert seen.wait(lambda task: task.state == "FAILURE").exception == "ModelError"


def test_a_worker_that_is_lost_is_not_shown_as_alive_by_what_is_said_of_it(seen: Seen) -> None:
    seen.other.given_up("a", HERE, time.time() - 200)
    assert seen.wait(lambda task: task.state == "FAILURE").exception == "PlatformError"
    assert not seen.state.workers[HERE].alive


def test_an_answer_that_came_too_late_and_what_was_no_prediction_change_no_row(seen: Seen) -> None:
    begin(seen.other, attempt=2)
    seen.wait(lambda task: task.state == "STARTED")
    end(seen.rows, "stale")
    end(seen.rows, "refused", fault="input", ran=False)
    end(seen.rows, "succeeded", id="b")
    seen.wait(lambda task: "b" in seen.state.tasks)
    assert seen.state.tasks["a"].state == "STARTED"


def test_node_names_are_safe_and_the_same_for_each_life() -> None:
    assert node_name("a queue/x", "gpu@1") == "a-queue-x@gpu-1"
