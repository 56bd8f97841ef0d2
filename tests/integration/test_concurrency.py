"""A model that serves several predictions at once: they share one runner, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.producer import Request

pytestmark = pytest.mark.ours

MAX = 3
"""Predictions at once that the model allows."""
GRACE = 0.5
TIMEOUT = 2.0
"""Of `pair`, seconds."""


def started(fleet: Fleet, slots: int) -> Fleet:
    """Start it, and wait until so many slots are idle, however many runners they have."""
    fleet.slots = slots
    return fleet.start()


@pytest.fixture(scope="module")
def trio(shared_fleet: FleetFactory) -> Fleet:
    """One runner of three slots. Whatever costs an attempt is not run again."""
    options = {"cancel_grace": GRACE, "max_attempts": 1, "dialect": "cog-0.6", "turn": 0.1}
    return started(shared_fleet("concurrent", start=False, **options), MAX)


@pytest.fixture(scope="module")
def pair(shared_fleet: FleetFactory) -> Fleet:
    """Two runners of three slots each, whose predictions may take two seconds."""
    options = {"cancel_grace": GRACE, "predict_timeout": TIMEOUT, "dialect": "cog-0.6"}
    return started(shared_fleet("concurrent", start=False, slots=2, **options), 2 * MAX)


@pytest.fixture
def three(trio: Fleet) -> Iterator[Fleet]:
    """`trio`, of which nothing is left behind: afterwards all of its slots are idle, and one runner is there."""
    yield trio
    for request in trio.producer.sent:
        trio.producer.cancel(request)  # those that a failed test left
    trio.wait_idle()
    wait_until(lambda: trio.credits() == MAX, "all slots to be idle")
    assert len(trio.runners()) == 1


@pytest.fixture
def app(trio: Fleet) -> Iterator[Celery]:
    """An application that knows nothing of ours but the broker and its key prefix."""
    app = Celery("observer", broker=trio.server.url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "cog-celery:broker:"}
    with app:
        yield app


def send(fleet: Fleet, mode: str, text: str = "", **input: Any) -> Request:
    return fleet.producer.send({"mode": mode, "text": text, **input})


def running(fleet: Fleet, *requests: Request, but: int = 0) -> int:
    """Wait until all of them have begun in one runner that is not `but`, and shown it; its process id."""

    def begun(response: dict[str, Any]) -> bool:
        found = re.search(r"begins in (\d+)\n", response["logs"])
        return found is not None and int(found[1]) != but

    shown = [fleet.producer.wait_for(request, begun)["logs"] for request in requests]
    [pid] = {int(re.findall(r"begins in (\d+)\n", logs)[0]) for logs in shown}
    return pid


def over(fleet: Fleet, request: Request, status: str = "succeeded") -> dict[str, Any]:
    response = fleet.producer.wait(request)
    assert response["status"] == status, response
    return response


def setups(fleet: Fleet) -> int:
    """How many there were in this fleet."""
    return int(fleet.client.xlen(f"{fleet.queue}-setup-time"))


def waiting(fleet: Fleet, gate: str, *texts: str) -> list[Request]:
    return [send(fleet, "waits", text, gate=gate) for text in texts]


def waited(fleet: Fleet, request: Request, text: str, pid: int) -> None:
    """Assert that it went through its gate, once, in this runner."""
    response = over(fleet, request)
    assert (response["output"], response["logs"]) == (text, f"{text} begins in {pid}\n{text} ends\n")


def test_three_run_at_once_with_outputs_logs_and_metrics_of_their_own(three: Fleet) -> None:
    requests = {text: send(three, "meets", text, gate="all", count=MAX) for text in ("a", "b", "c")}
    for text, request in requests.items():
        response = over(three, request)
        steps = [f"{text} {step}" for step in range(3)]
        pid = response["metrics"]["pid"]
        assert response["output"] == response["metrics"]["steps"] == steps
        assert response["logs"].splitlines() == [f"{text} begins in {pid}", *steps, f"{text} ends"]
    assert {process.pid for process in three.runners()} == {pid}


@pytest.mark.parametrize("how", ["cancel key", "revoke"])
def test_a_canceled_prediction_gives_its_slot_to_the_next_and_leaves_its_neighbours_alone(
    three: Fleet, app: Celery, how: str
) -> None:
    a, b, c = waiting(three, how, "a", "b", "c")
    pid = running(three, a, b, c)
    opens = send(three, "opens", gate=how)
    if how == "revoke":
        app.control.revoke(b.id)
    else:
        three.producer.cancel(b)
    canceled = over(three, b, "canceled")
    assert canceled["logs"] == f"b begins in {pid}\nb cleans up\n"
    waited(three, a, "a", pid)
    waited(three, c, "c", pid)
    assert over(three, opens)["started_at"] > canceled["completed_at"], "a fourth one ran beside three"


def test_a_prediction_that_fails_leaves_its_neighbours_alone(three: Fleet) -> None:
    a, c = waiting(three, "fails", "a", "c")
    pid = running(three, a, c)
    failed = over(three, send(three, "raises", "b"), "failed")
    assert failed["error"] == "b"
    assert "ValueError: b" in failed["logs"]
    over(three, send(three, "opens", gate="fails"))
    waited(three, a, "a", pid)
    waited(three, c, "c", pid)


def test_a_prediction_that_holds_up_the_others_is_named_in_the_log(three: Fleet) -> None:
    [a] = waiting(three, "blocks", "a")
    pid = running(three, a)
    b = send(three, "blocks", "b", seconds=1.8)
    assert over(three, b)["output"] == "b"
    source = (three.model / "predict.py").read_text().splitlines()
    place = f"predict.py:{1 + next(i for i, line in enumerate(source) if 'time.sleep' in line)}"
    told = [line for line in three.workers[0].text().splitlines() if place in line]
    assert len(told) == 1 and b.id in told[0], told
    over(three, send(three, "opens", gate="blocks"))
    waited(three, a, "a", pid)


def test_one_that_does_not_stop_is_killed_and_its_neighbours_run_again_at_no_cost(three: Fleet) -> None:
    a, c = waiting(three, "ignores", "a", "c")
    b = send(three, "ignores", "b")
    first, before = running(three, a, b, c), setups(three)
    three.producer.cancel(b)
    assert over(three, b, "canceled")["logs"] == f"b begins in {first}\nb goes on\n"
    second = running(three, a, c, but=first)
    over(three, send(three, "opens", gate="ignores"))
    waited(three, a, "a", second)
    waited(three, c, "c", second)
    assert setups(three) == before + 1
    assert three.client.xlen(f"{three.queue}-dead") == 0


@pytest.mark.parametrize("how", ["it exits", "it is killed"])
def test_a_runner_that_dies_fails_all_that_ran_in_it_and_one_takes_its_place(three: Fleet, how: str) -> None:
    requests = waiting(three, how, "a", "b")
    first, before = running(three, *requests), setups(three)
    if how == "it exits":
        requests.append(send(three, "exits", count=7))
        exitcode = 7
    else:
        os.kill(first, signal.SIGKILL)
        exitcode = -signal.SIGKILL
    for request in requests:
        error = over(three, request, "failed")["error"]
        assert "unknown reason" in error and f"(exitcode {exitcode})" in error
    again = [send(three, "meets", gate="again", count=MAX) for _ in range(MAX)]
    [second] = {over(three, request)["metrics"]["pid"] for request in again}
    assert second != first
    assert setups(three) == before + 1


def test_two_runners_are_six_slots(pair: Fleet) -> None:
    [key] = pair.client.scan_iter(f"cog-celery:{pair.queue}:worker:*", count=1000)
    assert json.loads(pair.client.get(key))["slots"] == 2 * MAX  # type: ignore[arg-type]
    assert setups(pair) == 2
    requests = waiting(pair, "never opened", *"abcdef")  # each of them keeps its slot
    begun = [pair.producer.wait_for(request, lambda response: "begins in" in response["logs"]) for request in requests]
    pids = [re.findall(r"begins in (\d+)", response["logs"])[0] for response in begun]
    assert sorted(map(pids.count, set(pids))) == [MAX, MAX]
    for request in requests:
        pair.producer.cancel(request)
    for request in requests:
        pair.producer.wait(request)


def test_each_has_a_time_of_its_own(pair: Fleet) -> None:
    late = waiting(pair, "never", *"abcde")
    for request in late:
        pair.producer.wait_for(request, lambda response: True)
    # In the one slot that is left, one behind the other: the second one is at work when the others' time is over.
    for text in ("f", "g"):
        assert over(pair, send(pair, "sleeps", text, seconds=0.6 * TIMEOUT))["output"] == text
    for request in late:
        assert over(pair, request, "failed")["error"] == "Prediction timed out"
    assert setups(pair) == 2, "they stopped when they were told to"


def test_sigterm_lets_all_that_run_end(fleet: FleetFactory) -> None:
    two = started(fleet("concurrent", start=False, env={"COG_MAX_CONCURRENCY": "2"}), 2)
    requests = [send(two, "sleeps", text, seconds=3) for text in ("a", "b", "c")]
    for request in requests[:2]:
        two.producer.wait_for(request, lambda response: True)
    [worker] = two.workers
    worker.terminate()
    assert worker.wait() == 0
    assert [(two.producer.get(request) or {})["output"] for request in requests[:2]] == ["a", "b"]
    assert two.producer.get(requests[2]) is None, "it was not begun"
    assert (two.announced(), two.credits()) == (0, 0)
