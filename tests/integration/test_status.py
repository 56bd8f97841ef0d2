"""`cog-celery status` as a person uses it: on a fleet that works, on what is left of one, on what is sent to harm."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result
from rich.console import Console

from cog_celery.cli import main as cli
from cog_celery.cli import status_view
from cog_celery.delivery.link import Link
from cog_celery.delivery.presence import noted
from cog_celery.delivery.status import Look
from cog_celery.delivery.stream import Delivery, Entry, Queue
from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.producer import Request
from tests.support.servers import RedisServer, as_user

pytestmark = pytest.mark.ours

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]\u202egnp\x9b\r\n\x00"

Status = Callable[..., Result]


@pytest.fixture
def status(redis_server: RedisServer) -> Status:
    """Run `cog-celery status …`, without a terminal."""

    def run(*arguments: str, url: str | None = None) -> Result:
        env = {"COG_CELERY_QUEUE": None, "REDIS_URL": as_user("monitor", url or redis_server.url)}
        return CliRunner().invoke(cli.cli, ["status", *arguments], env=env)

    return run


@pytest.fixture(scope="module")
def working(shared_fleet: FleetFactory) -> Fleet:
    """Two slots of one worker."""
    return shared_fleet("modes", slots=2, lease=1)


def told(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    [queue] = json.loads(result.stdout)["queues"]
    assert isinstance(queue, dict)
    return queue


def prediction(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    [one] = json.loads(result.stdout)["predictions"]
    assert isinstance(one, dict)
    return one


def history(one: dict[str, Any]) -> str:
    return "; ".join(event["what"] for event in one["history"])


@pytest.fixture
def busy(working: Fleet) -> Iterator[list[Request]]:
    """Two predictions that run, and one that waits."""
    sent = [working.producer.send({"mode": "sleeps", "seconds": 30}) for _ in range(3)]
    wait_until(lambda: all(map(working.producer.get, sent[:2])), "two to run")
    yield sent
    for request in sent:
        working.producer.cancel(request)
    for request in sent:
        working.producer.wait(request)


# A fleet that works


def test_queue_and_worker_are_shown_as_they_are(working: Fleet, busy: list[Request], status: Status) -> None:
    running = {request.id for request in busy[:2]}

    def ids() -> set[str]:
        queue = told(status("--queue", working.queue))
        return {one["id"] for process in queue["processes"] for slot in process["slots"] for one in slot["running"]}

    def in_time() -> dict[str, Any]:
        queue = told(status("--queue", working.queue))
        states = {process["state"] for process in queue["processes"]}
        return queue if states == {"ready"} and queue["troubles"] == [] else {}

    wait_until(lambda: ids() == running, "a heartbeat to tell what runs")
    queue = wait_until(in_time, "all heartbeats to be in time")
    assert (queue["length"], queue["waiting"], queue["running"], queue["dead"]) == (3, 1, 2, 0)
    assert 0 < queue["oldest"] < 20 and queue["slots"] == {"busy": 2}
    bridge, worker = queue["processes"]
    assert (bridge["role"], worker["role"]) == ("bridge", "worker")
    assert worker["model"] == "modes" and re.fullmatch("[0-9a-f]{12}", worker["model_version"])
    assert worker["age"] < 1 and worker["version"] == bridge["version"]
    assert all(0 < one["seconds"] < 20 and one["attempt"] == 1 for slot in worker["slots"] for one in slot["running"])
    text = status("--queue", working.queue, "--output", "text").stdout
    assert working.queue in text and all(id in text for id in running) and "\x1b" not in text


def test_where_a_prediction_is_and_what_became_of_it(working: Fleet, busy: list[Request], status: Status) -> None:
    queue = ("--queue", working.queue)
    for id in (busy[0].id, busy[0].entry):
        one = prediction(status(id, *queue))
        assert (one["state"], one["id"], one["attempt"], one["max_attempts"]) == ("running", busy[0].id, 1, 3)
        assert one["response"]["status"] == "processing" and one["worker"]["model"] == "modes"
        assert history(one).startswith("sent; taken by ") and 0 < one["seconds"] < 20
    one = prediction(status(busy[2].id, *queue))
    assert (one["state"], one["place"]) == ("waiting", 0) and "no snapshot yet" in one["response"]["note"]
    assert "waiting, 0 requests are before it" in status(busy[2].id, *queue, "--output", "text").stdout
    working.producer.cancel(busy[0])
    working.producer.wait(busy[0])
    one = prediction(status(busy[0].id, *queue))
    assert (one["state"], one["status"], one["attempt"]) == ("ended", "canceled", 1)
    assert re.fullmatch(r"sent; canceled in .*: attempt 1", history(one))
    assert one["response"]["status"] == "canceled"


def test_ends_are_told_apart_and_counted(working: Fleet, status: Status) -> None:
    producer, queue = working.producer, ("--queue", working.queue)
    failing = producer.send({"mode": "fails", "text": "too bad"})
    refused = producer.send({"mode": "hello", "count": -1})
    producer.wait(failing)
    producer.wait(refused)
    letter = producer.send_raw("{}{}")
    working.wait_idle()
    one = prediction(status(failing.id, *queue))
    assert (one["status"], one["fault"], one["response"]["error"]) == ("failed", "model", "too bad")
    assert prediction(status(refused.id, *queue))["fault"] == "input"
    one = prediction(status(letter, *queue))
    assert one["state"] == "dead" and "not JSON" in one["reason"] and history(one).startswith("sent; buried: ")
    rates = told(status(*queue))["rates"]
    assert rates["outcomes"]["failed:model"] == 1 and rates["buried"] == 1 and rates["ended"] >= 3
    assert 0 < rates["in_queue"]["p50"] <= rates["in_queue"]["p95"] <= rates["in_queue"]["max"] < 60
    text = status(failing.id, *queue, "--output", "text").stdout
    assert "failed, the model's fault" in text and "too bad" in text


def test_a_worker_that_was_killed_is_shown_as_gone_with_what_it_ran(fleet: FleetFactory, status: Status) -> None:
    one = fleet("modes", lease=1)
    queue = ("--queue", one.queue)
    request = one.producer.send({"mode": "sleeps", "seconds": 30})
    wait_until(lambda: prediction(status(request.id, *queue))["state"] == "running", "it to run")
    one.workers[0].kill()
    wait_until(
        lambda: (
            [process["state"] for process in told(status(*queue))["processes"] if process["role"] == "worker"]
            == ["gone"]
        ),
        "it to be gone",
        interval=0.1,
    )
    wait_until(lambda: "reclaimed" in history(prediction(status(request.id, *queue))), "the bridge", interval=0.1)
    seen = told(status(*queue))
    assert (seen["waiting"], seen["running"], seen["slots"]) == (1, 0, {})
    assert any("no worker is ready to take them" in trouble for trouble in seen["troubles"])
    one.start_worker()
    wait_until(lambda: prediction(status(request.id, *queue))["state"] == "running", "another to take it", timeout=20)
    again = prediction(status(request.id, *queue))
    assert again["attempt"] == 2 and re.search(r"sent; reclaimed from .*: attempt 2; taken by ", history(again))
    one.producer.cancel(request)
    assert one.producer.wait(request)["status"] == "canceled"
    for child in [*one.bridges, one.workers[1]]:
        child.terminate()
        child.wait()
    [left] = told(status(*queue))["processes"]
    assert left["state"] == "gone", "those that ended as they should are not there any more"


def test_a_setup_that_takes_long_is_seen(fleet: FleetFactory, status: Status) -> None:
    one = fleet("slow_setup", start=False, lease=1)
    one.start_worker()
    states: set[str] = set()

    def ready() -> bool:
        result = status("--queue", one.queue)
        processes = json.loads(result.stdout)["queues"][0]["processes"]
        states.update(process["state"] for process in processes)
        return "ready" in states

    wait_until(ready, "the worker to be ready", interval=0.1)
    assert states == {"starting", "ready"}
    seen = told(status("--queue", one.queue))
    assert any("no bridge lives" in trouble for trouble in seen["troubles"])


# Screens


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [8, 24])
def test_no_line_is_wider_and_no_screen_higher_than_the_terminal(
    working: Fleet, busy: list[Request], width: int, height: int, redis_server: RedisServer
) -> None:
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:
        queues = Look(client).queues([working.queue, "q-" + "ü" * 90, *(f"nowhere-{n}" for n in range(30))])
    console = Console(width=width, height=height, highlight=False, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(status_view.screen(queues, width=width, height=height, notes=["x" * 300]))
    lines = captured.get().splitlines()
    assert len(lines) <= height and max(map(len, lines)) <= width
    assert lines[0].startswith("queue")


def test_a_screen_is_used_to_its_last_line(working: Fleet, busy: list[Request], redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:
        queues = Look(client).queues([working.queue, "nowhere"])

    def lines(height: int | None) -> list[str]:
        console = Console(width=90, highlight=False, force_terminal=True, color_system=None)
        with console.capture() as captured:
            console.print(status_view.screen(queues, width=90, height=height))
        return captured.get().splitlines()

    whole = lines(None)
    assert lines(len(whole)) == whole and "nowhere: it does not exist" in whole[-1]
    smaller = lines(len(whole) - 1)
    assert len(smaller) < len(whole) and any(" more " in line for line in smaller)


def test_on_a_terminal_it_is_watched_until_ctrl_c(working: Fleet, redis_server: RedisServer) -> None:
    main, side = pty.openpty()
    ioctl(side, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "cog_celery", "status", "--queue", working.queue, "--watch", "--every", "0.2"],
        env={**os.environ, "REDIS_URL": as_user("monitor", redis_server.url), "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    screen, told_to_stop = b"", False
    with suppress(OSError):  # how Linux says that the other side of a terminal is closed
        while part := os.read(main, 65536):
            screen += part
            if screen.count(b"waiting") >= 3 and not told_to_stop:
                process.send_signal(signal.SIGINT)
                told_to_stop = True
    os.close(main)
    assert process.wait(10) == 0
    assert b"\x1b[?1049h" in screen and b"\x1b[?1049l" in screen, "the screen is given back"
    assert b"Traceback" not in screen


# What is not there


def test_wrong_use_and_what_is_not_there_have_exit_statuses(working: Fleet, status: Status) -> None:
    result = status("--queue", "nobody-has-made-this")
    assert result.exit_code == 1 and "does not exist" in result.stdout
    result = status(f"no-such-{HOSTILE}", "--queue", working.queue)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and not set("\x1b\x9b\x00") & set(result.stderr)
    for arguments in (["x", "--watch"], ["--every", "0"], ["--queue", "q-dead"], ["a", "b"]):
        result = status(*arguments)
        assert result.exit_code == 2 and result.stderr and not result.stdout, arguments


def test_a_server_that_is_not_there_is_one_line_and_exit_status_1(status: Status) -> None:
    for arguments in ([], ["x"], ["--watch"]):
        result = status(*arguments, url="redis://:hunter2@127.0.0.1:1")
        assert result.exit_code == 1 and not result.stdout
        assert result.stderr.count("\n") == 1 and "cannot be reached" in result.stderr
        assert "hunter2" not in result.stderr


def test_a_server_without_queues_is_told_so(own_server: RedisServer, status: Status) -> None:
    result = status(url=own_server.url)
    assert result.exit_code == 1 and "has no queues" in result.stderr


# What is sent to harm


class Made:
    """A queue that is made by hand."""

    def __init__(self, server: RedisServer, name: str = "") -> None:
        self.server = server
        self.queue = Queue(name or f"q-{uuid.uuid4().hex[:12]}")
        self.client = redis.Redis.from_url(server.url, protocol=2)
        self.link = Link(server.url, "test")
        self.queue.create_group(self.link)
        self.queue.agree(self.link, None, None, None)

    def add(self, value: bytes) -> str:
        entry: bytes = self.link.call("XADD", self.queue.name, "*", "value", value)
        return entry.decode()

    def close(self) -> None:
        self.link.close()
        self.client.close()


@pytest.fixture
def made(redis_server: RedisServer) -> Iterator[Made]:
    made = Made(redis_server)
    yield made
    made.close()


@pytest.mark.every_server
def test_nothing_hostile_reaches_a_terminal_as_it_is(made: Made, status: Status) -> None:
    queue, link = made.queue, made.link
    hostile = json.dumps(HOSTILE)
    about = (
        '{"role":"worker","name":%s,"version":%s,"state":%s,"model":%s,"model_version":%s,'
        '"slots":[{"state":"idle","gpu":%s,"running":[{"id":%s,"entry":%s,"attempt":1,"seconds":1}]}]}'
    ) % ((hostile,) * 8)
    link.call("HSET", queue.processes, f"{HOSTILE}~0000000a", f"{int(time.time() * 1000)} {about}")
    link.call("HSET", queue.processes, "x", "nonsense", "y", "9" * 5000 + " {}", "z", "1 " + "[" * 100_000)
    link.call("HSET", queue.counts, HOSTILE, "1", "done", "x", "dead", "9" * 5000)
    owner = f"{HOSTILE}~0000000a.0"
    entries = [made.add(json.dumps({"id": HOSTILE, "response_queue": f"r{HOSTILE}"}).encode()) for _ in range(3)]
    link.call("XREADGROUP", "GROUP", queue.name, owner, "COUNT", 2, "STREAMS", queue.name, ">")
    delivery = Delivery(Entry(queue.name, entries[0]), 1, None)
    link.call("SET", f"r{HOSTILE}", json.dumps({"status": HOSTILE, "error": HOSTILE, "logs": HOSTILE}))
    queue.bury(link, delivery, owner, None, b"", f"reason {HOSTILE}", about=noted(HOSTILE, HOSTILE, HOSTILE))
    link.call("XADD", queue.recent, "*", HOSTILE, HOSTILE, "what", HOSTILE, "entry", entries[1], "about", "[" * 99999)
    for output in ("text", "json"):
        for arguments in ([], [HOSTILE], *([entry] for entry in entries)):
            result = status(*arguments, "--queue", queue.name, "--output", output)
            assert result.exit_code == 0 and "Traceback" not in result.output, (result.output, result.exception)
            assert not set("\x1b\x07\x9b\u202e\r\x00") & set(result.output), (output, arguments)
            assert "owned" in result.output
    assert r"\x1b[2J[red]" in status("--queue", queue.name, "--output", "text").stdout


def test_keys_of_another_type_are_told_and_cost_only_themselves(made: Made, status: Status) -> None:
    queue, link = made.queue, made.link
    entry = made.add(b'{"response_queue":"list"}')
    for key in (queue.dead, queue.counts, queue.processes, queue.recent, "list"):
        link.call("DEL", key)
        link.call("RPUSH", key, "x")
    seen = told(status("--queue", queue.name))
    assert (seen["length"], seen["waiting"], seen["dead"], seen["rates"]) == (1, 1, None, None)
    assert sum("WRONGTYPE" in trouble for trouble in seen["troubles"]) == 4
    assert "?" in status("--queue", queue.name, "--output", "text").stdout
    assert "WRONGTYPE" in prediction(status(entry, "--queue", queue.name))["response"]["note"]
    link.call("DEL", queue.name)
    link.call("SET", queue.name, "x")
    assert told(status("--queue", queue.name))["length"] is None
    assert status("x", "--queue", queue.name).exit_code == 1


@pytest.mark.every_server
def test_who_was_not_heard_of_for_an_hour_is_forgotten(made: Made) -> None:
    queue, link, now = made.queue, made.link, int(time.time() * 1000)
    link.call(
        "HSET", queue.processes, "old", f"{now - 3_700_000} {{}}", "x", "nonsense", "late", f"{now - 60_000} {{}}"
    )
    queue.describe(link, "new", b"{}")
    assert set(made.client.hkeys(queue.processes)) == {b"late", b"new"}
    queue.undescribe(link, "new")
    assert set(made.client.hkeys(queue.processes)) == {b"late"}


def test_large_requests_are_not_read_for_a_list(made: Made, status: Status) -> None:
    value = b'{"id":"%d","input":"' + b"y" * (2 << 20) + b'"}'
    for number in range(10):
        made.add(value % number)
    made.link.call("XREADGROUP", "GROUP", made.queue.name, "w~00000000.0", "COUNT", 2, "STREAMS", made.queue.name, ">")
    before = made.client.info("stats")["total_net_output_bytes"]
    for arguments in ([], ["11"]):
        status("--queue", made.queue.name, *arguments)
    read = made.client.info("stats")["total_net_output_bytes"] - before
    assert read < 6 << 20, "the answer to our own XREADGROUP, and little more"  # 4 MiB of it are still on their way
    assert prediction(status("9", "--queue", made.queue.name))["place"] == 7


def test_many_queues_and_requests_are_looked_at_in_about_a_second(own_server: RedisServer, status: Status) -> None:
    made = Made(own_server, "long")
    with made.client.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.hset(Queue(f"many-{number}").settings_key, "lease", "10.0")
            pipe.xgroup_create(f"many-{number}", f"many-{number}", "0", mkstream=True)
        pipe.execute()
    for _ in range(10):
        with made.client.pipeline(transaction=False) as pipe:
            for number in range(10_000):
                pipe.execute_command("XADD", "long", "*", "value", b'{"id":"%d","input":{"text":"x"}}' % number)
            pipe.execute()
    since = time.monotonic()
    result = status(url=own_server.url)
    took = time.monotonic() - since
    queues = {queue["name"]: queue for queue in json.loads(result.stdout)["queues"]}
    assert len(queues) == 201 and queues["long"]["waiting"] == 100_000
    since = time.monotonic()
    result = status("nowhere", "--queue", "long", url=own_server.url)
    searched = time.monotonic() - since
    assert result.exit_code == 1 and "100,000 requests and letters were looked through" in result.stderr
    print(f"all queues: {took:.2f} s, all requests: {searched:.2f} s")
    assert took < 3 and searched < 5, (took, searched)
    made.close()
