"""kill -9 of workers, bridges and whole fleets: every request is answered exactly once, and no process is left."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.conftest import FleetFactory, fleets_on, recording
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import wait_until
from tests.support.producer import TERMINAL, Request, succeeded
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

LEASE = 2.0


def running(fleet: Fleet, input: dict[str, object]) -> Request:
    request = fleet.producer.send(input)
    fleet.producer.wait_for(request, lambda response: True)
    return request


def terminals(monitor: Monitor, request: Request) -> list[str]:
    """The terminal statuses that were SET; none may be followed by anything."""
    statuses = [snapshot.value["status"] for snapshot in monitor.sets(request.response_queue)]
    ends = [status for status in statuses if status in TERMINAL]
    assert statuses[-1:] == ends[-1:], f"a snapshot after the terminal one: {statuses}"
    return ends


def test_a_prediction_of_a_killed_worker_is_run_by_another(fleet: FleetFactory, monitor: Monitor) -> None:
    two = fleet("modes", lease=LEASE)
    request = running(two, {"mode": "sleeps", "seconds": 1.5, "text": "done"})
    two.workers[0].kill()
    two.workers[0].wait()
    two.check_nothing_left(but=two.bridges)
    since = time.monotonic()
    two.start_worker()
    assert two.producer.wait(request, timeout=30)["output"] == "done"
    assert time.monotonic() - since < 3 * LEASE + 20
    assert terminals(monitor, request) == ["succeeded"]
    two.wait_idle()
    assert two.client.xlen(f"{two.queue}-dead") == 0


def test_a_prediction_that_kills_every_worker_fails_after_its_attempts(fleet: FleetFactory, monitor: Monitor) -> None:
    deadly = fleet("modes", lease=1, max_attempts=2)
    request = running(deadly, {"mode": "sleeps", "seconds": 60})
    deadly.workers[0].kill()
    deadly.workers[0].wait()
    seen = len(monitor.sets(request.response_queue))
    deadly.start_worker()
    wait_until(lambda: len(monitor.sets(request.response_queue)) > seen, "the second attempt", interval=0.05)
    deadly.workers[1].kill()
    deadly.workers[1].wait()
    deadly.start_worker()
    response = deadly.producer.wait(request)
    assert response["status"] == "failed"
    assert re.search(r"\b2\b", response["error"]), response["error"]
    assert terminals(monitor, request) == ["failed"]
    deadly.wait_idle()
    ((_, letter),) = cast(list[tuple[str, dict[str, str]]], deadly.client.xrange(f"{deadly.queue}-dead"))
    assert (letter["attempts"], letter["owner"].partition("~")[0]) == ("2", f"w1-{deadly.queue}")
    assert deadly.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_an_idle_worker_that_is_killed_costs_no_prediction(fleet: FleetFactory) -> None:
    two = fleet("modes", workers=2, lease=LEASE)
    two.workers[0].kill()
    two.workers[0].wait()
    since = time.monotonic()
    requests = [two.producer.send({"mode": "hello", "text": str(i)}) for i in range(20)]
    assert [two.producer.wait(request)["output"] for request in requests] == [f"hello {i}" for i in range(20)]
    assert time.monotonic() - since < 3 * LEASE + 2


def test_the_credit_of_a_dead_worker_gets_no_ticket(fleet: FleetFactory, monitor: Monitor) -> None:
    two = fleet("modes", workers=2, lease=1, turn=0)
    two.workers[0].kill()
    two.workers[0].wait()
    wait_until(lambda: two.announced() == 1, "the announcement to expire")
    assert two.credits() == 2
    for _ in range(3):
        assert two.producer.predict({"mode": "hello"}) == succeeded("hello world")
    tickets = [command.args[1].decode() for command in monitor.commands() if command.name == "LPUSH"]
    queues = {key for key in tickets if two.queue in key and "broker" in key}
    assert queues and all(f"w1-{two.queue}" in key for key in queues)


def test_kill_9_of_a_worker_takes_its_runners_and_what_their_models_started_along(fleet: FleetFactory) -> None:
    two = fleet("modes", slots=2)
    for _ in range(2):
        request = running(two, {"mode": "starts_a_child", "seconds": 60})
        two.producer.wait_for(request, lambda response: bool(response["logs"]))
    assert len(two.runners()) == 2
    assert sum("sleep 600" in process.command for process in two.processes()) == 2
    two.workers[0].kill()
    two.check_nothing_left(but=two.bridges)


def guardians(fleet: Fleet) -> list[int]:
    return [process.pid for process in fleet.processes() if "runners/kin.py" in process.command]


def test_a_guardian_that_is_killed_costs_nothing_and_is_replaced_before_it_is_needed(fleet: FleetFactory) -> None:
    one = fleet("modes", lease=1)
    request = running(one, {"mode": "starts_a_child", "seconds": 60})
    one.producer.wait_for(request, lambda response: bool(response["logs"]))
    (first,) = guardians(one)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: [pid for pid in guardians(one) if pid != first], "another guardian")
    response = one.producer.get(request)
    assert response is not None and response["status"] == "processing"
    one.workers[0].kill()
    one.check_nothing_left(but=one.bridges)


def test_kill_9_of_a_worker_whose_model_is_stuck_in_c_leaves_nothing(fleet: FleetFactory) -> None:
    stuck = fleet("modes")
    request = running(stuck, {"mode": "stuck"})
    stuck.producer.wait_for(request, lambda response: bool(response["logs"]))
    stuck.workers[0].kill()
    stuck.check_nothing_left(but=stuck.bridges)


def test_kill_9_of_a_bridge_leaves_nothing_and_another_goes_on(fleet: FleetFactory, monitor: Monitor) -> None:
    one = fleet("modes", lease=LEASE)
    requests = [one.producer.send({"mode": "sleeps", "seconds": 0.02, "text": str(i)}) for i in range(100)]
    one.producer.wait_for(requests[10], lambda response: True)
    one.bridges[0].kill()
    one.bridges[0].wait()
    one.check_nothing_left(but=one.workers)
    one.start_bridge()
    for i, request in enumerate(requests):
        assert one.producer.wait(request)["output"] == str(i)
    assert all(terminals(monitor, request) == ["succeeded"] for request in requests)


@pytest.mark.parametrize("kill_after", [0.0, 0.005])
def test_a_ticket_on_its_way_when_its_bridge_and_worker_die_is_not_lost(
    fleet: FleetFactory, monitor: Monitor, kill_after: float
) -> None:
    one = fleet("modes", lease=1, turn=0)
    request = one.producer.send({"mode": "sleeps", "seconds": 0.3, "text": "done"})
    time.sleep(kill_after)
    one.workers[0].kill()
    one.bridges[0].kill()
    one.workers[0].wait()
    one.bridges[0].wait()
    one.check_nothing_left()
    one.start_bridge()
    one.start_worker()
    assert one.producer.wait(request)["output"] == "done"
    assert terminals(monitor, request) == ["succeeded"]
    one.wait_idle()


def test_workers_and_bridges_that_die_all_the_time_lose_and_double_nothing(
    fleet: FleetFactory, monitor: Monitor
) -> None:
    fragile = fleet("modes", bridges=2, workers=2, slots=2, lease=1, max_attempts=100)
    requests = [fragile.producer.send({"mode": "sleeps", "seconds": 0.05, "text": str(i)}) for i in range(120)]
    for _ in range(2):
        fragile.workers[-1].kill()
        fragile.bridges[-1].kill()
        fragile.start_worker()
        fragile.start_bridge()
        time.sleep(1.0)
    for i, request in enumerate(requests):
        assert fragile.producer.wait(request, timeout=30)["output"] == str(i)
    fragile.wait_idle()
    assert [terminals(monitor, request) for request in requests] == [["succeeded"]] * 120
    assert fragile.client.xlen(f"{fragile.queue}-dead") == 0


def test_a_worker_that_was_stopped_for_longer_than_its_lease_cannot_answer_any_more(
    fleet: FleetFactory, monitor: Monitor
) -> None:
    """The fence: it comes back, with a result in its hands, after another has been given the entry."""
    two = fleet("modes", lease=1)
    request = running(two, {"mode": "sleeps", "seconds": 0.8, "text": "done"})
    os.kill(two.workers[0].pid, signal.SIGSTOP)
    two.start_worker()
    assert two.producer.wait(request)["output"] == "done"
    os.kill(two.workers[0].pid, signal.SIGCONT)
    # It notices, and serves on.
    wait_until(lambda: two.announced() == 2, "the first worker to be back")
    two.wait_ready(2)
    requests = [two.producer.send({"mode": "sleeps", "seconds": 0.2}) for _ in range(4)]
    for after in requests:
        two.producer.wait(after)
    assert terminals(monitor, request) == ["succeeded"]
    two.wait_idle()


def test_a_worker_that_was_stopped_shorter_than_its_lease_goes_on(fleet: FleetFactory, monitor: Monitor) -> None:
    one = fleet("modes", lease=3)
    request = running(one, {"mode": "sleeps", "seconds": 1, "text": "done"})
    os.kill(one.workers[0].pid, signal.SIGSTOP)
    time.sleep(0.7)
    os.kill(one.workers[0].pid, signal.SIGCONT)
    assert one.producer.wait(request)["output"] == "done"
    assert [snapshot.value["status"] for snapshot in monitor.sets(request.response_queue)] == [
        "processing",
        "succeeded",
    ]


# Whole fleets in one command


def test_kill_9_of_run_leaves_nothing(fleet: FleetFactory) -> None:
    whole = fleet("modes", shape="run", slots=2)
    request = running(whole, {"mode": "starts_a_child", "seconds": 60})
    whole.producer.wait_for(request, lambda response: bool(response["logs"]))
    [child] = whole.children
    assert len(whole.processes()) >= 6, "run, bridge, worker, two runners, the model's child"
    child.kill()
    whole.check_nothing_left()


def test_kill_9_of_run_takes_its_own_server_along(fleet: FleetFactory) -> None:
    whole = fleet("modes", start=False)
    command = [sys.executable, "-m", "cog_celery", "run", str(whole.model), "--queue", whole.queue]
    child = whole.start_child("run", ["env", "-u", "REDIS_URL", *command])
    wait_until(lambda: "XADD" in child.text() or not child.running, "the line to paste", timeout=30)
    child.check_running()
    assert any("valkey-server" in process.command for process in whole.processes())
    child.kill()
    whole.check_nothing_left()


@pytest.mark.parametrize("part", ["bridge", "worker"])
def test_kill_9_of_a_part_of_run_ends_the_whole_with_an_error_and_leaves_nothing(
    fleet: FleetFactory, part: str
) -> None:
    whole = fleet("modes", shape="run")
    [child] = whole.children
    [victim] = [
        one for one in whole.processes() if one.parent == child.pid and re.search(rf"cog_celery {part}\b", one.command)
    ]
    os.kill(victim.pid, signal.SIGKILL)
    assert child.wait() not in (0, -9)
    whole.check_nothing_left()


def test_run_ends_with_0_at_sigterm_and_at_ctrl_c(fleet: FleetFactory) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        whole = fleet("modes", shape="run")
        request = running(whole, {"mode": "sleeps", "seconds": 0.5})
        [child] = whole.children
        child.process.send_signal(number)
        assert child.wait() == 0
        assert (whole.producer.get(request) or {})["status"] == "succeeded"
        whole.check_nothing_left()


# Servers


@pytest.fixture
def lasting_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of one test's own that keeps its data over a restart."""
    server = RedisServer("valkey", tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


def test_a_restart_of_the_server_loses_and_doubles_nothing(lasting_server: RedisServer, tmp_path: Path) -> None:
    with fleets_on(lasting_server, tmp_path) as fleet:
        one = fleet("modes", slots=2, lease=LEASE)
        requests = [one.producer.send({"mode": "sleeps", "seconds": 0.3, "text": str(i)}) for i in range(10)]
        one.producer.wait_for(requests[1], lambda response: True)
        lasting_server.restart(pause=0.5)
        with recording(lasting_server) as monitor:
            for i, request in enumerate(requests):
                assert one.producer.wait(request, timeout=30)["output"] == str(i)
            one.wait_idle()
            assert all(len(terminals(monitor, request)) <= 1 for request in requests)
            assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_a_server_that_was_emptied_is_served_again(own_server: RedisServer, tmp_path: Path) -> None:
    with fleets_on(own_server, tmp_path) as fleet:
        one = fleet("modes", lease=1)
        assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
        own_server.client.flushall()
        own_server.client.script_flush()
        # Groups, credits, announcements, scripts: all is gone.
        assert one.producer.predict({"mode": "hello"}, timeout=20) == succeeded("hello world")
