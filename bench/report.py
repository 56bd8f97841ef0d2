"""What is made of the figures: medians, ratios, the targets, a table for people and JSON for programs.

It must not know how they were measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

OURS, NO_TURNS = "cog_celery", "cog_celery --turn 0"
COG_0_4, COG_0_6 = "cog 0.4.4", "cog 0.6.1"
CURL, AWS = "curl", "aws s3 cp"


@dataclass
class Results:
    """The values by contestant, measure and round, and why some are missing."""

    rounds: int
    machine: Mapping[str, Any]
    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, contestant: str, round_number: int, figures: Mapping[str, float]) -> None:
        for measure, value in figures.items():
            self.values.setdefault(contestant, {}).setdefault(measure, {})[round_number] = value

    def of(self, contestant: str, measure: str) -> Mapping[int, float]:
        """The values by round; empty when it was not measured."""
        return self.values.get(contestant, {}).get(measure, {})


@dataclass(frozen=True)
class Measure:
    name: str
    title: str
    unit: str
    digits: int


QUEUE_MEASURES = (
    Measure("latency_p50", "no-op latency, p50", "ms", 2),
    Measure("latency_p95", "no-op latency, p95", "ms", 2),
    Measure("latency_p99", "no-op latency, p99", "ms", 2),
    Measure("throughput_1", "no-op throughput, 1 slot", "/s", 0),
    Measure("throughput_4", "no-op throughput, 4 slots", "/s", 0),
    Measure("cpu_1", "CPU per prediction, 1 slot", "ms", 3),
    Measure("cpu_4", "CPU per prediction, 4 slots", "ms", 3),
    Measure("yields_1000_seconds", "1,000 yields with logs", "s", 3),
    Measure("yields_1000_bytes", "  sent to Redis", "MB", 2),
    Measure("yields_4000_seconds", "4,000 yields with logs", "s", 3),
    Measure("yields_4000_bytes", "  sent to Redis", "MB", 2),
    Measure("memory_1", "memory, 1 slot", "MiB", 0),
    Measure("memory_4", "memory per slot, 4 slots", "MiB", 0),
    Measure("runtime_import", "runner: import of the runtime", "ms", 1),
    Measure("runtime_memory", "runner: memory over a bare Python", "MB", 2),
    Measure("runtime_validate", "runner: validation of ten inputs", "µs", 1),
    Measure("runtime_trip", "runner: a prediction there and back", "µs", 0),
)
FILE_MEASURES = (
    Measure("down_http", "1 GB in, by HTTP", "MB/s", 0),
    Measure("up_put", "1 GB out, by PUT", "MB/s", 0),
    Measure("up_s3", "1 GB out, to S3", "MB/s", 0),
    Measure("files_small", "100 files of 100 kB out", "ms", 0),
)
MEASURES = QUEUE_MEASURES + FILE_MEASURES


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of two values: at most `limit`, or at least it when `more` is better."""

    ours: str
    measure: str
    peer: str
    limit: float
    more: bool = False

    def met_by(self, ratio: float) -> bool:
        return ratio >= self.limit if self.more else ratio <= self.limit


TARGETS = (
    Target(OURS, "latency_p50", COG_0_6, 1.0),
    Target(OURS, "latency_p50", COG_0_4, 0.3),
    Target(OURS, "throughput_1", COG_0_6, 2.0, more=True),
    Target(OURS, "cpu_1", COG_0_6, 0.7),
    Target(NO_TURNS, "latency_p50", COG_0_6, 3.0),
    Target(NO_TURNS, "throughput_4", COG_0_6, 0.4, more=True),
    Target(OURS, "yields_4000_seconds", COG_0_4, 1.0),
    Target(OURS, "yields_4000_bytes", COG_0_6, 0.01),
    Target(OURS, "down_http", CURL, 0.9, more=True),
    Target(OURS, "down_http", AWS, 0.9, more=True),
    Target(OURS, "up_put", CURL, 0.9, more=True),
    Target(OURS, "up_s3", AWS, 0.9, more=True),
    Target(OURS, "files_small", COG_0_6, 1.0),
)


@dataclass(frozen=True)
class Limit:
    """A bound on a value of ours, at most `limit` in the measure's unit."""

    measure: str
    limit: float


LIMITS = (
    Limit("runtime_import", 60),
    Limit("runtime_memory", 4),
    Limit("runtime_validate", 50),
    Limit("runtime_trip", 150),
)


def ratio(results: Results, measure: str, ours: str, peer: str) -> float | None:
    """The median of the rounds' ratios: what both had in one round is compared, since absolute figures wander."""
    theirs = results.of(peer, measure)
    ratios = [value / theirs[number] for number, value in results.of(ours, measure).items() if theirs.get(number)]
    return statistics.median(ratios) if ratios else None


def verdicts(results: Results) -> list[tuple[Target, float | None, bool | None]]:
    """Each target with its ratio and whether it is met; None where a contestant is absent."""
    found = [(target, ratio(results, target.measure, target.ours, target.peer)) for target in TARGETS]
    return [(target, value, None if value is None else target.met_by(value)) for target, value in found]


def limits(results: Results) -> list[tuple[Limit, float | None, bool | None]]:
    """Each limit with the median of the rounds and whether it is met; None where it was not measured."""
    found = []
    for limit in LIMITS:
        values = results.of(OURS, limit.measure)
        value = statistics.median(values.values()) if values else None
        found.append((limit, value, None if value is None else value <= limit.limit))
    return found


def as_json(results: Results) -> dict[str, Any]:
    return {
        "machine": dict(results.machine),
        "rounds": results.rounds,
        "absent": results.absent,
        "failures": results.failures,
        "measures": {measure.name: {"title": measure.title.strip(), "unit": measure.unit} for measure in MEASURES},
        "contestants": {
            name: {
                measure: {"median": statistics.median(values.values()), "rounds": values}
                for measure, values in row.items()
            }
            for name, row in results.values.items()
        },
        "targets": [
            {
                "contestant": target.ours,
                "measure": target.measure,
                "peer": target.peer,
                "at_least" if target.more else "at_most": target.limit,
                "ratio": value,
                "met": met,
            }
            for target, value, met in verdicts(results)
        ],
        "limits": [
            {"measure": limit.measure, "at_most": limit.limit, "value": value, "met": met}
            for limit, value, met in limits(results)
        ],
    }


def show(results: Results, console: Console) -> None:
    """The tables, and what is missing in them."""
    machine = ", ".join(f"{key} {value}" for key, value in results.machine.items())
    medians = f"Medians of {results.rounds} round{'s' if results.rounds > 1 else ''}"
    _show_group(results, QUEUE_MEASURES, f"{medians} · {machine}", console)
    _show_group(results, FILE_MEASURES, f"Files · {medians.lower()}", console)

    titles = {measure.name: measure.title for measure in MEASURES}
    titles["yields_4000_bytes"] = "4,000 yields with logs, bytes"
    targets = Table(title="Targets")
    for heading in ("", "value", "target", ""):
        targets.add_column(heading, justify="right" if heading else "left")
    for target, value, met in verdicts(results):
        targets.add_row(
            f"{target.ours} ÷ {target.peer}: {titles[target.measure]}",
            "" if value is None else f"{value:.3g}",
            f"{'≥' if target.more else '≤'} {target.limit:g}",
            "not measured" if met is None else "[green]met[/]" if met else "[red]missed[/]",
        )
    units = {measure.name: measure for measure in MEASURES}
    for limit, value, met in limits(results):
        measure = units[limit.measure]
        targets.add_row(
            measure.title,
            "" if value is None else f"{value:,.{measure.digits}f} {measure.unit}",
            f"≤ {limit.limit:g} {measure.unit}",
            "not measured" if met is None else "[green]met[/]" if met else "[red]missed[/]",
        )
    console.print(targets)
    for name, reason in results.absent.items():
        console.print(f"{name} is absent: {reason}", markup=False, highlight=False)
    for failure in results.failures:
        console.print(f"failed: {failure}", markup=False, highlight=False)


def _show_group(results: Results, measures: Sequence[Measure], title: str, console: Console) -> None:
    """A table of those contestants for whom any of the measures was taken; nothing when there are none."""
    names = [name for name in results.values if any(results.of(name, measure.name) for measure in measures)]
    if not names:
        return
    table = Table(title=title)
    table.add_column("")
    compared = OURS in names and COG_0_6 in names
    for name in names:
        table.add_column(name, justify="right")
    if compared:
        table.add_column(f"{OURS} ÷ {COG_0_6}", justify="right")
    for measure in measures:
        cells = [_median(results, name, measure) for name in names]
        if compared:
            value = ratio(results, measure.name, OURS, COG_0_6)
            cells.append("" if value is None else f"{value:.3g}")
        table.add_row(measure.title, *cells)
    console.print(table)


def _median(results: Results, name: str, measure: Measure) -> str:
    values = results.of(name, measure.name)
    return f"{statistics.median(values.values()):,.{measure.digits}f} {measure.unit}" if values else ""
