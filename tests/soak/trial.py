"""What a part is given: its chance, its figures, its progress, its rows, and scenes.

It must not know which fault is made in a scene.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tests.soak.journal import Journal
from tests.soak.report import Row
from tests.soak.scene import KEPT, Scene
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.oracle import journal_env
from tests.support.servers import RedisServer, Server

LEASE = 2.0
DEFAULT_LEASE = 10.0
FIVE = 5
"""How often a fault is made again with the default lease."""
SAY_EVERY = 5.0
"""Seconds between two lines of progress."""
EVIDENCE_LINES, LONGEST_LINE = 60, 200


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
        model: str | Path = "actions",
        at_once: int = 1,
        bridges: int = 1,
        workers: int = 1,
        slots: int = 1,
        **options: Any,
    ) -> Iterator[Scene]:
        """A fleet of the action predictor on a server of its own. At the end all that runs must stop well.

        `through`: what stands between the fleet and the server. `durable`: whether a server that dies keeps its data.
        `at_once`: predictions in one runner.
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
                model,
                bridges=bridges,
                workers=workers,
                slots=slots,
                env=journal_env(journal.path),
                **options,
            )
            stack.callback(fleet.discard)
            scene = Scene(
                server,
                fleet,
                monitor,
                journal,
                rng=self.rng,
                progress=self.progress,
                durable=durable,
                at_once=at_once,
            )
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
