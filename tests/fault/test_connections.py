"""Connections that break, and replies that get lost, at every step of a delivery."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fleets_on, recording
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.producer import TERMINAL, succeeded
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours


@pytest.fixture(scope="module")
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy(redis_server)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def proxied(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet whose every connection goes through the proxy; its producer's do not."""
    with fleets_on(proxy, tmp_path_factory.mktemp("proxied")) as make:
        yield make("modes", lease=1, turn=0.3, max_attempts=20)


def each_answered_once(fleet: Fleet, monitor: Monitor, count: int) -> None:
    requests = fleet.producer.sent[-count:]
    for request in requests:
        fleet.producer.wait(request, timeout=30)
    fleet.wait_idle()
    for request in requests:
        statuses = [snapshot.value["status"] for snapshot in monitor.sets(request.response_queue)]
        ends = [i for i, status in enumerate(statuses) if status in TERMINAL]
        assert ends == [len(statuses) - 1], statuses
        assert statuses[-1] == "succeeded"


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("word", [b"EVALSHA", b"XREADGROUP", b"XREAD\r\n", b"BLMOVE", b"LPUSH", b"BRPOP"])
def test_a_lost_reply_to_any_command_loses_and_doubles_nothing(
    proxied: Fleet, proxy: Proxy, monitor: Monitor, word: bytes, turn: int
) -> None:
    proxy.lose_reply_to(word)
    for _ in range(5):
        proxied.producer.send({"mode": "sleeps", "seconds": 0.05})
    each_answered_once(proxied, monitor, 5)


def test_lost_replies_to_one_script_after_another_lose_and_double_nothing(
    proxied: Fleet, proxy: Proxy, monitor: Monitor
) -> None:
    """Replies to take, claim, start, commit-and-take: whichever comes next when the entry is named again."""
    count = 12
    for i in range(count):
        request = proxied.producer.send({"mode": "sleeps", "seconds": 0.02 * (i % 3)})
        if i % 2:
            proxied.producer.wait_for(request, lambda response: True)
        proxy.lose_reply_to(request.entry.encode())
        proxied.producer.wait(request, timeout=30)
    each_answered_once(proxied, monitor, count)
    assert proxy.lost >= count // 2


def test_connections_that_are_cut_all_the_time_lose_and_double_nothing(
    proxied: Fleet, proxy: Proxy, monitor: Monitor
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    count = 60
    requests = [proxied.producer.send({"mode": "sleeps", "seconds": 0.03}) for _ in range(count)]
    for request in chance.sample(requests[:-10], 4):
        proxied.producer.wait_for(request, lambda response: True, timeout=30)
        proxy.cut()
    each_answered_once(proxied, monitor, count)


def test_connections_that_the_server_kills_lose_nothing(own_server: RedisServer, tmp_path: Path) -> None:
    with fleets_on(own_server, tmp_path) as make, recording(own_server) as monitor:
        one = make("modes", lease=1)
        requests = [one.producer.send({"mode": "sleeps", "seconds": 0.05}) for _ in range(20)]
        one.producer.wait_for(requests[5], lambda response: True)
        own_server.client.client_kill_filter(_type="normal", skipme=True)
        for request in requests:
            assert one.producer.wait(request, timeout=30)["status"] == "succeeded"
        assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
        assert monitor is not None
