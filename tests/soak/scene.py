"""A scene: a server, a fleet of the action predictor on it, the requests it is sent, and whoever judges what happens.

It must not know which fault is made in it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.soak.journal import Journal
from tests.soak.report import Row
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.oracle import Oracle, Verdict
from tests.support.processes import Child, family, wait_until
from tests.support.producer import TERMINAL, Producer, Request
from tests.support.servers import RedisServer

KEPT = 50_000
"""Commands that are kept for whoever looks at a failure."""

Input = dict[str, Any]


class Progress(Protocol):
    """Says how far a part is."""

    def __call__(self, done: int | None = None, of: int | None = None, note: str = "") -> None: ...


@dataclass(frozen=True)
class Sent:
    """One request, the mark that the predictor's journal knows it by, and when it was sent (Unix time)."""

    request: Request
    mark: str
    at: float


@dataclass(frozen=True)
class Worker:
    """A worker by its name and its present life, `<name>~<random>`, which its slots' names begin with."""

    child: Child
    name: str
    life: str


class Load:
    """Sends requests from a thread of its own, at random moments with a mean rate: until it is finished, and at least
    `least` of them.
    """

    def __init__(self, scene: Scene, least: int, rate: float, make: Callable[[random.Random], Input]) -> None:
        self.sent: list[Sent] = []
        self.unknown = 0
        """How many XADDs had no answer: nobody can tell whether these were sent."""
        self._scene = scene
        self._least = least
        self._rate = rate
        self._make = make
        self._enough = threading.Event()
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._rng = random.Random(scene.rng.random())
        self._thread = threading.Thread(target=self._guarded, name="load", daemon=True)
        self._thread.start()

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as error:
            self._error = error

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set() and not (self._enough.is_set() and len(self.sent) >= self._least):
            try:
                self.sent.append(self._scene.send(self._make(self._rng)))
            except (redis.ConnectionError, redis.TimeoutError):
                self.unknown += 1
                self._stop.wait(0.05)
            due += self._rng.expovariate(self._rate)
            self._stop.wait(max(0.0, due - time.monotonic()))

    def finish(self, timeout: float = 300.0) -> list[Sent]:
        """Everything that it sent, once it has sent enough."""
        self._enough.set()
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"{len(self.sent)} of {self._least} requests after {timeout:g} s more"
        if self._error is not None:
            raise self._error
        return self.sent

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class Scene:
    """A server, a fleet on it, what the server ran, what the predictor ran, and whoever judges both."""

    def __init__(
        self,
        server: RedisServer,
        fleet: Fleet,
        monitor: Monitor,
        journal: Journal,
        *,
        rng: random.Random,
        progress: Progress,
        durable: bool,
        at_once: int = 1,
    ) -> None:
        self.rng = rng
        self.progress = progress
        self.server = server
        self.fleet = fleet
        self.monitor = monitor
        self.journal = journal
        self.oracle = Oracle(monitor, journal.path, fleet.queue, durable=durable, at_once=at_once)
        self.loads: list[Load] = []
        self.broken = False
        self.story = ""
        """What happened to the requests of which something did not hold."""
        # Without retries: a repeated XADD would be another request.
        client = redis.Redis(port=server.port, decode_responses=True, protocol=2, retry=Retry(NoBackoff(), 0))
        self._producer = Producer(client, fleet.queue)
        self._number = 0
        self._lock = threading.Lock()

    @property
    def client(self) -> redis.Redis:
        return self._producer.client

    # Requests

    def send(self, input: Input, **fields: Any) -> Sent:
        """Send a request with a mark of its own. Raises what redis-py raises."""
        with self._lock:
            self._number += 1
            mark = f"{self.fleet.queue}.{self._number}"
        at = time.time()
        request = self._producer.send({**input, "text": mark}, id=mark, **fields)
        self.oracle.sent(request)
        return Sent(request, mark, at)

    def send_bad(self, fields: dict[Any, Any]) -> str:
        """Send an entry that is to be settled and need not be answered; its id."""
        entry: Any = self.client.xadd(self.fleet.queue, fields)
        self.oracle.sent(Request(id="", entry=entry, response_queue="", cancel_key=""))
        return str(entry)

    def load(self, least: int, rate: float, make: Callable[[random.Random], Input]) -> Load:
        load = Load(self, least, rate, make)
        self.loads.append(load)
        return load

    def wait(self, sent: Sent, timeout: float = 15.0) -> str:
        """The terminal status."""
        status: str = self._producer.wait(sent.request, timeout=timeout)["status"]
        return status

    def output(self, sent: Sent) -> object:
        """The output so far."""
        return (self._producer.get(sent.request) or {}).get("output")

    def error(self, sent: Sent) -> object:
        """What went wrong, if it failed."""
        return (self._producer.get(sent.request) or {}).get("error")

    def cancel(self, sent: Sent) -> None:
        self._producer.cancel(sent.request)

    def settle(self, sents: Sequence[Sent], timeout: float) -> dict[str, str | None]:
        """The status of each mark when all are terminal, or when `timeout` seconds are over; None without a response.

        While fewer are missing than before, the clock begins anew.
        """
        statuses: dict[str, str | None] = {}
        missing = list(sents)
        deadline = time.monotonic() + timeout
        while True:
            keys = [sent.request.response_queue for sent in missing]
            texts: Any = []
            with suppress(redis.ConnectionError, redis.TimeoutError):
                texts = self.client.mget(keys) if keys else []
            for sent, text in zip(missing, texts, strict=False):
                statuses[sent.mark] = None if text is None else json.loads(text)["status"]
            left = [sent for sent in missing if statuses.get(sent.mark) not in TERMINAL]
            if len(left) < len(missing):
                deadline = time.monotonic() + timeout
            missing = left
            if not missing or time.monotonic() > deadline:
                return statuses
            self.progress(note=f"{len(missing)} requests to be answered")
            time.sleep(0.1)

    # Processes

    def start_worker(self, name: str, **options: Any) -> Worker:
        """Start a worker and wait until it is announced: its slots are idle a moment later."""
        before = self.lives(name)
        child = self.fleet.start_worker(name=name, **options)
        return Worker(child, name, self.announced(child, name, before))

    def announced(self, child: Child, name: str, before: set[str]) -> str:
        """The life of a worker that has just been started, as soon as it is known."""

        def life() -> set[str]:
            child.check_running()
            with suppress(redis.ConnectionError, redis.TimeoutError):
                return self.lives(name) - before
            return set()

        return wait_until(life, f"{child.name} to be announced", 60, interval=0.02).pop()

    def lives(self, name: str) -> set[str]:
        """The lives of a worker that are announced."""
        prefix = f"cog-celery:{self.fleet.queue}:worker:"
        return {key.removeprefix(prefix) for key in self.client.scan_iter(f"{prefix}{name}~*", count=1000)}

    def workers(self) -> list[Worker]:
        """The workers that the fleet has begun with."""
        found = []
        for number, child in enumerate(self.fleet.workers):
            name = f"w{number}-{self.fleet.queue}"
            found.append(Worker(child, name, self.lives(name).pop()))
        return found

    def serving_bridge(self, child: Child) -> None:
        """Wait until a bridge that has just been started is connected."""

        def connected() -> bool:
            child.check_running()
            log = child.text()
            return " serves " in log

        wait_until(connected, f"{child.name} to serve", 60, interval=0.02)

    def owned(self, prefix: str) -> list[str]:
        """The entries that consumers own whose names begin with this: a process's name, or one life of it."""
        lines: Any = self.client.xpending_range(self.fleet.queue, self.fleet.queue, "-", "+", 1000)
        return [line["message_id"] for line in lines if line["consumer"].startswith(prefix)]

    def owners(self) -> list[str]:
        """Who owns something."""
        found: Any = self.client.xpending(self.fleet.queue, self.fleet.queue)
        return [line["name"] for line in found["consumers"]]

    # Judging

    def note(self, what: str) -> None:
        """A fault, for the timelines."""
        self.oracle.note(what)

    def judge(self, row: Row) -> Verdict:
        """Hold what happened against the oracle's invariants, once nothing is on its way any more."""
        if not self.oracle.settle():
            row.problems.append("not everything was settled within 30 s")
        verdict = self.oracle.check()
        row.problems += [str(violation) for violation in verdict.violations]
        self.story = verdict.timeline
        self.broken = not row.ok
        return verdict

    @property
    def folder(self) -> Path:
        """Where the logs and the journal are."""
        return self.fleet.folder

    def evidence(self) -> str:
        """What happened: the stories of what broke, or else the last commands. All of both is left in the folder."""
        commands = self.monitor.timeline(last=KEPT)
        (self.folder / "commands.txt").write_text(commands)
        (self.folder / "timeline.txt").write_text(self.story)
        return self.story or commands


def kill_all(child: Child) -> float:
    """kill -9 of a process and of everything under it; when that was (Unix time)."""
    below = family([child.pid])
    at = time.time()
    for process in sorted(below, key=lambda process: process.pid != child.pid):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    child.wait()
    return at
