"""What a server did between two moments: the CPU time of its one thread, round trips, and the commands and bytes of
each kind of connection.

It must not know what is measured. What a script runs inside the server counts as commands, and is one round trip.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from bench import BenchError
from bench.wire import Wire

NAME = "bench"
"""The name of the benchmark's own connection, which is not counted."""
KINDS = {
    "cog-celery-bridge": "bridge",
    "cog-celery-slot": "slots",
    "cog-celery-keeper": "heartbeat",
    "cog-celery-spare": "heartbeat",
    "cog-celery-worker": "heartbeat",
    "": "broker",
}
"""Kinds of connections by what their names begin with; Celery's have none."""

# Commands that the fleet sends by themselves; all others are within these, as parts of scripts, but for a few.
_OUTER = ("evalsha", "brpop", "blmove", "xread", "xreadgroup", "lpush", "publish", "ping", "exists")
_CONNECTIONS, _ROUNDS = 50, 400

_FIELD = re.compile(r"(?:^| )(name|tot-net-in|tot-net-out|tot-cmds)=(\S*)")


@dataclass(frozen=True)
class Reading:
    """What the server had done up to a moment (seconds, monotonic)."""

    at: float
    cpu: float
    executing: float
    trips: int
    commands: Mapping[str, int]
    bytes: Mapping[str, int]
    """Both ways."""


@dataclass(frozen=True)
class Spent:
    """What it did in `seconds`: seconds of CPU, and, by its own account and the clock, within commands; round trips;
    commands and bytes by kind of connection.
    """

    seconds: float
    cpu: float
    executing: float
    trips: int
    commands: Mapping[str, int]
    bytes: Mapping[str, int]


class Meter:
    """Reads one server, through a connection of the benchmark's own."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        wire.call("CLIENT", "SETNAME", NAME)

    def read(self) -> Reading:
        """Raises BenchError with a server that does not count by connection."""
        commands: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for line in self._wire.call("CLIENT", "LIST").decode(errors="replace").splitlines():
            about = dict(_FIELD.findall(line))
            if "tot-cmds" not in about:
                raise BenchError("the server does not count the commands of a connection: this needs Valkey 8 or newer")
            kind = KINDS.get(about["name"].partition(":")[0])
            if kind is not None:
                commands[kind] += int(about["tot-cmds"])
                size[kind] += int(about["tot-net-in"]) + int(about["tot-net-out"])
        about = self._about("cpu") | self._about("stats")
        cpu = sum(float(about[f"used_cpu_{kind}_main_thread"]) for kind in ("user", "sys"))
        # What the benchmark itself asks is none of theirs.
        trips = int(about["total_reads_processed"]) - self._wire.calls
        return Reading(time.monotonic(), cpu, self._executing(), trips, commands, size)

    def since(self, before: Reading) -> Spent:
        """Of connections that are there now."""
        now = self.read()
        return Spent(
            now.at - before.at,
            now.cpu - before.cpu,
            now.executing - before.executing,
            now.trips - before.trips,
            {kind: count - before.commands.get(kind, 0) for kind, count in now.commands.items()},
            {kind: size - before.bytes.get(kind, 0) for kind, size in now.bytes.items()},
        )

    def trip_us(self) -> float:
        """Microseconds of CPU that a round trip costs the server beside its command, when it is never idle."""
        with ExitStack() as stack:
            url = f"redis://{self._wire.host}:{self._wire.port}"
            wires = [stack.enter_context(Wire(url)) for _ in range(_CONNECTIONS)]
            before = self.read()
            for _ in range(_ROUNDS):
                for wire in wires:
                    wire.send("PING")
                for wire in wires:
                    wire.receive()
            spent = self.since(before)
        return 1e6 * (spent.cpu - spent.executing) / (_CONNECTIONS * _ROUNDS)

    def _executing(self) -> float:
        about = self._about("commandstats")
        rows = (about[f"cmdstat_{name}"] for name in _OUTER if f"cmdstat_{name}" in about)
        return sum(int(row.partition("usec=")[2].partition(",")[0]) for row in rows) / 1e6

    def connections(self) -> int:
        """How many there are beside the benchmark's."""
        return int(self._about("clients")["connected_clients"]) - 1

    def memory(self) -> int:
        """Bytes that the server's data takes."""
        return int(self._about("memory")["used_memory"])

    def _about(self, section: str) -> dict[str, str]:
        lines = self._wire.call("INFO", section).decode().splitlines()
        return {name: value for name, _, value in (line.partition(":") for line in lines)}
