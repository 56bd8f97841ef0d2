"""Who runs what when it is not plain: equal ids, late requests, lost tickets, released ones, nobody to take them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.processes import Child, wait_until
from tests.support.producer import succeeded

pytestmark = pytest.mark.ours


@pytest.fixture(scope="module")
def strict(shared_fleet: FleetFactory) -> Iterator[Fleet]:
    """One id runs once, and nobody waits longer than a second."""
    yield shared_fleet("modes", slots=2, lease=1.5, idempotent_ids=True, max_age=1)


def runs(fleet: Fleet) -> int:
    """How many predictions were answered with a run."""
    return int(fleet.client.hget(f"cog-celery:{fleet.queue}:counts", "done") or 0)


def test_an_id_that_is_sent_again_in_flight_is_not_run_again_and_both_producers_get_the_answer(strict: Fleet) -> None:
    before = runs(strict)
    first = strict.producer.send({"mode": "yields", "text": "a", "seconds": 1}, id="twice")
    strict.producer.wait_for(first, lambda response: True)
    second = strict.producer.send({"mode": "hello"}, id="twice")
    assert strict.producer.wait_for(second, lambda response: response["output"] == ["a 0", "a 1"])
    answers = [strict.producer.wait(request) for request in (first, second)]
    assert answers[0] == answers[1]
    assert answers[0]["output"] == ["a 0", "a 1", "a 2"]
    strict.wait_idle()
    assert runs(strict) == before + 1


def test_an_id_that_is_sent_again_later_gets_the_same_answer(strict: Fleet) -> None:
    answers = [strict.producer.predict({"mode": "hello", "text": text}, id="later") for text in ("first", "second")]
    assert answers == [succeeded("hello first")] * 2


def test_requests_without_an_id_are_all_run(strict: Fleet) -> None:
    sent = [strict.producer.send({"mode": "hello", "text": str(i)}, id=None) for i in range(3)]
    assert [strict.producer.wait(request)["output"] for request in sent] == ["hello 0", "hello 1", "hello 2"]


def test_a_request_that_waited_too_long_is_refused_and_not_run(strict: Fleet) -> None:
    long = [strict.producer.send({"mode": "sleeps", "seconds": 3}) for _ in range(2)]
    for request in long:
        strict.producer.wait_for(request, lambda response: True)
    response = strict.producer.predict({"mode": "hello"})
    assert response["status"] == "failed"
    assert "expired" in response["error"]
    assert [strict.producer.wait(request)["status"] for request in long] == ["succeeded"] * 2
    assert strict.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_a_ticket_that_the_broker_lost_is_sent_again_within_a_lease(fleet: FleetFactory) -> None:
    one = fleet("modes", lease=3, turn=0)
    (worker,) = one.workers
    os.kill(worker.pid, signal.SIGSTOP)
    request = one.producer.send({"mode": "hello"})

    def ticket() -> list[str]:
        names = one.client.scan_iter(f"cog-celery:broker:cog-celery.w0-{one.queue}*", count=1000)
        return [name for name in names if one.client.type(name) == "list"]

    one.client.delete(*wait_until(ticket, "the ticket"))
    # The worker had asked for a message, and may have been served before: then nothing was lost, and it is only late.
    os.kill(worker.pid, signal.SIGCONT)
    since = time.monotonic()
    assert one.producer.wait(request)["output"] == "hello world"
    assert time.monotonic() - since < 3
    assert one.client.xpending(one.queue, one.queue)["pending"] == 0


def test_what_a_drain_releases_runs_elsewhere_within_3_s_at_the_default_lease(fleet: FleetFactory) -> None:
    two = fleet("modes", workers=2, drain_timeout=0.3)
    running = two.producer.send({"mode": "identity", "seconds": 2})
    two.producer.wait_for(running, lambda response: True)
    owner = str(two.client.xpending_range(two.queue, two.queue, "-", "+", 1)[0]["consumer"])
    (drained,) = (worker for worker, name in zip(two.workers, ("w0", "w1"), strict=True) if owner.startswith(name))
    drained.terminate()

    def elsewhere() -> bool:
        (entry,) = two.client.xpending_range(two.queue, two.queue, "-", "+", 1)
        return "." in str(entry["consumer"]) and entry["consumer"] != owner and entry["times_delivered"] == 1

    since = time.monotonic()
    wait_until(elsewhere, "the other worker to run it")
    assert time.monotonic() - since < 0.3 + 3
    assert drained.wait() == 0
    assert two.producer.wait(running)["status"] == "succeeded"


def lines(child: Child, words: str) -> int:
    return sum(words in line for line in child.text().splitlines())


def test_a_queue_that_is_too_long_and_that_nobody_serves_is_said_once_and_so_is_the_end_of_it(
    fleet: FleetFactory,
) -> None:
    deserted = fleet("modes", start=False, lease=1, max_length=3)
    bridge = deserted.start_bridge()
    requests = [deserted.producer.send({"mode": "hello"}) for _ in range(5)]
    wait_until(lambda: lines(bridge, "and no worker takes them: 5"), "nobody", timeout=15)
    deserted.start_worker()
    for request in requests:
        deserted.producer.wait(request)
    wait_until(lambda: lines(bridge, "are taken again"), "somebody")
    wait_until(lambda: lines(bridge, "is well below"), "a short queue")
    assert lines(bridge, "is longer than --max-length 3") == 1
    assert lines(bridge, "no worker takes them") == 1


def test_a_request_that_had_its_turn_in_time_is_not_too_old_for_another(fleet: FleetFactory) -> None:
    two = fleet("modes", workers=2, max_age=1, drain_timeout=0.1)
    running = two.producer.send({"mode": "sleeps", "seconds": 1.6, "text": "done"})
    two.producer.wait_for(running, lambda response: True)
    time.sleep(1.1)  # it is older than that now
    owner = str(two.client.xpending_range(two.queue, two.queue, "-", "+", 1)[0]["consumer"])
    two.workers[owner.startswith("w1")].terminate()
    assert two.producer.wait(running)["output"] == "done"
