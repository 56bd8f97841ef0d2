"""What a part is given: its chance, its figures, its progress, and scenes, each a server and a fleet on it.

It must not know which fault is made in a scene.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.soak.report import Row
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.oracle import Oracle, Verdict, journal_env
from tests.support.processes import Child, family, wait_until
from tests.support.producer import TERMINAL, Producer, Request
from tests.support.servers import RedisServer, Server

LEASE = 2.0
DEFAULT_LEASE = 10.0
FIVE = 5
"""How often a fault is made again with the default lease."""
SAY_EVERY = 5.0
"""Seconds between two lines of progress."""
KEPT = 50_000
"""Commands that are kept for whoever looks at a failure."""
EVIDENCE_LINES, LONGEST_LINE = 60, 200

Input = dict[str, Any]


class OverBudget(AssertionError):
    """A part took longer than it may."""


@dataclass(frozen=True)
class Part:
    """One part of the soak; `budget`: the seconds it may take at its usual figures."""

    name: str
    what: str
    budget: float
    run: Callable[[Trial], None]


@dataclass(frozen=True)
class Asked:
    """What the caller wants. `times`: no more of each fault than that; `lease`: only rows with this one; `places`: only
    these failpoints; `peer`: an interpreter that has Cog; `cache`: where one is made otherwise.
    """

    seed: int
    times: int | None = None
    lease: float | None = None
    places: Sequence[str] = ()
    peer: Path | None = None
    cache: Path = Path(".bench")


@dataclass(frozen=True)
class Sent:
    """One request, the mark that the predictor's journal knows it by, and when it was sent (Unix time)."""

    request: Request
    mark: str
    at: float


@dataclass(frozen=True)
class Event:
    """A line of the predictor's journal: `setup`, `start` or `end`, in which runner, of which request, when."""

    event: str
    runner: int
    mark: str
    at: float


class Journal:
    """The journal that the action predictor keeps, as far as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._read = 0
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            fields = json.loads(line)
            self._events.append(Event(fields["event"], fields["runner"], fields["request"], fields["at"]))
        return self._events

    def starts(self, mark: str) -> list[Event]:
        """When and where a request was run, in order."""
        return [event for event in self.events() if event.event == "start" and event.mark == mark]

    def runs(self) -> dict[str, list[Event]]:
        """The starts of every request."""
        runs: dict[str, list[Event]] = {}
        for event in self.events():
            if event.event == "start":
                runs.setdefault(event.mark, []).append(event)
        return runs

    def wait_start(self, mark: str, nth: int = 1, *, timeout: float = 20.0) -> Event:
        """The `nth` run of a request, as soon as it has begun."""
        return wait_until(lambda: self.starts(mark)[nth - 1 :], f"run {nth} of {mark}", timeout, interval=0.005)[0]


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
        self._rng = random.Random(scene.trial.rng.random())
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
        self, trial: Trial, server: RedisServer, fleet: Fleet, monitor: Monitor, journal: Journal, durable: bool
    ) -> None:
        self.trial = trial
        self.server = server
        self.fleet = fleet
        self.monitor = monitor
        self.journal = journal
        self.oracle = Oracle(monitor, journal.path, fleet.queue, durable=durable)
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
            self.trial.progress(note=f"{len(missing)} requests to be answered")
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


class Trial:
    """One part under way. All that is left to chance comes from `rng`, and so from the seed."""

    def __init__(self, part: Part, asked: Asked, folder: Path) -> None:
        self.part = part
        self.seed = asked.seed
        self.rng = random.Random(f"{asked.seed}/{part.name}")
        self.asked = asked
        self.folder = folder
        self.rows: list[Row] = []
        self.server_version = ""
        self._began = self._row_began = time.monotonic()
        self._said = 0.0
        self._state = ""
        self._scenes = 0

    def times(self, usual: int) -> int:
        """How often: as usual, unless less is asked for."""
        return usual if self.asked.times is None else min(usual, self.asked.times)

    def leases(self, usual: int, default: int = FIVE) -> list[tuple[float, int]]:
        """The leases to be tried, and how often each: the short one as usual, and the default one."""
        both = ((LEASE, usual), (DEFAULT_LEASE, default))
        return [(lease, self.times(times)) for lease, times in both if self.asked.lease in (None, lease)]

    def row(self, fault: str, promise: str, unit: str, lease: float | None = None) -> Row:
        """Begin a row of the table."""
        if lease is not None:
            fault = f"{fault}; lease {lease:g} s"
        self.close_row()
        row = Row(self.part.name, fault, promise, unit, self.seed)
        self.rows.append(row)
        return row

    def close_row(self) -> None:
        """The last row has its time."""
        now = time.monotonic()
        if self.rows:
            self.rows[-1].seconds = now - self._row_began
        self._row_began = now

    def progress(self, done: int | None = None, of: int | None = None, note: str = "") -> None:
        """Say how far it is, at most every few seconds."""
        if done is not None:
            self._state = f"{done} of {of}"
        now = time.monotonic()
        if now - self._said >= SAY_EVERY:
            self._said = now
            self.say(f"{self._state}{'  ' if note else ''}{note}")

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {self.part.name}  {line}", file=sys.stderr, flush=True)

    @contextmanager
    def server(self, *options: str) -> Iterator[RedisServer]:
        folder = self.folder / f"server-{self._scenes}"
        folder.mkdir(parents=True)
        server = RedisServer("valkey", folder, *options)
        try:
            info: Any = server.client.info("server")
            self.server_version = f"Valkey {info['valkey_version']}"
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)
            server.stop()

    @contextmanager
    def scene(
        self,
        *,
        server_options: Sequence[str] = (),
        through: Callable[[RedisServer], Server] | None = None,
        durable: bool = True,
        bridges: int = 1,
        workers: int = 1,
        slots: int = 1,
        **options: Any,
    ) -> Iterator[Scene]:
        """A fleet of the action predictor on a server of its own. At the end all that runs must stop well.

        `through`: what stands between the fleet and the server. `durable`: whether a server that dies keeps its data.
        """
        self._scenes += 1
        folder = self.folder / f"scene-{self._scenes}"
        folder.mkdir(parents=True)
        journal = Journal(folder / "journal.jsonl")
        with ExitStack() as stack:
            server = stack.enter_context(self.server(*server_options))
            monitor = stack.enter_context(Monitor(server.client, keep=KEPT))
            fleet = Fleet(
                server if through is None else through(server),
                folder,
                "actions",
                bridges=bridges,
                workers=workers,
                slots=slots,
                env=journal_env(journal.path),
                **options,
            )
            stack.callback(fleet.discard)
            scene = Scene(self, server, fleet, monitor, journal, durable)
            try:
                fleet.start()
                yield scene
                for load in scene.loads:
                    load.close()
                fleet.stop(timeout=45)
            except BaseException:
                self.show(scene.evidence(), scene.folder)
                raise
            finally:
                for load in scene.loads:
                    load.close()
            if scene.broken:
                self.show(scene.evidence(), scene.folder)

    def show(self, evidence: str, folder: Path) -> None:
        """The end of what happened, for whoever looks at a failure."""
        lines = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..." for line in evidence.splitlines()]
        print("\n".join(lines[-EVIDENCE_LINES:]), file=sys.stderr)
        self.say(f"that was the end of it; the logs and all else are in {folder}")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OverBudget in the main thread when it takes longer."""

    def late(number: int, frame: FrameType | None) -> None:
        raise OverBudget(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kill_all(child: Child) -> float:
    """kill -9 of a process and of everything under it; when that was (Unix time)."""
    below = family([child.pid])
    at = time.time()
    for process in sorted(below, key=lambda process: process.pid != child.pid):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    child.wait()
    return at
