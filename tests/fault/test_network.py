"""Faults of the network between hosts: a bridge, two workers and Redis, each on a host of its own; the cable of one is
pulled, or the switch loses what is sent. The oracle must find nothing wrong, and everybody serves again.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cog_celery.delivery.link import CONNECT_TIMEOUT, REPLY_TIMEOUT
from tests.conftest import fleets_on, missing, recording
from tests.support.fleet import ROOT, Fleet
from tests.support.hosts import HostedServer, Network, lacks
from tests.support.oracle import JournalLine, Oracle, Verdict, journal_env, read_journal
from tests.support.processes import family, wait_until
from tests.support.producer import Request
from tests.support.servers import UNDER_ACL

pytestmark = [
    pytest.mark.ours,
    pytest.mark.skipif(UNDER_ACL, reason="the Redis of these hosts is started without users"),
]

LEASE = 1.5
SLOTS = 2
LONG = 0.8
"""Seconds of a prediction that is still at work when a fault has come, and over within a lease."""
RECOVERY = 10.0
"""Seconds beyond a lease within which another attempt must have begun."""
NOTICED = REPLY_TIMEOUT + CONNECT_TIMEOUT + 1.0
"""Seconds within which whoever waits for a reply knows that there is none, and that there is no other connection."""
BACK = 2 * NOTICED
"""Seconds until all serve again after a network is whole."""
WORKERS = ("one", "two")


@dataclass(frozen=True)
class Site:
    """Four hosts, and the fleet on them."""

    network: Network
    server: HostedServer
    fleet: Fleet
    journal: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if what := lacks():
        missing(what)
    folder = tmp_path_factory.mktemp("network")
    journal = folder / "journal"
    with Network(folder, ("redis", "bridge", *WORKERS)) as network:
        server = HostedServer(network["redis"], folder)
        try:
            with fleets_on(server, folder) as make:
                options = {"lease": LEASE, "turn": 0.3, "max_attempts": 20, "slots": SLOTS, "workers": len(WORKERS)}
                fleet = make("actions", start=False, env=journal_env(journal), **options)
                fleet.start_bridge(through=network["bridge"].through)
                for name in WORKERS:
                    fleet.start_worker(name=name, through=network[name].through)
                fleet.wait_ready()
                yield Site(network, server, fleet, journal)
        finally:
            server.stop()


class Scene:
    """One test: its own oracle, requests that the oracle knows of, and the network whole at its end."""

    def __init__(self, site: Site, oracle: Oracle, chance: random.Random) -> None:
        self.network = site.network
        self.server = site.server
        self.fleet = site.fleet
        self.chance = chance
        self.marks: dict[str, str] = {}
        """By entry."""
        self._journal = site.journal
        self._oracle = oracle
        self._lock = threading.Lock()

    def send(self, seconds: float) -> Request:
        with self._lock:
            mark = f"{time.monotonic_ns()}-{len(self.marks)}"
            request = self.fleet.producer.send({"action": "SLEEP", "seconds": seconds, "text": mark})
            self.marks[request.entry] = mark
            return self._oracle.sent(request)

    @contextmanager
    def load(self, rate: float = 20) -> Iterator[None]:
        """Inside it requests are sent at random moments, which keep three of four slots at work at 20 a second."""
        enough = threading.Event()
        chance = random.Random(self.chance.random())

        def run() -> None:
            while not enough.wait(chance.expovariate(rate)):
                self.send(chance.uniform(0.05, 0.25))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def note(self, what: str) -> None:
        self._oracle.note(what)
        print(f"{time.time():.6f} {what}")

    def at_work(self, name: str) -> set[str]:
        """The entries that a worker has at a random moment of its work: one at least that is not over soon."""
        time.sleep(self.chance.uniform(0.2, 0.5))
        long = {self.send(LONG).entry for _ in range(SLOTS * len(WORKERS))}
        return wait_until(lambda: self.owned(name) & long, f"{name} to be at work", interval=0.002)

    def owned(self, name: str) -> set[str]:
        lines: Any = self.fleet.client.xpending_range(self.fleet.queue, self.fleet.queue, "-", "+", 1000)
        return {line["message_id"] for line in lines if line["consumer"].startswith(f"{name}~")}

    @contextmanager
    def cut(self, name: str) -> Iterator[float]:
        """Inside it the cable of a host is out; since when (monotonic)."""
        self.note(f"the cable of {name} is pulled")
        self.network[name].pull()
        yield time.monotonic()
        self.network[name].plug()
        self.note(f"the cable of {name} is in again")

    def taken_over(self, name: str, least: float) -> None:
        """Wait until a host that is silent from now on owns nothing any more, and for `least` seconds."""
        since = time.monotonic()
        wait_until(lambda: time.monotonic() - since > LEASE and not self.owned(name), "it to be taken over from", 15)
        assert time.monotonic() - since < LEASE + RECOVERY
        time.sleep(max(0.0, since + least - time.monotonic()))

    def first_ran(self, entries: set[str]) -> set[int]:
        """The runners that had these first."""
        marks = {self.marks[entry]: 0 for entry in entries}
        for line in reversed(self.lines()):
            if line.event == "start" and line.request in marks:
                marks[line.request] = line.runner
        return set(marks.values())

    def lines(self) -> list[JournalLine]:
        return read_journal(self._journal)

    def runners(self, name: str) -> set[int]:
        child = self.fleet.workers[WORKERS.index(name)]
        return {process.pid for process in family([child.pid]) if "_runner/__main__.py" in process.command}

    def judge(self) -> tuple[Verdict, set[str]]:
        """What the oracle says when all is answered, which is that nothing is wrong, and which requests of this scene
        were run twice or more. No request has failed.
        """
        assert self._oracle.settle(BACK + 10), "not everything was settled"
        verdict = self._oracle.check().demand()
        print(str(verdict))
        assert verdict.statuses["succeeded"] + verdict.statuses["canceled"] == len(self.marks)
        # The journal is that of all scenes.
        return verdict, {entry for entry, mark in self.marks.items() if mark in verdict.run_twice}

    def all_serve(self, limit: float = BACK) -> None:
        """Under load: every slot of both workers begins a prediction from now on, within `limit` seconds."""
        since = time.time()
        runners = self.runners("one") | self.runners("two")
        assert len(runners) == SLOTS * len(WORKERS)

        def idle() -> set[int]:
            return runners - {line.runner for line in self.lines() if line.event == "start" and line.at > since}

        wait_until(lambda: not idle(), "each slot to run one", limit)
        self.note("all serve again")


@pytest.fixture
def scene(site: Site) -> Iterator[Scene]:
    site.fleet.wait_ready(timeout=BACK)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    try:
        with recording(site.server) as monitor:
            yield Scene(site, Oracle(monitor, site.journal, site.fleet.queue), random.Random(seed))
    finally:
        site.network.heal()


def test_a_worker_cut_off_for_longer_than_a_lease_is_taken_over_from_and_its_late_answers_are_fenced(
    scene: Scene,
) -> None:
    runners = scene.runners("one")
    with scene.load():
        scene.at_work("one")
        with scene.cut("one"):
            scene.taken_over("one", 2 * LEASE)
        scene.all_serve()
    verdict, twice = scene.judge()
    assert verdict.reclaimed >= 1
    assert verdict.fenced >= 1
    assert scene.first_ran(twice) <= runners


def test_a_worker_cut_off_for_longer_than_three_leases_stops_its_runners_and_serves_again(scene: Scene) -> None:
    sent = [scene.send(3 * LEASE + NOTICED) for _ in range(SLOTS * len(WORKERS))]
    wait_until(lambda: len(scene.owned("one")) == len(scene.owned("two")) == SLOTS, "all slots to be at work")
    held, runners = scene.owned("one"), scene.runners("one")
    marks = {scene.marks[entry] for entry in held}

    def stopped() -> bool:
        ends = [line for line in scene.lines() if line.event == "end" and line.request in marks]
        return {line.runner for line in ends if line.how == "CancelationException"} == runners

    with scene.cut("one"):
        # The other one's are canceled, so that it is idle: it takes over.
        for request in sent:
            if request.entry not in held:
                scene.fleet.producer.cancel(request)
        wait_until(lambda: held <= scene.owned("two"), "the other one to take over", LEASE + RECOVERY)
        wait_until(stopped, "the runners to be stopped", 3 * LEASE + NOTICED)
    for request in sent:
        if request.entry in held:
            scene.fleet.producer.cancel(request)  # what it had taken over goes the same way
    with scene.load():
        scene.all_serve()
    verdict, twice = scene.judge()
    assert twice == held
    assert verdict.statuses["canceled"] == len(sent)


@pytest.mark.parametrize("name", ["bridge", "redis"])
def test_a_host_that_all_others_need_is_cut_off_and_nobody_is_taken_for_dead(scene: Scene, name: str) -> None:
    """But for who is at work when Redis is cut off: the kernel may take as long as the cut to send again what was lost,
    and that can be longer than this lease. With one above REPLY_TIMEOUT it cannot.
    """
    with scene.load():
        scene.at_work("one")
        with scene.cut(name) as since:
            held = scene.owned("one") | scene.owned("two") if name == "redis" else set()
            time.sleep(max(0.0, since + 2 * LEASE - time.monotonic()))
        scene.all_serve()
    assert scene.judge()[1] <= held


@pytest.mark.parametrize(("lost", "sent", "received"), [("requests", 1.0, 0.0), ("replies", 0.0, 1.0)])
def test_what_goes_one_way_is_lost(scene: Scene, lost: str, sent: float, received: float) -> None:
    runners = scene.runners("one")
    with scene.load():
        scene.at_work("one")
        scene.note(f"the {lost} of one are lost")
        scene.network.lose(scene.network["one"], sent=sent, received=received)
        scene.taken_over("one", 2 * LEASE)
        scene.network.heal()
        scene.note("nothing is lost any more")
        scene.all_serve()
    _, twice = scene.judge()
    assert scene.first_ran(twice) <= runners


def test_a_cable_that_loses_a_quarter_of_all_packets_loses_no_request(scene: Scene) -> None:
    with scene.load():
        scene.at_work("one")
        scene.note("a quarter of what the server sends and gets is lost")
        scene.network.lose(scene.network["redis"], sent=0.25, received=0.25)
        time.sleep(2 * LEASE)
        scene.network.heal()
        scene.note("nothing is lost any more")
        scene.all_serve()
    scene.judge()


def test_a_cable_on_which_everything_queues_loses_no_request(scene: Scene) -> None:
    with scene.load():
        scene.at_work("one")
        scene.note("the server's cable carries 150 kbit/s")
        scene.network["redis"].slow(150)
        time.sleep(2 * LEASE)
        scene.network.heal()
        scene.note("it carries all again")
        scene.all_serve()
    scene.judge()


def test_connections_that_a_firewall_has_forgotten_are_given_up_in_time(site: Site, scene: Scene) -> None:
    """Whatever is sent on them is gone, for good, and no end of theirs is told: also on those that only listen."""
    ports = scene.server.ports()
    scene.note(f"{len(ports)} connections are forgotten")
    scene.network.forget(ports)
    with scene.load(rate=5):
        scene.all_serve(REPLY_TIMEOUT + 7)
        wait_until(lambda: _answers_of(site) == len(WORKERS), "both to answer to remote control", 2 * BACK)
        scene.note("remote control works again")
    scene.judge()


def _answers_of(site: Site) -> int:
    """How many workers answer to Celery's remote control, asked from the bridge's host."""
    command = [*site.network["bridge"].through, sys.executable, "-m", "celery", "-A", "cog_celery"]
    command += ["inspect", "ping", "--json", "--timeout", "1"]
    done = subprocess.run(
        command, capture_output=True, env=site.fleet.environment({}), cwd=ROOT, check=False, timeout=BACK
    )
    return done.stdout.count(b'"pong"')
