"""What is made of the rows: tables for people, figures and a picture for docs/scaling.md.

It must not know how they were measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import BenchError
from bench.scale.forecast import FULL, GPUS, idle_load, load, loads
from bench.scale.plot import Axis, Panel, Series, picture

Row = Mapping[str, Any]
Rows = Sequence[Row]
Found = Mapping[str, Rows]
"""Rows by the name of their part."""


@dataclass(frozen=True)
class Table:
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.headings, ["---"] * len(self.headings), *self.cells]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tables(found: Found) -> dict[str, Table]:
    """A table for each part that was measured, and the forecast when its figures are there."""
    made = {name: make(found[name]) for name, make in _TABLES.items() if name in found}
    if "fleet" in found and "idle" in found:
        made["forecast"] = _forecast(found["fleet"], found["idle"])
    return made


def write(document: Path, image: Path, found: Found, machine: str) -> None:
    """Put the tables between their markers in the document, and the curves into the image. Raises BenchError."""
    text = document.read_text()
    for name, table in tables(found).items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marked.search(text):
            raise BenchError(f"{document} has no place for the figures of {name}: <!-- {name} --> … <!-- /{name} -->")
        text = marked.sub(lambda match: f"{match[1]}{table.markdown()}\n{match[2]}", text)  # noqa: B023
    text = re.sub(r"(<!-- machine -->).*?(<!-- /machine -->)", rf"\g<1>{machine}\g<2>", text, flags=re.DOTALL)
    document.write_text(text)
    if all(name in found for name in ("slots", "queues", "workers", "fleet")):
        image.write_text(_picture(found))


def _slots(rows: Rows) -> Table:
    headings = ["slots", "predictions of 50 ms /s", "of linear", "of what sleeping allows", "CPU of the worker each"]
    cells = [
        [
            str(row["slots"]),
            f"{row['rate']:.1f}",
            f"{row['linear']:.1%}",
            f"{row['ideal']:.1%}",
            f"{row['workers_us'] / 1000:.2f} ms",
        ]
        for row in rows
    ]
    return Table(headings, cells)


def _fleet(rows: Rows) -> Table:
    headings = [
        *("workers, slots of each", "predictions of", "/s", "of what sleeping allows"),
        *(
            "Redis, CPU each",
            "within commands",
            "round trips",
            "commands",
            "bytes",
            "bridge, CPU each",
            "workers, CPU each",
        ),
    ]
    cells = [
        [
            f"{row['slots'] // row['slots_per_worker']}, {row['slots_per_worker']}",
            _seconds(row["seconds"]),
            f"{row['rate']:,.1f}",
            "" if row["ideal"] is None else f"{row['ideal']:.1%}",
            f"{row['server_us']:,.0f} µs",
            f"{row['executing_us']:,.0f} µs",
            f"{row['trips']:.1f}",
            f"{row['commands']:.1f}",
            f"{row['bytes']:,.0f}",
            f"{row['bridge_us']:,.0f} µs" if row["bridge_us"] else "",  # less than the clock of /proc tells
            f"{row['workers_us'] / 1000:,.1f} ms",
        ]
        for row in rows
    ]
    return Table(headings, cells)


def _idle(rows: Rows) -> Table:
    headings = [
        *("idle workers", "worker", "its runner", "its guardian", "CPU of each", "round trips of each"),
        *("commands of each", "connections of each", "Redis, CPU of all", "bridge", "a prediction there and back"),
    ]
    cells = [
        [
            str(row["workers"]),
            f"{row['worker_mib']:.1f} MiB",
            f"{row['runner_mib']:.1f} MiB",
            f"{row['guardian_mib']:.1f} MiB",
            f"{row['worker_share']:.2%}",
            f"{row['trips']:.2f} /s",
            f"{row['commands']:.2f} /s",
            f"{row['connections']:.0f}",
            f"{row['server_share']:.2%}",
            f"{row['bridge_mib']:.0f} MiB",
            f"{row['latency_ms']:.1f} ms",
        ]
        for row in rows
    ]
    return Table(headings, cells)


def _queues(rows: Rows) -> Table:
    headings = [
        *("queues", "threads", "memory", "idle: CPU", "round trips", "CPU of Redis"),
        *("a ticket: CPU of the bridge", "CPU of Redis", "tickets /s"),
    ]
    cells = [
        [
            str(row["queues"]),
            str(row["threads"]),
            f"{row['memory_mib']:.0f} MiB",
            f"{row['idle_share']:.1%}",
            f"{row['idle_trips']:,.0f} /s",
            f"{row['idle_server_share']:.1%}",
            *_ticket(row),
        ]
        for row in rows
    ]
    return Table(headings, cells)


def _workers(rows: Rows) -> Table:
    headings = ["workers", "slots at work", "a ticket: CPU of the bridge", "CPU of Redis", "tickets /s"]
    return Table(headings, [[f"{row['workers']:,}", f"{row['workers'] * 10:,}", *_ticket(row)] for row in rows])


def _bridges(rows: Rows) -> Table:
    headings = ["bridges", "a ticket: CPU of the bridge", "CPU of Redis", "tickets /s", "round trips"]
    return Table(headings, [[str(row["bridges"]), *_ticket(row), f"{row['trips']:.2f}"] for row in rows])


def _backlog(rows: Rows) -> Table:
    headings = ["requests that wait", "bridge", "worker and runners", "predictions /s", "Redis, for each"]
    cells = [
        [
            f"{row['waiting']:,}",
            f"{row['bridge_mib']:.1f} MiB",
            f"{row['workers_mib']:.1f} MiB",
            f"{row['rate']:,.0f}",
            f"{row['entry_bytes']:.0f} bytes" if row["entry_bytes"] else "",
        ]
        for row in rows
    ]
    return Table(headings, cells)


def _forecast(rows: Rows, idle: Rows) -> Table:
    headings = [
        *("predictions of", "slots of a worker", "GPUs", "predictions /s", "one Redis: as measured", "busy"),
        *(
            "Redis servers",
            "bridges",
            "a network of 1 Gbit/s",
            "connections",
            f"one Redis is at {FULL:.0%} with",
            "busy",
        ),
    ]
    cells = [
        [
            _seconds(one.seconds) if one.per_second else "none: idle",
            str(one.slots),
            f"{one.gpus:,}",
            f"{one.per_second:,.0f}",
            _share(one.redis_share),
            _share(one.busy_share),
            str(one.redis),
            str(one.bridges),
            _share(one.network),
            f"{_rounded(one.connections):,}",
            f"{_rounded(one.most):,} GPUs",
            f"{_rounded(one.busy_most):,} GPUs",
        ]
        for one in (*loads(rows), idle_load(idle, GPUS[-1], rows[0]["trip_us"]))
    ]
    return Table(headings, cells)


def _share(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:,.0%}"


def _ticket(row: Row) -> list[str]:
    return [f"{row['bridge_us']:,.0f} µs", f"{row['server_us']:,.0f} µs", f"{row['tickets_per_second']:,.0f}"]


def _seconds(seconds: float) -> str:
    return "no time" if not seconds else f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _rounded(count: int) -> int:
    """Two digits: more would say what nobody knows."""
    digits = max(0, len(str(count)) - 2)
    return round(count, -digits)


_TABLES: Mapping[str, Callable[[Rows], Table]] = {
    "slots": _slots,
    "fleet": _fleet,
    "idle": _idle,
    "queues": _queues,
    "workers": _workers,
    "bridges": _bridges,
    "backlog": _backlog,
}


def _picture(found: Found) -> str:
    slots = [(row["slots"], row["rate"]) for row in found["slots"]]
    most = slots[-1][0]
    first = Panel(
        "From 1 to 8 slots",
        Axis("slots, log scale", [1, 2, 4, 8], log=True),
        Axis("predictions of 50 ms, per second, log scale", [10, 20, 40, 80, 160], log=True),
        [
            Series("measured", slots),
            Series("linear", [(1, slots[0][1]), (most, slots[0][1] * most)], dashed=True),
        ],
    )
    curves = [
        Series("queues", [(row["queues"], row["bridge_us"] + row["server_us"]) for row in found["queues"]]),
        Series("workers", [(row["workers"], row["bridge_us"] + row["server_us"]) for row in found["workers"]]),
    ]
    highest = max(y for curve in curves for _, y in curve.points)
    step = next((step for step in (100, 150, 200, 250, 300, 400) if step * 5 > highest * 1.3), 1000)
    second = Panel(
        "A ticket, with more of them",
        Axis("queues or workers, log scale", [1, 10, 100, 1000], log=True),
        Axis("CPU of bridge and Redis, µs", [step * n for n in range(6)]),
        curves,
    )
    classes = [row for row in found["fleet"] if row["slots_per_worker"] > 1 and row["seconds"]]
    each = [load(row, 10) for row in classes]
    third = Panel(
        "One Redis, by calculation",
        Axis("GPUs, log scale", [10, 100, 1000, 10_000, 100_000], log=True),
        Axis("share of its one thread, log scale", [0.01, 0.1, 1, 10, 100], log=True, unit="%"),
        [
            Series(
                f"predictions of {_seconds(one.seconds)}",
                [(one.gpus, max(0.01, 100 * one.redis_share)), (one.most, 100 * FULL)],
            )
            for one in each
        ],
        rules=[(100 * FULL, f"full: {FULL:.0%}")],
        low=True,
    )
    description = (
        "Three panels. Predictions per second with 1, 2, 4 and 8 slots, beside a linear line. CPU time of bridge and "
        "Redis for a ticket: it grows slowly with queues, and hardly with workers. The share of the one thread of "
        "Redis by the number of GPUs, for predictions of 50 ms, 1 s and 30 s, with a line at 80 %."
    )
    return picture("How far one bridge and one Redis go", description, [first, second, third])
