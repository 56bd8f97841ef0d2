"""A server that is emptied, busy, forbidding or gone: answers stay right, work goes on, and stopping always ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from cog_celery import failpoints
from tests.conftest import FleetFactory, fleets_on, recording
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import wait_until
from tests.support.producer import Request, bare, processing, succeeded
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

LEASE = 2.0
BUSY = 1.2
"""Seconds for which a script of somebody else holds the server."""


def running(fleet: Fleet, input: dict[str, Any], **fields: Any) -> Request:
    """A prediction that has shown output."""
    request = fleet.producer.send(input, **fields)
    fleet.producer.wait_for(request, lambda response: bool(response["output"]))
    return request


def serves(fleet: Fleet, text: str = "world", timeout: float = 15.0) -> None:
    """The next prediction is answered, with its own output and nothing else."""
    response = fleet.producer.predict({"mode": "hello", "text": text}, timeout=timeout)
    assert response == succeeded(f"hello {text}")


# A server that forgets


@pytest.mark.parametrize("loss", ["the group", "the stream", "everything"])
def test_what_runs_when_its_queue_is_lost_never_reaches_the_next_predictions(
    own_server: RedisServer, tmp_path: Path, loss: str
) -> None:
    with fleets_on(own_server, tmp_path) as make, recording(own_server) as monitor:
        one = make("modes", lease=LEASE)
        client, queue = own_server.client, one.queue
        first = running(one, {"mode": "prints_and_yields", "text": "first", "count": 15, "seconds": 0.1})
        match loss:
            case "the group":
                client.xgroup_destroy(queue, queue)
            case "the stream":
                client.delete(queue)
            case _:
                client.flushall()
        later = [one.producer.send({"mode": "prints_and_yields", "text": f"b{i}", "count": 1}) for i in range(4)]
        for i, request in enumerate(later):
            assert bare(one.producer.wait(request, timeout=20)) == succeeded([f"b{i} 0"], [f"b{i} 0"])
        for i, request in enumerate(later):
            for snapshot in monitor.sets(request.response_queue):
                assert set(snapshot.value["output"] or []) | set(snapshot.value["logs"]) <= {f"b{i} 0"}
        if loss == "the group":  # its entry is still there, and is served by the group that was made again
            lines = [f"first {i}" for i in range(15)]
            assert bare(one.producer.wait(first)) == succeeded(lines, lines)
        assert [group["name"] for group in client.xinfo_groups(queue)] == [queue]
        one.workers[0].check_running()
        one.bridges[0].check_running()
        one.wait_idle()


@pytest.mark.parametrize("credits", ["kept", "lost"])
def test_a_worker_whose_announcement_was_lost_is_served_from_its_next_heartbeat_on(modes: Fleet, credits: str) -> None:
    modes.wait_ready(1)
    names = modes.client.keys(f"cog-celery:{modes.queue}:worker:*")
    # At once: between the two it may announce itself, and see that its credits are there.
    modes.client.delete(*names, *([f"cog-celery:{modes.queue}:credits"] if credits == "lost" else []))
    # A heartbeat is every second, for the lease is three.
    serves(modes, timeout=10)


# A server that is busy


@contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    """The server runs a slow script for BUSY seconds, and answers everybody else with an error."""

    def spin() -> None:
        with (
            redis.Redis(port=server.port, socket_timeout=60) as client,
            pytest.raises(redis.ResponseError),
        ):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=spin)
    thread.start()

    def refuses() -> bool:
        try:
            server.client.ping()
        except redis.ResponseError as error:
            return "BUSY" in str(error)
        return False

    wait_until(refuses, "the server to be busy")
    yield
    time.sleep(BUSY)
    server.client.script_kill()
    thread.join()


@pytest.fixture
def impatient_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Says BUSY as soon as a script takes 0.1 s."""
    server = RedisServer("valkey", tmp_path, "--lua-time-limit", "100")
    yield server
    server.stop()


def test_a_server_that_was_busy_with_a_slow_script_costs_nothing(impatient_server: RedisServer, tmp_path: Path) -> None:
    with fleets_on(impatient_server, tmp_path) as make:
        one = make("modes", lease=LEASE, turn=0.3)
        request = running(one, {"mode": "yields", "text": "y", "count": 15, "seconds": 0.1})
        with busy(impatient_server):
            pass
        assert bare(one.producer.wait(request)) == succeeded([f"y {i}" for i in range(15)])
        serves(one)
        one.wait_ready(1)  # and once more when nothing runs, and everybody waits in a blocking read
        with busy(impatient_server):
            pass
        serves(one)


def test_a_worker_and_a_bridge_that_are_told_to_stop_while_the_server_is_busy_finish_and_end_with_0(
    impatient_server: RedisServer, tmp_path: Path
) -> None:
    with fleets_on(impatient_server, tmp_path) as make:
        one = make("modes", lease=LEASE)
        request = running(one, {"mode": "yields", "text": "y", "count": 10, "seconds": 0.1})
        with busy(impatient_server):
            one.terminate()
        one.stop()
        assert bare(one.producer.get(request) or {}) == succeeded([f"y {i}" for i in range(10)])


# A server that forbids


@dataclass(frozen=True)
class LimitedServer:
    """A server as a user with limited rights sees it; `client` may do everything."""

    url: str
    port: int
    client: redis.Redis


def limited(server: RedisServer, queue: str) -> LimitedServer:
    """Only the queue's own keys, ours, and response and cancel keys of the form that producers here use."""
    rules = (f"~{queue}", f"~{queue}-*", "~cog-celery:*", "~response-*", "~cancel-*", "&*", "+@all")
    server.client.execute_command("ACL", "SETUSER", "fleet", "on", ">word", *rules)
    return LimitedServer(f"redis://fleet:word@127.0.0.1:{server.port}/0", server.port, server.client)


def dead_letters(fleet: Fleet) -> list[dict[str, str]]:
    letters = cast("list[tuple[str, dict[str, str]]]", fleet.client.xrange(f"{fleet.queue}-dead"))
    return [fields for _, fields in letters]


def test_messages_whose_keys_are_forbidden_end_among_the_dead_letters_and_the_next_are_served(
    own_server: RedisServer, tmp_path: Path
) -> None:
    with fleets_on(limited(own_server, "small"), tmp_path) as make:
        one = make("modes", queue="small", lease=LEASE)
        for count, message in enumerate(
            [
                {"input": {"mode": "yields", "seconds": 0.1}, "response_queue": "forbidden"},
                {"input": {"mode": "hello"}, "response_queue": "forbidden", "cancel_key": "cancel-x"},
                {"input": {"mode": "hello"}, "response_queue": "response-x", "cancel_key": "forbidden"},
                {"input": 3, "response_queue": "forbidden"},
            ],
            start=1,
        ):
            one.producer.send_raw(json.dumps(message))
            serves(one, timeout=5)
            one.wait_idle(timeout=5)
            letters = dead_letters(one)
            assert len(letters) == count, message
            assert json.loads(letters[-1]["value"]) == message
            assert letters[-1]["reason"]
        one.workers[0].check_running()
        one.bridges[0].check_running()
        assert "a bug of ours" not in one.log() and "Traceback" not in one.log()
        assert not own_server.client.exists("forbidden")


def test_keys_of_another_type_beside_the_queue_cost_no_answer(fleet: FleetFactory) -> None:
    one = fleet("modes", start=False, lease=LEASE)
    for name in ("dead", "run-time", "setup-time"):
        one.client.set(f"{one.queue}-{name}", "not a stream")
    one.start()
    for _ in range(3):
        serves(one, timeout=5)
    one.producer.send_raw(json.dumps({"input": 3, "response_queue": f"{one.queue}-bad"}))
    assert one.producer.wait(f"{one.queue}-bad", timeout=5)["status"] == "failed"
    one.producer.send_raw("nonsense")
    serves(one, timeout=5)
    one.wait_idle(timeout=5)
    assert "a bug of ours" not in one.log() and "Traceback" not in one.log()


# A connection that breaks


def test_a_snapshot_that_met_a_broken_connection_is_shown_within_a_second(modes: Fleet, monitor: Monitor) -> None:
    request = modes.producer.send({"mode": "yields", "text": "y", "count": 2, "seconds": 4})
    modes.producer.wait_for(request, lambda response: bool(response["output"]))
    slots = [one for one in modes.client.client_list() if one["name"].startswith("cog-celery-slot:")]
    [connection] = [one for one in slots if f"w0-{modes.queue}" in one["name"]]
    assert modes.client.client_kill_filter(_id=connection["id"]) == 1
    history = modes.producer.history(monitor, request)
    first, second = (next(one.time for one in history if len(one.value["output"] or []) == n) for n in (1, 2))
    assert second - first < 4 + 3, "and not at the end, at 8"


# A server that is gone


@pytest.fixture
def lasting_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of one test's own that keeps its data over a restart."""
    server = RedisServer("valkey", tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


def answers(server: RedisServer) -> bool:
    try:
        return bool(server.client.ping())
    except redis.ConnectionError:
        return False


def test_a_worker_that_is_told_to_stop_while_the_server_is_out_of_reach_finishes_and_answers_when_it_is_back(
    lasting_server: RedisServer, tmp_path: Path
) -> None:
    with fleets_on(lasting_server, tmp_path) as make, ThreadPoolExecutor(1) as pool:
        one = make("modes", drain_timeout=20)
        request = running(one, {"mode": "yields", "text": "y", "count": 15, "seconds": 0.1})
        restart = pool.submit(lasting_server.restart, 1.0)
        wait_until(lambda: not answers(lasting_server), "the server to be gone", interval=0.001)
        one.workers[0].terminate()
        restart.result()
        assert one.workers[0].wait(15) == 0
        assert bare(one.producer.get(request) or processing()) == succeeded([f"y {i}" for i in range(15)])
        assert one.depth() == 0


def test_stopping_ends_when_the_server_is_gone_for_good(own_server: RedisServer, tmp_path: Path) -> None:
    """One slot is idle, one has an answer that it cannot give, and one would go on for long."""
    with fleets_on(own_server, tmp_path) as make:
        one = make("modes", slots=3, drain_timeout=2)
        for seconds in (0.5, 60):
            request = one.producer.send({"mode": "sleeps", "seconds": seconds})
            one.producer.wait_for(request, lambda response: True)
        own_server.stop()
        wait_until(lambda: all("out of reach" in child.text() for child in one.children), "the outage to be noticed")
        one.terminate()
        one.stop(timeout=8)


# A server that has no room


def test_what_used_up_its_attempts_is_not_run_once_more_because_the_server_had_no_room_for_its_letter(
    own_server: RedisServer, tmp_path: Path
) -> None:
    with fleets_on(own_server, tmp_path) as make:
        one = make("modes", start=False, lease=1, max_attempts=1)
        one.start_bridge(env={failpoints.VARIABLE: "bridge.reclaimed=sleep:0.5"})
        one.start_worker()
        one.wait_ready()
        request = one.producer.send({"mode": "sleeps", "seconds": 60})
        one.producer.wait_for(request, lambda response: True)
        one.workers[0].kill()
        one.workers[0].wait()

        def owner() -> str:
            (entry,) = cast(list[dict[str, Any]], one.client.xpending_range(one.queue, one.queue, "-", "+", 1))
            return str(entry["consumer"])

        wait_until(lambda: "." not in owner(), "the bridge to take it over")
        own_server.client.config_set("maxmemory", 1)
        time.sleep(1)  # it cannot be ended meanwhile
        own_server.client.config_set("maxmemory", 0)
        one.start_worker()
        response = one.producer.wait(request)
        assert response["status"] == "failed" and "lost with its worker" in response["error"]
        one.wait_idle()
        assert one.client.xlen(f"{one.queue}-dead") == 1
        serves(one)
