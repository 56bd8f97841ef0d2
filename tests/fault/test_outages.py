"""Outages of Redis: what is said of them, that nothing is lost or run twice, and that work goes on afterwards."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cog_celery.delivery import link as link_module
from cog_celery.delivery.link import PIECE, QUIET, Link, Outage, insist
from cog_celery.delivery.scripts import SCRIPTS
from cog_celery.errors import ServerLost
from tests.conftest import fleets_on
from tests.support.fleet import Fleet
from tests.support.producer import Request, succeeded
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

LEASE = 2.0
LONG = 1.4 * LEASE
"""Seconds that an outage lasts: who has not been heard of for a lease is taken for dead, unless there is an outage."""
BACK = 6.0
"""Seconds until a request is answered that is sent when an outage is over."""


# What is said of them


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(link_module, "time", clock)
    return clock


def test_an_outage_is_over_with_the_first_connection_after_none_could_be_made(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage("Redis")
    for _ in range(10):
        outage.begin(ServerLost("Redis is out of reach: refused."), unreachable=True)
        clock.now += 1
        outage.served()  # on a connection that had been there before
    assert caplog.messages == ["Redis is out of reach: refused; waiting for it"]
    outage.begin(ServerLost("Redis is out of reach: timeout"))
    clock.now += 1
    outage.served(connected=True)
    outage.served(connected=True)
    assert caplog.messages[1:] == ["Redis is back after 11.0 s"]
    assert outage.since is None


def test_a_server_that_serves_some_and_refuses_others_is_out_until_nothing_has_failed_for_a_while(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage("Redis")
    for _ in range(10):
        outage.begin(ServerLost("Redis refuses commands for now"))
        clock.now += QUIET / 2
        outage.served(connected=True)
    clock.now += QUIET / 2 - 0.1
    outage.served()
    assert len(caplog.messages) == 1
    clock.now += 0.1
    outage.served()
    assert caplog.messages[1:] == [f"Redis is back after {10 * QUIET / 2:.1f} s"]  # not when that was certain


def test_each_outage_is_told_from_the_one_before(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("the broker")
    for _ in range(2):
        outage.begin(ServerLost("the broker did not answer"), unreachable=True)
        clock.now += 3
        outage.end()
        outage.end()
    outage.begin(ServerLost("the broker did not answer"))
    outage.served(connected=True)
    assert [message.endswith("waiting for it") for message in caplog.messages] == [True, False, True, False, True]


# One connection


@pytest.fixture(scope="module")
def lasting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests put out of order, and in order again; it keeps its data over a restart."""
    server = RedisServer("valkey", tmp_path_factory.mktemp("lasting"), "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


def test_a_connection_that_broke_is_no_outage(lasting_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Link(lasting_server.url, "test", Outage("Redis"))) as link:
        for _ in range(3):
            assert link.call("PING") == b"PONG"
            lasting_server.client.client_kill_filter(_id=str(link.client_id))
            with pytest.raises(ServerLost):
                link.call("PING")
    assert caplog.messages == []


Commands = tuple[str, ...]
STATES: dict[str, tuple[Commands, Commands, str]] = {
    "read-only": (("REPLICAOF 127.0.0.1 1",), ("REPLICAOF NO ONE",), "SET key value"),
    "a replica without its primary": (
        ("CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"),
        ("REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"),
        "GET key",
    ),
    "out of memory": (("CONFIG SET maxmemory 1mb",), ("CONFIG SET maxmemory 0",), "SET key value"),
    "short of replicas": (
        ("CONFIG SET min-replicas-to-write 1",),
        ("CONFIG SET min-replicas-to-write 0",),
        "SET key value",
    ),
    "full": (("CONFIG SET maxclients 1",), ("CONFIG SET maxclients 1000",), "PING"),
    "locked": (("CONFIG SET requirepass word",), ("CONFIG SET requirepass ''",), "PING"),
}
"""What brings a server into a state, what brings it out of it, and what it does not do meanwhile."""
CLOSED = ("full", "locked", "read-only", "a replica without its primary")
"""States in which nobody new is let in."""


def tell(server: RedisServer, commands: Commands) -> None:
    for command in commands:
        server.client.execute_command(*shlex.split(command))


@pytest.fixture
def mended(lasting_server: RedisServer) -> Iterator[RedisServer]:
    """The server, which is in order again afterwards whatever the test did to it."""
    yield lasting_server
    for _, out, _ in STATES.values():
        tell(lasting_server, out)


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_passes_is_waited_for_and_said_once(
    mended: RedisServer, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    into, out, refused = STATES[state]
    tell(mended, into)
    with closing(Link(mended.url, "test", Outage("Redis"))) as link:
        tries = 0

        def step() -> None:
            nonlocal tries
            tries += 1
            assert tries < 8
            if tries == 4:
                tell(mended, out)
            if state not in CLOSED:
                link.call("CLIENT", "ID")  # this is done all the while
            link.call(*refused.split())

        insist(step, threading.Event())
    assert tries == 4
    ends = [message.endswith("waiting for it") for message in caplog.messages]
    assert ends == ([True, False] if state in CLOSED else [True]), caplog.messages


def loads(server: RedisServer) -> int:
    """How many scripts the server was given so far."""
    about: Any = server.client.info("commandstats")
    return int(about.get("cmdstat_script|load", {"calls": 0})["calls"])


def test_scripts_are_sent_by_the_first_connection_alone(lasting_server: RedisServer) -> None:
    """After an outage thousands come back at a time."""
    lasting_server.client.script_flush()
    for sent in (len(SCRIPTS), 0, 0):
        before = loads(lasting_server)
        with closing(Link(lasting_server.url, "test")) as link:
            assert link.call("PING") == b"PONG"
        assert loads(lasting_server) - before == sent


def test_a_server_that_does_not_tell_which_scripts_it_has_is_sent_all(lasting_server: RedisServer) -> None:
    rules = ("on", ">word", "~*", "&*", "+@all", "-script|exists")
    lasting_server.client.execute_command("ACL", "SETUSER", "untold", *rules)
    before = loads(lasting_server)
    with closing(Link(f"redis://untold:word@127.0.0.1:{lasting_server.port}/0", "test")) as link:
        assert link.call("PING") == b"PONG"
    assert loads(lasting_server) - before == len(SCRIPTS)


def test_a_large_command_has_as_long_as_it_takes_while_it_goes_on() -> None:
    """The server takes four times as long as it may take for a reply."""
    patience, size = 1.0, 48 * PIECE
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(_take_slowly, listener, size, 4 * patience)
        with closing(Link(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", "test", patience=patience)) as link:
            assert link.call("SET", "key", bytes(size)) == b"OK"
        served.result()


def _take_slowly(listener: socket.socket, size: int, seconds: float) -> None:
    """A server that greets, takes one command of `size` bytes over so many seconds, and says OK."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        scripts = b"*%d\r\n" % len(SCRIPTS) + b":1\r\n" * len(SCRIPTS)
        connection.sendall(b"*1\r\n+master\r\n+OK\r\n:1\r\n" + scripts)
        began, taken = time.monotonic(), 0
        while taken < size:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            taken += len(piece)
            time.sleep(max(0.0, began + seconds * taken / size - time.monotonic()))
        connection.sendall(b"+OK\r\n")


# A fleet


def ticks(pid: int) -> int:
    """CPU time that a process has used, in hundredths of a second."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 100 // os.sysconf("SC_CLK_TCK")


def said(fleet: Fleet) -> list[list[str]]:
    """What each process has logged, but for what the model said."""
    return [[line for line in child.text().splitlines() if "cog_celery.model" not in line] for child in fleet.children]


def sleep(fleet: Fleet, seconds: float = 0.0) -> Request:
    mark = uuid.uuid4().hex
    return fleet.producer.send({"action": "SLEEP", "seconds": seconds, "text": mark}, id=mark)


def journal(fleet: Fleet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(fleet.env["ACTIONS_JOURNAL"]).read_text().splitlines()]


@pytest.fixture(scope="module")
def proxy(lasting_server: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy(lasting_server)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def fleet(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One bridge and one worker with two slots, of which one is idle, for all outages one after another."""
    folder = tmp_path_factory.mktemp("outages")
    with fleets_on(proxy, folder) as make:
        yield make("actions", slots=2, lease=LEASE, turn=0.1, env={"ACTIONS_JOURNAL": str(folder / "journal")})


@pytest.mark.parametrize("outage", ["stopped", "restarted", "read-only", "out of memory", "slow", "half open"])
def test_what_runs_goes_on_and_what_comes_is_served_soon_after_an_outage(
    fleet: Fleet, mended: RedisServer, proxy: Proxy, outage: str
) -> None:
    server = mended
    fleet.wait_ready()
    requests = [sleep(fleet, LONG + 1.0)]
    fleet.producer.wait_for(requests[0], lambda response: True)
    lines, used, began = said(fleet), [ticks(child.pid) for child in fleet.children], time.monotonic()
    match outage:
        case "stopped":
            os.kill(server.pid, signal.SIGSTOP)
        case "restarted":
            server.restart(LONG)
        case "slow":
            proxy.delay(0.1)
        case "half open":
            proxy.half_open()
        case _:
            tell(server, STATES[outage][0])
    if outage in ("slow", "half open"):
        requests.append(sleep(fleet))  # by a producer who reaches the server
    time.sleep(max(0.0, began + LONG - time.monotonic()))
    lasted = time.monotonic() - began
    used = [ticks(child.pid) - before for child, before in zip(fleet.children, used, strict=True)]
    if outage in ("out of memory", "slow"):  # these do not keep anybody from extending a lease
        [running, *_] = server.client.xpending_range(fleet.queue, fleet.queue, "-", "+", 10)
        assert int(running["time_since_delivered"]) < LEASE * 1000
    if outage == "stopped":
        os.kill(server.pid, signal.SIGCONT)
    elif outage in STATES:
        tell(server, STATES[outage][1])
    proxy.heal()
    over = time.monotonic()
    requests.append(sleep(fleet))
    for request in requests:
        fleet.producer.wait(request, timeout=15)
    assert time.monotonic() - over < BACK
    fleet.wait_idle()
    events = journal(fleet)
    for request in requests:
        ran = [event["event"] for event in events if event["request"] == request.id]
        assert ran == ["start", "end"], "it ran twice"
    assert len([event for event in events if event["event"] == "setup"]) == fleet.slots, "a runner was stopped"
    assert all(one <= 10 * lasted + 10 for one in used), f"{used} hundredths of a second in {lasted:.1f} s"
    for child, before, now in zip(fleet.children, lines, said(fleet), strict=True):
        child.check_running()
        # Of Redis, and of the broker that it is, too. The outage before this one may end meanwhile.
        told = [line for line in now[len(before) :] if not re.search(r"(predictions|holding): prediction ", line)]
        assert len(told) <= 4, told


def test_a_server_that_comes_back_empty_serves_what_comes_then(own_server: RedisServer, tmp_path: Path) -> None:
    with fleets_on(own_server, tmp_path) as make:
        one = make("modes", lease=LEASE)
        lost = one.producer.send({"mode": "sleeps", "seconds": 60})
        one.producer.wait_for(lost, lambda response: True)
        own_server.restart(0.5)
        over = time.monotonic()
        assert one.producer.predict({"mode": "hello"}, timeout=10) == succeeded("hello world")
        assert time.monotonic() - over < 5
        assert one.producer.get(lost) is None
        one.wait_idle()
