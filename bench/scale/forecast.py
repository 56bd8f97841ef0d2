"""What 10,000 GPUs would ask of one Redis, of bridges and of a network, by what one prediction asks of them here.

It must not know how that was measured. It is a calculation: whatever was measured for a prediction is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FULL = 0.8
"""The share of a thread, or of a network, at which it is said to be full."""
NETWORK = 125e6
"""Bytes a second of a network of 1 Gbit/s."""
GPUS = (100, 1000, 10_000)


@dataclass(frozen=True)
class Load:
    """`gpus` slots that are never idle, with predictions of so many seconds, in workers of so many slots.

    `redis_share`: of the one thread of a Redis, as measured, and `busy_share`: if each round trip costs what it costs a
    Redis that is never idle. `most` and `busy_most`: GPUs at which it is full. `redis`: threads by the first of the
    two, `bridges`: bridges, none fuller than FULL; `network`: networks of 1 Gbit/s; `connections`: to all the servers.
    """

    gpus: int
    seconds: float
    slots: int
    per_second: float
    redis_share: float
    busy_share: float
    redis: int
    bridges: int
    network: float
    connections: int
    most: int
    busy_most: int


def loads(fleet: Sequence[Mapping[str, Any]], gpus: Sequence[int] = GPUS) -> Iterator[Load]:
    """For each class of the rows that were measured, and each number of GPUs."""
    for row in fleet:
        for count in gpus if row["seconds"] else ():
            yield load(row, count)


def load(row: Mapping[str, Any], gpus: int) -> Load:
    """For one class."""
    seconds, per_second = row["seconds"], gpus / row["seconds"]
    measured = row["server_us"]
    busy = min(measured, row["executing_us"] + row["trips"] * row["trip_us"])
    share = per_second * measured / 1e6
    return Load(
        gpus=gpus,
        seconds=seconds,
        slots=row["slots_per_worker"],
        per_second=per_second,
        redis_share=share,
        busy_share=per_second * busy / 1e6,
        redis=math.ceil(share / FULL),
        bridges=max(1, math.ceil(per_second * row["bridge_us"] / 1e6 / FULL)),
        network=per_second * row["bytes"] / NETWORK,
        connections=round(gpus / row["slots_per_worker"] * row["connections_per_worker"]),
        most=round(FULL * seconds * 1e6 / measured),
        busy_most=round(FULL * seconds * 1e6 / busy),
    )


def idle_load(rows: Sequence[Mapping[str, Any]], gpus: int, trip_us: float) -> Load:
    """The same of GPUs that have nothing to do, in workers of one slot: by what more workers cost than fewer."""
    few, many = rows[0], rows[-1]
    more = many["workers"] - few["workers"]
    each = max(0.0, many["server_share"] - few["server_share"]) / more
    executing = max(0.0, many["executing_share"] - few["executing_share"]) / more
    busy = min(each, executing + many["trips"] * trip_us / 1e6)
    share = each * gpus
    return Load(
        gpus=gpus,
        seconds=0.0,
        slots=1,
        per_second=0.0,
        redis_share=share,
        busy_share=busy * gpus,
        redis=math.ceil(share / FULL),
        bridges=1,
        network=gpus * many["bytes"] / NETWORK,
        connections=round(gpus * many["connections"]),
        most=round(FULL / each) if each else 0,
        busy_most=round(FULL / busy) if busy else 0,
    )
