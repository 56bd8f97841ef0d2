"""A broker of its own that is gone, stopped or refuses: work goes on without it, and again with it, in few words."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import fleets_on
from tests.integration.test_health import health
from tests.support.fleet import Fleet
from tests.support.processes import Child, wait_until
from tests.support.producer import succeeded
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

STOPPED = 3.0
"""Seconds for which a broker is stopped."""
RETURN = 5.0
"""Seconds within which work goes on after a broker's return."""
NOTICED = 5.0
"""Seconds within which a broker that is gone is noticed."""


@contextmanager
def with_broker(queues: RedisServer, broker: RedisServer, folder: Path, **options: float) -> Iterator[Fleet]:
    """A fleet in which every prediction needs a ticket."""
    with fleets_on(queues, folder) as make:
        one = make("modes", turn=0, broker_url=broker.url, **options)
        assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
        yield one


def lines(child: Child, words: str) -> int:
    return len(re.findall(words, child.text()))


def noticed(worker: Child, times: int = 1) -> None:
    wait_until(lambda: lines(worker, "broker is out of reach") == times, "the outage to be noticed", NOTICED)


def over(worker: Child, times: int = 1) -> None:
    wait_until(lambda: lines(worker, "broker is back") == times, "the end of the outage to be said", RETURN)


def serves(fleet: Fleet, within: float) -> None:
    """Three tickets in a row, of which the first must come soon."""
    for _ in range(3):
        assert fleet.producer.predict({"mode": "hello"}, timeout=within) == succeeded("hello world")


def check_few_words(child: Child, outages: int) -> None:
    """One line at the beginning and one at the end of each, and no traceback."""
    said = child.text()
    assert "Traceback" not in said and "Trying again" not in said
    assert lines(child, "out of reach|did not answer") <= outages and lines(child, "is back") <= outages, said


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_work_goes_on_through_a_broker_that_is_killed_and_comes_back_empty_and_stopping_needs_none(
    redis_server: RedisServer, own_server: RedisServer, tmp_path: Path
) -> None:
    with with_broker(redis_server, own_server, tmp_path, lease=2) as one:
        [worker], [bridge] = one.workers, one.bridges
        running = one.producer.send({"mode": "sleeps", "seconds": 2, "text": "done"})
        one.producer.wait_for(running, lambda response: True)
        own_server.stop()
        noticed(worker)
        status, said = health(one)
        assert status == 0 and "is waiting" in said, "a restart would not help"
        assert health(one, "--ready", "--role", "worker")[0] == 1
        waiting = one.producer.send({"mode": "hello"})
        assert one.producer.wait(running)["output"] == "done", "what runs needs no broker"
        own_server.restart(0)
        assert one.producer.wait(waiting, timeout=RETURN)["output"] == "hello world"
        serves(one, RETURN)
        over(worker)
        assert health(one, "--ready", "--role", "worker")[0] == 0
        for child in (worker, bridge):
            check_few_words(child, 1)
        running = one.producer.send({"mode": "sleeps", "seconds": 1, "text": "done"})
        one.producer.wait_for(running, lambda response: True)
        own_server.stop()
        noticed(worker, 2)
        one.stop(timeout=8)  # what runs ends, and nobody waits for the broker
        assert one.producer.wait(running)["output"] == "done"


def test_a_stopped_broker_costs_no_cpu_and_no_words_and_is_used_again_at_once(
    redis_server: RedisServer, own_server: RedisServer, tmp_path: Path
) -> None:
    with with_broker(redis_server, own_server, tmp_path, lease=2) as one:
        children = (one.workers[0], one.bridges[0])
        used = {child.pid: cpu(child.pid) for child in children}
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            waiting = one.producer.send({"mode": "hello"})
            time.sleep(STOPPED)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        assert one.producer.wait(waiting, timeout=2)["output"] == "hello world"
        for pid, before in used.items():
            assert (cpu(pid) - before) / STOPPED <= 0.1, "of which the prediction took a part"
        serves(one, 2)
        for child in children:
            check_few_words(child, 1)


def test_a_broker_that_refuses_for_a_while_ends_no_worker(
    redis_server: RedisServer, own_server: RedisServer, tmp_path: Path
) -> None:
    with with_broker(redis_server, own_server, tmp_path, lease=2) as one:
        [worker], [bridge] = one.workers, one.bridges
        client = own_server.client
        client.replicaof("127.0.0.1", 1)  # as after a failover: READONLY
        noticed(worker)
        used = cpu(worker.pid)
        time.sleep(1)
        assert cpu(worker.pid) - used <= 0.3
        client.replicaof("NO", "ONE")
        serves(one, RETURN)
        over(worker)
        for child in (worker, bridge):
            check_few_words(child, 1)
