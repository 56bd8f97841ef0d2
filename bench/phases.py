"""What is measured, in phases: each phase runs on one fleet of its own and fills some rows of the table.

It must not know who is measured, nor what is made of the figures.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import BenchError
from .fleet import Fleet
from .wire import Wire

_MODELS = Path(__file__).resolve().parent / "models"
KEYS = "bench:"
"""What the keys of all responses begin with."""

_TEXT = "hello"
_STALL = 30.0
_CHUNK = 500
_FEWEST = 100
# Long enough for what a worker does behind a terminal snapshot (statistics, events that are sent in batches).
_SETTLE = 0.3
_TERMINAL = ("succeeded", "failed", "canceled")

# All requests at once, in one atomic step: no worker sees the first before the last is there.
_FILL = """
for number = 1, tonumber(ARGV[1]) do
  redis.call('XADD', KEYS[1], '*', 'value', ARGV[2] .. number .. ARGV[3])
end"""

Figures = Mapping[str, float]
"""Values by the name of their measure."""


@dataclass(frozen=True)
class Effort:
    """How much is done in each round: a trade of time for steadiness."""

    latency_samples: int
    throughput_seconds: float
    repeats: int


@dataclass(frozen=True)
class Phase:
    name: str
    model: Path
    slots: int
    measure: Callable[[Wire, Fleet, str, Effort], Figures]


def _one_slot(wire: Wire, fleet: Fleet, queue: str, effort: Effort) -> Figures:
    rate = warm_up(wire, fleet, queue)
    milliseconds = sorted(1000 * seconds for seconds in _latencies(wire, queue, effort.latency_samples))
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    per_second, cpu = throughput(wire, fleet, queue, _enough(rate, effort))
    return {
        "latency_p50": cuts[49],
        "latency_p95": cuts[94],
        "latency_p99": cuts[98],
        "throughput_1": per_second,
        "cpu_1": cpu,
        "memory_1": fleet.memory_bytes() / 2**20,
    }


def _four_slots(wire: Wire, fleet: Fleet, queue: str, effort: Effort) -> Figures:
    rate = warm_up(wire, fleet, queue)
    per_second, cpu = throughput(wire, fleet, queue, _enough(rate, effort))
    return {"throughput_4": per_second, "cpu_4": cpu, "memory_4": fleet.memory_bytes() / 2**20 / 4}


def _yields(wire: Wire, fleet: Fleet, queue: str, effort: Effort) -> Figures:
    _yield(wire, fleet, queue, 10)
    figures = {}
    for count in (1000, 4000):
        runs = [_yield(wire, fleet, queue, count) for _ in range(effort.repeats)]
        figures[f"yields_{count}_seconds"] = statistics.median(seconds for seconds, _ in runs)
        figures[f"yields_{count}_bytes"] = statistics.median(size for _, size in runs) / 1e6
    return figures


ONE_SLOT = Phase("one slot", _MODELS / "noop", 1, _one_slot)
FOUR_SLOTS = Phase("four slots", _MODELS / "noop", 4, _four_slots)
YIELDS = Phase("yields", _MODELS / "yields", 1, _yields)
PHASES = (ONE_SLOT, FOUR_SLOTS, YIELDS)


def warm_up(wire: Wire, fleet: Fleet, queue: str) -> float:
    """Predictions per second, roughly: batches of growing size until one takes long enough to say."""
    count = 50
    while True:
        per_second, _ = throughput(wire, fleet, queue, count)
        if count / per_second > 0.25 or count >= 10_000:
            return per_second
        count *= 4


def _enough(rate: float, effort: Effort) -> int:
    return max(_FEWEST, round(rate * effort.throughput_seconds))


def _latencies(wire: Wire, queue: str, samples: int) -> list[float]:
    """Seconds from the XADD to the terminal snapshot, one prediction after the other.

    The producer sleeps until the server tells it of a SET and only then reads the response: it uses as little of the
    machine as a producer can, and is the same for all.
    """
    seconds = []
    with Wire(f"redis://{wire.host}:{wire.port}") as events:
        events.call("PSUBSCRIBE", f"__keyspace@0__:{KEYS}*")
        for number in range(samples):
            key = f"{KEYS}latency:{number}"
            channel = f"__keyspace@0__:{key}".encode()
            body = json.dumps({"input": {"text": _TEXT}, "response_queue": key})
            started = time.perf_counter()
            wire.call("XADD", queue, "*", "value", body)
            while True:
                message = events.receive()
                # An event of the prediction before this one may be left when its response was read early.
                if message[2] == channel and (snapshot := _snapshot(wire.call("GET", key)))["status"] in _TERMINAL:
                    break
            seconds.append(time.perf_counter() - started)
            _expect(snapshot, _TEXT)
    return seconds


def throughput(wire: Wire, fleet: Fleet, queue: str, count: int, settle: float = _SETTLE) -> tuple[float, float]:
    """Predictions per second of a stream that gets `count` of them at once, and milliseconds of CPU for each, with what
    is done in the `settle` seconds behind the last one.
    """
    before = fleet.cpu_seconds()
    head, _, tail = json.dumps({"input": {"text": _TEXT}, "response_queue": f"{KEYS}many:#"}).partition("#")
    started = time.perf_counter()
    wire.call("EVAL", _FILL, 1, queue, count, head, tail)
    elapsed = _drained(wire, fleet, queue, 0.005) - started
    time.sleep(settle)
    cpu = fleet.cpu_seconds() - before
    for first in range(1, count + 1, _CHUNK):
        keys = [f"{KEYS}many:{number}" for number in range(first, min(first + _CHUNK, count + 1))]
        for response in wire.call("MGET", *keys):
            _expect(_snapshot(response), _TEXT)
        wire.call("UNLINK", *keys)
    return count / elapsed, 1000 * cpu / count


def _yield(wire: Wire, fleet: Fleet, queue: str, count: int) -> tuple[float, int]:
    """Seconds for one prediction with this many yields and log lines, and the bytes that the fleet sent meanwhile."""
    key = f"{KEYS}yields"
    body = json.dumps({"input": {"count": count}, "response_queue": key})
    received, sent = wire.input_bytes(), wire.sent
    started = time.perf_counter()
    wire.call("XADD", queue, "*", "value", body)
    elapsed = _drained(wire, fleet, queue, 0.001) - started
    time.sleep(_SETTLE)
    size = wire.input_bytes() - received - (wire.sent - sent)
    snapshot = _snapshot(wire.call("GET", key))
    _expect(snapshot, [f"token {number}" for number in range(count)])
    logs = snapshot["logs"]
    lines = len(logs) if isinstance(logs, list) else len(logs.splitlines())
    if lines != count:
        raise BenchError(
            f"a prediction with {count} log lines has {lines} of them in its terminal snapshot{fleet.tail()}"
        )
    wire.call("UNLINK", key)
    return elapsed, size


def _drained(wire: Wire, fleet: Fleet, queue: str, interval: float) -> float:
    """Wait until the stream is empty; the time of it. A worker deletes an entry right behind its terminal snapshot."""
    lowest, changed = -1, time.perf_counter()
    while length := wire.call("XLEN", queue):
        now = time.perf_counter()
        if length != lowest:
            lowest, changed = length, now
        elif now - changed > _STALL:
            raise BenchError(f"{length} predictions were left when nothing moved for {_STALL:g} s{fleet.tail()}")
        time.sleep(interval)
    return time.perf_counter()


def _snapshot(data: bytes | None) -> dict[str, Any]:
    if data is None:
        raise BenchError("a response is missing whose request is gone")
    snapshot: dict[str, Any] = json.loads(data)
    return snapshot


def _expect(snapshot: Mapping[str, Any], output: object) -> None:
    if snapshot["status"] != "succeeded" or snapshot["output"] != output:
        text = json.dumps(snapshot)
        raise BenchError(f"a prediction did not come out as it should: {text[:500]}{'…' if len(text) > 500 else ''}")
