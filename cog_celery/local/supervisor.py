"""The parent of a bridge and a worker in one command: starts both, passes stop signals on, and ends with them.

It must not know what they do; a server of its own is the one thing it keeps for them.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Final, Self, cast

import msgspec
import redis

from cog_celery.delivery import servers
from cog_celery.delivery.stream import SLOT, Queue, slot_life
from cog_celery.local.embedded import EmbeddedServer
from cog_celery.local.processes import tied
from cog_celery.settings import Settings

log = logging.getLogger(__name__)

# -P: the working directory, a model's folder say, must not shadow modules.
COMMANDS: Final = {name: (sys.executable, "-P", "-m", "cog_celery", name) for name in ("bridge", "worker")}

STOP_MARGIN: Final = 30.0
"""Seconds that the children may take to stop, beyond what their settings let predictions go on for."""
FIRST_LOOK, LAST_LOOK = 0.1, 0.5
"""Seconds between two looks for a ready worker: it starts in less than a second, or loads a model for minutes."""


def run(
    settings: Settings, *, embedded: bool, ready: Callable[[Settings, Inputs], None], stopped_early: int = 0
) -> int:
    """Run a bridge and a worker until one of them ends or a signal stops both; returns the exit status.

    `embedded`: on a server of our own, whose URL the settings then have that `ready` is called with once a slot is
    idle. `stopped_early`: the status when a signal came before that. To be called from the main thread, which gets the
    signals, and with which the children die. Raises ServerError when the server of our own does not start.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        if embedded:
            settings = settings.with_redis(stack.enter_context(EmbeddedServer()).url)
        if signals.stops:
            return stopped_early
        worker = stack.enter_context(_WorkerLook(settings))
        patience = settings.drain_timeout + settings.cancel_grace + STOP_MARGIN
        fleet = Fleet(COMMANDS, settings, patience, signals)
        stack.callback(fleet.kill)
        fleet.start()
        is_ready = fleet.wait_for(worker.ready)
        if is_ready:
            ready(settings, worker.inputs())
        return fleet.wait(0 if is_ready else stopped_early)


Inputs = list[tuple[str, str]]
"""Names and types of the inputs that a model must have."""


class Signals:
    """Stop signals, counted, and a pipe that wakes a wait at those and at the end of a child."""

    def __init__(self) -> None:
        self.stops = 0

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._old_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        stops = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            stops.append(signal.SIGHUP)  # the terminal is closed; under nohup it stays ignored
        self._old = {number: signal.signal(number, self._stop) for number in stops}
        self._old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, self._child)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, seconds: float | None) -> None:
        """Return at the next signal, or after so long."""
        select.select([self._reader], [], [], seconds)
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1

    def _child(self, number: int, frame: FrameType | None) -> None:
        """Only here so that the pipe is written to."""


class Fleet:
    """The children, by name, from their start to the end of the last; `patience`: seconds they may take to stop."""

    def __init__(
        self, commands: Mapping[str, Sequence[str]], settings: Settings, patience: float, signals: Signals
    ) -> None:
        self._commands = commands
        self._settings = settings
        self._patience = patience
        self._signals = signals
        self._passed_on = 0
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._first: str | None = None

    def start(self) -> None:
        """Start all; they die with this thread."""
        for name, command in self._commands.items():
            # A session of its own: Ctrl-C in a terminal reaches the parent alone, which passes it on once.
            self._children[name] = subprocess.Popen(
                tied(command), env=self._environment(name), stdin=subprocess.DEVNULL, start_new_session=True
            )

    def _environment(self, name: str) -> dict[str, str]:
        settings, file = self._settings, self._settings.heartbeat_file
        if file is not None:  # one for each
            settings = msgspec.structs.replace(settings, heartbeat_file=f"{file}.{name}")
        if (port := settings.metrics_port) is not None:
            settings = msgspec.structs.replace(settings, metrics_port=port + list(self._commands).index(name))
        return settings.child_env(os.environ)

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether it came true before a child ended or a signal came, which no child has been told of yet."""
        pause = FIRST_LOOK
        while not condition():
            if self._signals.stops or self._ended():
                return False
            self._signals.wait(pause)
            pause = min(pause * 1.2, LAST_LOOK)
        return True

    def wait(self, stopped: int) -> int:
        """The exit status, when all have ended: of the first that ended by itself, or `stopped` after a signal."""
        kill_at: float | None = None
        while len(self._ended()) < len(self._children):
            if kill_at is None and (self._ended() or self._signals.stops):
                kill_at = time.monotonic() + self._patience
                if not self._signals.stops:
                    self._first = self._ended()[0]
                    log.warning("the %s %s; stopping", self._first, _ending(self._children[self._first]))
                    self._terminate()
            while self._passed_on < self._signals.stops:
                self._passed_on += 1
                self._terminate()
            if kill_at is not None and time.monotonic() > kill_at:
                log.error("%s did not stop within %.0f s: killed", " and ".join(self._living()), self._patience)
                self.kill()
            self._signals.wait(None if kill_at is None else max(0.0, kill_at - time.monotonic()) + 0.01)
        return self._status(stopped)

    def kill(self) -> None:
        """End what still runs, at once."""
        for name in self._living():
            self._children[name].kill()
            self._children[name].wait()

    def _terminate(self) -> None:
        for name in self._living():
            self._children[name].terminate()

    def _ended(self) -> list[str]:
        return [name for name, child in self._children.items() if child.poll() is not None]

    def _living(self) -> list[str]:
        return [name for name, child in self._children.items() if child.poll() is None]

    def _status(self, stopped: int) -> int:
        if self._first is None and not self._signals.stops:
            self._first = self._ended()[0]  # both at once
        if self._first is not None:
            return _shell_status(self._children[self._first].returncode)
        # A child that was stopped before it could listen to signals has died of ours.
        statuses = [child.returncode for child in self._children.values() if child.returncode != -signal.SIGTERM]
        return next((_shell_status(status) for status in statuses if status), stopped)


class _WorkerLook:
    """Looks in Redis for a sign that the worker of this name serves: an idle slot's credit, or a slot that has run."""

    def __init__(self, settings: Settings) -> None:
        self._queue = settings.queue
        queue = Queue(settings.queue)
        self._credits, self._announce = queue.credits, queue.announce_prefix
        self._name = settings.name
        # Signals wait as long as a look does.
        self._client = servers.client(settings.redis_url, socket_timeout=1.0, socket_connect_timeout=1.0)
        self._before: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        self._before = self._slots()
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def ready(self) -> bool:
        return bool(self._slots() - self._before)

    def inputs(self) -> Inputs:
        """What the model takes, as the worker announces it; nothing when that cannot be read."""
        slot = next(iter(self._slots() - self._before), "")
        with suppress(redis.RedisError, ValueError, TypeError, KeyError):
            about = json.loads(cast(bytes, self._client.get(self._announce + slot_life(slot))))
            return [(str(field["name"]), str(field["type"])) for field in about["inputs"] if field["required"]]
        return []

    def _slots(self) -> frozenset[str]:
        """The slots of this name that can be seen; none while the server is not there."""
        names: list[bytes] = []
        with suppress(redis.RedisError):
            names += cast("list[bytes]", self._client.lrange(self._credits, 0, -1))
            # The group comes last: it may not be there yet.
            names += [consumer["name"] for consumer in self._client.xinfo_consumers(self._queue, self._queue)]
        slots = [name.decode(errors="replace") for name in names]
        return frozenset(slot for slot in slots if SLOT.fullmatch(slot) and slot.startswith(f"{self._name}~"))


def _shell_status(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


def _ending(child: subprocess.Popen[bytes]) -> str:
    if child.returncode < 0:
        return f"was killed by {signal.Signals(-child.returncode).name}"
    return f"ended with status {child.returncode}"
