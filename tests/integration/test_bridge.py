"""Bridges: groups, credits, several queues, several bridges, and what an idle one costs."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.conftest import FleetFactory, fleets_on, recording
from tests.support.processes import wait_until
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc", str(pid), "status").read_text())
    assert match
    return int(match[1]) << 10


def test_without_create_group_it_waits_quietly_and_picks_the_group_up_within_a_second(fleet: FleetFactory) -> None:
    waiting = fleet("modes", start=False, create_group=False)
    bridge, worker = waiting.start_bridge(), waiting.start_worker()
    wait_until(lambda: waiting.client.exists(f"{waiting.queue}-setup-time"), "setup", timeout=30)
    time.sleep(1.5)
    assert not waiting.client.exists(waiting.queue), "nobody made the queue"
    for child in (bridge, worker):
        child.check_running()
        assert len(child.text().splitlines()) < 30, "it waits quietly"
    waiting.client.xgroup_create(waiting.queue, waiting.queue, id="0", mkstream=True)
    since = time.monotonic()
    request = waiting.producer.send({"mode": "hello"})
    waiting.producer.wait(request)
    assert time.monotonic() - since < 2.0


def test_what_was_sent_before_the_group_existed_waits_unread_until_a_slot_is_there(fleet: FleetFactory) -> None:
    alone = fleet("modes", start=False)
    early = [alone.producer.send({"mode": "hello", "text": str(i)}) for i in range(3)]
    alone.start_bridge()
    wait_until(lambda: alone.client.xinfo_groups(alone.queue), "the group")
    time.sleep(0.5)
    assert (alone.depth(), alone.pending()) == (3, 0)
    alone.start_worker()
    assert [alone.producer.wait(request)["output"] for request in early] == ["hello 0", "hello 1", "hello 2"]


def test_queues_of_one_bridge_do_not_wait_for_each_other(fleet: FleetFactory) -> None:
    first, second = fleet("modes", start=False), fleet("modes", start=False)
    bridge = first.start_command("bridge", "bridge", "--queue", first.queue, "--queue", second.queue)
    wait_until(lambda: " serves " in bridge.text(), "the bridge", 30)
    second.start_worker()
    second.wait_ready(1)
    # No worker serves the first queue: its requests wait, and hold nothing up.
    waiting = [first.producer.send({"mode": "hello"}) for _ in range(3)]
    for _ in range(3):
        since = time.monotonic()
        second.producer.wait(second.producer.send({"mode": "hello"}))
        assert time.monotonic() - since < 1.0
    first.start_worker()
    assert [first.producer.wait(request)["output"] for request in waiting] == ["hello world"] * 3


def test_requests_wait_while_no_bridge_is_there_and_go_on_with_the_next(fleet: FleetFactory) -> None:
    one = fleet("modes", turn=0.2)
    running = one.producer.send({"mode": "sleeps", "seconds": 0.5})
    one.producer.wait_for(running, lambda response: True)
    [bridge] = one.bridges
    bridge.terminate()
    assert bridge.wait() == 0
    assert one.producer.wait(running)["status"] == "succeeded", "what runs is not the bridge's to end"
    wait_until(lambda: one.credits() == 1, "the end of the turn")
    waiting = one.producer.send({"mode": "hello"})
    time.sleep(0.3)
    assert one.producer.get(waiting) is None
    assert (one.depth(), one.pending()) == (1, 0)
    one.start_bridge()
    assert one.producer.wait(waiting)["output"] == "hello world"


def test_a_bridge_with_another_lease_or_attempts_stops_and_says_so(fleet: FleetFactory) -> None:
    one = fleet("modes", start=False)
    one.start_bridge(lease=3, max_attempts=2)
    wait_until(lambda: one.client.exists(f"cog-celery:{one.queue}:settings"), "the settings")
    for name, other in {"lease": one.start_bridge(lease=4), "max_attempts": one.start_bridge(max_attempts=5)}.items():
        assert other.wait() not in (0, -9)
        assert name in other.text() and one.queue in other.text()
    same = one.start_bridge()
    wait_until(lambda: " serves " in same.text(), "it to be up")
    time.sleep(0.5)
    same.check_running()


def test_an_idle_fleet_costs_the_server_next_to_nothing(own_server: RedisServer, tmp_path: Path) -> None:
    with fleets_on(own_server, tmp_path) as fleet:
        fleet("modes", slots=4)
        time.sleep(1)
        with recording(own_server) as monitor:
            time.sleep(2)
            # Celery waits in blocking reads of a second, and tells its heartbeat every other second.
            assert len(monitor.commands()) < 30, monitor.timeline()


def test_a_hundred_thousand_waiting_requests_do_not_make_a_bridge_grow(fleet: FleetFactory) -> None:
    full = fleet("modes")
    blocker = full.producer.send({"mode": "sleeps", "seconds": 60})
    full.producer.wait_for(blocker, lambda response: True)
    pid = full.bridges[0].pid
    before = resident(pid)
    message = json.dumps({"input": {"mode": "hello", "text": "x" * 100}, "response_queue": "nobody-reads-this"})
    with full.client.pipeline(transaction=False) as pipeline:
        for _ in range(100):
            for _ in range(1000):
                pipeline.xadd(full.queue, {"value": message})
            pipeline.execute()
    assert full.depth() == 100_001
    time.sleep(1)
    assert resident(pid) - before < 10 << 20
    assert full.pending() == 1
    full.client.xtrim(full.queue, maxlen=0)
    full.producer.wait(blocker)


def test_one_in_a_thousand_waits_no_longer_than_the_others(fleet: FleetFactory) -> None:
    """No request falls between the bridge's watch and a slot's turn, where it would wait for a time limit of either."""
    one = fleet("modes", turn=0.05)
    slowest = 0.0
    for i in range(50):
        # Around the end of the turn, where a slot gives up its wait and the bridge takes over.
        time.sleep(0.04 + (i % 10) * 0.003)
        since = time.monotonic()
        one.producer.wait(one.producer.send({"mode": "hello"}))
        slowest = max(slowest, time.monotonic() - since)
    assert slowest < 2, "a third of the lease, from which it would not be far, is 3.3 s"
