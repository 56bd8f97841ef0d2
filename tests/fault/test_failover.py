"""A primary that dies, or is one no more: the fleet finds the next one by itself, and answers what that one has."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from cog_celery.cli import main as cli
from cog_celery.delivery.link import Link
from cog_celery.errors import ServerLost
from tests.conftest import fleets_on, recording
from tests.support.processes import wait_until
from tests.support.producer import TERMINAL, Request, succeeded
from tests.support.sentinels import NAME, Sentinels
from tests.support.servers import RedisServer, free_port

pytestmark = pytest.mark.ours

LEASE = 1.0
ELECTED = 10.0
"""Seconds that sentinels have for a failover here; it takes two or three."""
SERVED = 20.0
"""Seconds after it within which the fleet serves again."""


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    sentinels = Sentinels(tmp_path)
    yield sentinels
    sentinels.stop()


def test_what_the_next_primary_has_is_answered_once_when_the_first_is_killed_under_load(
    sentinels: Sentinels, tmp_path: Path
) -> None:
    with fleets_on(sentinels, tmp_path) as make, recording(sentinels.replica) as monitor:
        one = make("modes", slots=2, lease=LEASE, turn=0.2)
        sent: list[Request] = []
        over = threading.Event()

        def load() -> None:
            """A producer of the primary that there is; what it is not told of, it does not count."""
            while not over.wait(0.02):
                with suppress(redis.RedisError):
                    sent.append(one.producer.send({"mode": "sleeps", "seconds": 0.03, "text": "slept"}))

        thread = threading.Thread(target=load)
        thread.start()
        try:
            wait_until(lambda: len(sent) > 50, "load")
            os.kill(sentinels.primary.pid, signal.SIGKILL)
            wait_until(lambda: sentinels.role(sentinels.replica) == "master", "a failover", ELECTED)
            elected = time.monotonic()
            one.producer.client = sentinels.replica.client
            count = len(sent)
            wait_until(lambda: len(sent) > count + 50, "more load")
        finally:
            over.set()
            thread.join()
        last = one.producer.send({"mode": "hello"})
        assert one.producer.wait(last, timeout=SERVED + LEASE)["output"] == "hello world"
        assert time.monotonic() - elected < SERVED + LEASE + 5
        one.client = sentinels.replica.client
        one.wait_idle()
        commands = monitor.commands()
        added = {
            json.loads(c.args[4])["response_queue"]
            for c in commands
            if c.name == "XADD" and c.args[1] == one.queue.encode()
        }
        ends: dict[str, list[str]] = {request.response_queue: [] for request in sent}
        for command in commands:
            if command.name == "SET" and (key := command.args[1].decode()) in ends:
                value = json.loads(command.args[2])
                ends[key] += [value["output"]] if value["status"] in TERMINAL else []
        lost = [key for key in ends if key not in added]
        assert len(lost) <= 20, "of the moment in which it was killed"
        assert {key: outputs for key, outputs in ends.items() if key in added and outputs != ["slept"]} == {}
        for child in (one.bridges[0], one.workers[0]):
            child.check_running()
            assert "Traceback" not in child.text() and "a bug of ours" not in child.text()
            assert child.text().count("Redis is back after") == 1, child.text()
            assert len(re.findall(r"Redis is .*; waiting for it", child.text())) == 1, child.text()


def test_a_primary_that_sleeps_through_a_failover_is_left_also_when_it_wakes(
    sentinels: Sentinels, tmp_path: Path
) -> None:
    with fleets_on(sentinels, tmp_path) as make:
        one = make("modes", lease=LEASE)
        os.kill(sentinels.primary.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: sentinels.role(sentinels.replica) == "master", "a failover", ELECTED)
            one.producer.client = one.client = sentinels.replica.client
            assert one.producer.predict({"mode": "hello"}, timeout=20) == succeeded("hello world")
        finally:
            os.kill(sentinels.primary.pid, signal.SIGCONT)
        # For some seconds it believes to be the primary, until it is told otherwise.
        for _ in range(5):
            assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
        names = {str(client["name"]) for client in sentinels.primary.client.client_list(_type="normal")}
        assert not any(name.startswith("cog-celery-bridge:") for name in names), "nobody takes from it"


def test_a_replica_that_is_named_by_mistake_is_said_to_be_one(sentinels: Sentinels) -> None:
    words = f"it is a replica of 127.0.0.1:{sentinels.primary.port}, which cannot be written to"
    with closing(Link(sentinels.replica.url, "test")) as link, pytest.raises(ServerLost) as caught:
        link.call("PING")
    assert words in str(caught.value) and "redis+sentinel://" in str(caught.value)
    sent = CliRunner().invoke(cli.cli, ["send", "--queue", "q"], env={"REDIS_URL": sentinels.replica.url})
    assert sent.exit_code == 1 and "is a replica" in sent.stderr and "redis+sentinel://" in sent.stderr


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("127.0.0.1:{nobody}/mymaster", ["127.0.0.1:{nobody}: ", "refused"]),
        ("127.0.0.1:{sentinel}/mymastr", ["knows no primary 'mymastr'", "it knows: mymaster"]),
        ("127.0.0.1:{server}/mymaster", ["127.0.0.1:{server} is a Redis, and no sentinel"]),
    ],
)
def test_what_is_wrong_with_sentinels_is_said_of_each(sentinels: Sentinels, place: str, words: list[str]) -> None:
    ports = {"nobody": free_port(), "sentinel": sentinels.ports[0], "server": sentinels.primary.port}
    with (
        closing(Link("redis+sentinel://" + place.format(**ports), "test")) as link,
        pytest.raises(ServerLost) as caught,
    ):
        link.call("PING")
    for word in words:
        assert word.format(**ports) in str(caught.value)


def test_the_first_sentinel_that_answers_is_enough(sentinels: Sentinels, own_server: RedisServer) -> None:
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{own_server.port},127.0.0.1:{sentinels.ports[2]}"
    with closing(Link(f"redis+sentinel://{hosts}/{NAME}", "test")) as link:
        assert link.call("PING") == b"PONG"
