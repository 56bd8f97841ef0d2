"""Connections that break, and replies that get lost, at every step of a delivery."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path

import pytest

from cog_celery.delivery import scripts
from cog_celery.delivery.link import REPLY_TIMEOUT
from tests.conftest import fleets_on, recording
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import wait_until
from tests.support.producer import TERMINAL, Request, succeeded
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours


@pytest.fixture(scope="module")
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy(redis_server)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def patient(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Every connection goes through the proxy. The lease is long: what is lost must be found without reclaiming it."""
    with fleets_on(proxy, tmp_path_factory.mktemp("patient")) as make:
        yield make("modes", lease=60, turn=2)


@pytest.fixture(scope="module")
def quick(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Every connection goes through the proxy. The lease is short: what must be reclaimed is, within seconds."""
    with fleets_on(proxy, tmp_path_factory.mktemp("quick")) as make:
        yield make("modes", lease=1, turn=0.3, max_attempts=20)


def send(fleet: Fleet, count: int = 1, seconds: float = 0.02) -> list[Request]:
    return [fleet.producer.send({"mode": "sleeps", "seconds": seconds}) for _ in range(count)]


def statuses(monitor: Monitor, request: Request) -> list[str]:
    """The statuses that were SET, a repetition of the same snapshot counted once."""
    values = (snapshot.value for snapshot in monitor.sets(request.response_queue))
    return [value["status"] for value, _ in groupby(values)]


def each_answered_once(fleet: Fleet, monitor: Monitor, requests: list[Request]) -> None:
    for request in requests:
        assert fleet.producer.wait(request, timeout=30)["status"] == "succeeded"
    fleet.wait_idle()
    for request in requests:
        ends = [i for i, status in enumerate(statuses(monitor, request)) if status in TERMINAL]
        assert ends == [len(statuses(monitor, request)) - 1]
    assert fleet.client.xlen(f"{fleet.queue}-dead") == 0


def each_run_once(fleet: Fleet, monitor: Monitor, requests: list[Request]) -> None:
    """Found again at once, without another attempt."""
    since = time.monotonic()
    each_answered_once(fleet, monitor, requests)
    assert time.monotonic() - since < 5
    for request in requests:
        assert statuses(monitor, request) == ["processing", "succeeded"]


@pytest.mark.parametrize("script", ["CLAIM", "PUBLISH", "COMMIT"])
@pytest.mark.parametrize("backlog", [1, 4])
def test_a_lost_reply_to_a_slots_step_is_found_out_by_the_slot(
    patient: Fleet, proxy: Proxy, monitor: Monitor, script: str, backlog: int
) -> None:
    patient.wait_ready(1)  # the turn before is over: this one begins with a ticket
    before = proxy.lost
    proxy.lose_reply(to=getattr(scripts, script).sha.encode())
    requests = send(patient, backlog)
    each_run_once(patient, monitor, requests)
    wait_until(lambda: proxy.lost == before + 1, "the proxy to see that reply, too")


def test_an_entry_that_was_served_to_a_slot_in_its_turn_by_a_lost_reply_is_found(
    patient: Fleet, proxy: Proxy, monitor: Monitor
) -> None:
    patient.wait_ready(1)  # so that its turn begins now
    patient.producer.predict({"mode": "hello"})
    before = proxy.lost
    word = uuid.uuid4().hex
    proxy.lose_reply(to=b"XREADGROUP", holding=word.encode())
    request = patient.producer.send({"mode": "hello"}, version=word)
    each_run_once(patient, monitor, [request])
    wait_until(lambda: proxy.lost == before + 1, "the proxy to see that reply, too")


def test_an_entry_that_was_taken_with_a_commit_whose_reply_was_lost_is_found(
    patient: Fleet, proxy: Proxy, monitor: Monitor
) -> None:
    word = uuid.uuid4().hex
    patient.wait_ready(1)  # so that its turn begins now, and is not over at the commit
    first = patient.producer.send({"mode": "sleeps", "seconds": 1})
    patient.producer.wait_for(first, lambda response: True)
    before = proxy.lost
    proxy.lose_reply(to=scripts.COMMIT.sha.encode(), holding=word.encode())
    second = patient.producer.send({"mode": "hello"}, version=word)
    each_run_once(patient, monitor, [first, second])
    wait_until(lambda: proxy.lost == before + 1, "the proxy to see that reply, too")


def test_connections_that_are_all_forgotten_cost_one_wait_for_a_reply(
    redis_server: RedisServer, monitor: Monitor, tmp_path: Path
) -> None:
    """As when a firewall on the way was restarted: nothing passes on them any more, and nobody is told."""
    with closing(Proxy(redis_server)) as proxy, fleets_on(proxy, tmp_path) as make:
        one = make("modes", slots=2, lease=1, turn=0.3, max_attempts=20)
        one.producer.predict({"mode": "hello"})
        one.wait_ready()
        proxy.forget()
        began = time.monotonic()
        requests = [one.producer.send({"mode": "hello"}) for _ in range(4)]
        each_answered_once(one, monitor, requests)
        # Bridge and worker wait at the same time, and once: any more would come after it.
        assert time.monotonic() - began < REPLY_TIMEOUT + 4


def test_a_ticket_that_was_sent_twice_runs_once(patient: Fleet, proxy: Proxy, monitor: Monitor) -> None:
    """The broker took the ticket, and its answer was lost: the bridge sends another. One of the two is void."""
    patient.wait_ready(1)
    before = proxy.lost
    proxy.lose_reply(to=b"LPUSH")
    each_run_once(patient, monitor, send(patient, 3))
    wait_until(lambda: proxy.lost == before + 1, "the proxy to see that reply, too")


def test_a_ticket_that_the_broker_lost_is_sent_again(quick: Fleet, proxy: Proxy, monitor: Monitor) -> None:
    quick.wait_ready(1)
    before = proxy.lost
    # The name of the worker's own queue: the answer to its blocking read, with the ticket in it.
    proxy.lose_reply(to=b"BRPOP", holding=f"cog-celery.w0-{quick.queue}".encode())
    each_answered_once(quick, monitor, send(quick, 3))
    wait_until(lambda: proxy.lost == before + 1, "the proxy to see that reply, too")


def test_an_entry_that_a_bridge_took_by_a_lost_reply_is_found(quick: Fleet, proxy: Proxy, monitor: Monitor) -> None:
    """The credit went with it, so the slot says once more that it is idle."""
    quick.wait_ready(1)
    before = proxy.lost
    word = uuid.uuid4().hex
    proxy.lose_reply(to=scripts.TAKE.sha.encode(), holding=word.encode())
    request = quick.producer.send({"mode": "hello"}, version=word)
    each_answered_once(quick, monitor, [request])
    wait_until(lambda: proxy.lost == before + 1, "the proxy to see that reply, too")


def test_lost_replies_one_after_another_lose_and_double_nothing(quick: Fleet, proxy: Proxy, monitor: Monitor) -> None:
    """Whichever step names the entry next is the one that is hit."""
    before = proxy.lost
    requests = []
    for i in range(10):
        [request] = send(quick, seconds=0.02 * (i % 3))
        requests.append(request)
        if i % 2:
            quick.producer.wait_for(request, lambda response: True)
        proxy.lose_reply(to=request.entry.encode())
        quick.producer.wait(request, timeout=30)
    each_answered_once(quick, monitor, requests)
    assert proxy.lost > before


def test_connections_that_are_cut_all_the_time_lose_and_double_nothing(
    quick: Fleet, proxy: Proxy, monitor: Monitor
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    requests = send(quick, 60, seconds=0.03)
    for request in sorted(chance.sample(requests[:-10], 4), key=requests.index):
        quick.producer.wait_for(request, lambda response: True, timeout=30)
        time.sleep(chance.random() * 0.05)
        proxy.cut()
    each_answered_once(quick, monitor, requests)


def test_connections_that_the_server_kills_lose_nothing(own_server: RedisServer, tmp_path: Path) -> None:
    with fleets_on(own_server, tmp_path) as make:
        one = make("modes", lease=1)
        requests = send(one, 20, seconds=0.05)
        one.producer.wait_for(requests[5], lambda response: True)
        own_server.client.client_kill_filter(_type="normal", skipme=True)
        with recording(own_server):
            for request in requests:
                assert one.producer.wait(request, timeout=30)["status"] == "succeeded"
            assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
