"""What was found: a row for each promise, as n of N with its worst case, for a terminal, programs and a document.

It must not know how a fault is made.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- soak -->", "<!-- end -->"
"""What `--markdown FILE` fills is between these two lines."""
SHOWN = 5
"""Broken promises of a row that are printed; the others are counted."""


@dataclass(frozen=True)
class Measure:
    """A worst case, and what it may be at most (None: it is only told)."""

    name: str
    value: float
    limit: float | None
    unit: str

    @property
    def met(self) -> bool:
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        bound = "" if self.limit is None else f" (≤ {self.limit:,.4g})"
        digits = ".2f" if self.unit in ("s", "%") else ",.0f"
        return f"{self.name} {self.value:{digits}} {self.unit}".rstrip() + bound


@dataclass
class Row:
    """One fault and what must hold: how often it held, the worst cases, and what did not hold."""

    part: str
    fault: str
    promise: str
    unit: str
    seed: int
    held: int = 0
    of: int = 0
    measures: list[Measure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def check(self, ok: bool, problem: str) -> bool:
        """Count one trial; `problem` says what was seen when it did not hold."""
        self.of += 1
        if ok:
            self.held += 1
        else:
            self.problems.append(problem)
        return ok

    def worst(self, name: str, values: Sequence[float], limit: float | None = None, unit: str = "s") -> None:
        """The largest of `values` must not be over the limit. Nothing measured is a failure too."""
        if not values:
            self.problems.append(f"{name}: nothing was measured")
            return
        measure = Measure(name, max(values), limit, unit)
        self.measures.append(measure)
        if not measure.met:
            self.problems.append(str(measure))

    def tell(self, name: str, value: float, unit: str = "") -> None:
        """A figure that nothing is promised of."""
        self.measures.append(Measure(name, value, None, unit))

    @property
    def ok(self) -> bool:
        return self.held == self.of > 0 and not self.problems

    @property
    def count(self) -> str:
        return f"{self.held:,} of {self.of:,} {self.unit}"

    @property
    def worst_case(self) -> str:
        return "; ".join(map(str, self.measures))

    def __str__(self) -> str:
        lines = [
            f"{'held  ' if self.ok else 'BROKEN'} {self.part}: {self.fault}",
            f"       {self.count}{'; ' if self.measures else ''}{self.worst_case}",
            f"       seed {self.seed}, {self.seconds:.0f} s",
        ]
        lines += [f"       ! {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"       ! and {len(self.problems) - SHOWN} more")
        return "\n".join(lines)


def machine_of(server: str) -> dict[str, str | int]:
    """Where the figures come from; `server`: its name and version."""
    return {"cores": len(os.sched_getaffinity(0)), "server": server, "Python": platform.python_version()}


def as_json(rows: Sequence[Row], about: dict[str, str | int], seed: int) -> dict[str, Any]:
    return {
        "machine": about,
        "seed": seed,
        "ok": all(row.ok for row in rows),
        "rows": [
            {
                "part": row.part,
                "fault": row.fault,
                "promise": row.promise,
                "held": row.held,
                "of": row.of,
                "unit": row.unit,
                "ok": row.ok,
                "worst": [
                    {"name": one.name, "value": one.value, "limit": one.limit, "unit": one.unit} for one in row.measures
                ],
                "problems": row.problems,
                "seed": row.seed,
                "seconds": round(row.seconds, 1),
            }
            for row in rows
        ],
    }


def markdown(rows: Sequence[Row], about: dict[str, str | int]) -> str:
    """The table of a document."""
    where = ", ".join(f"{about[name]} {name}" if name == "cores" else str(about[name]) for name in ("cores", "server"))
    lines = [
        f"Measured on {where}, Python {about['Python']}.",
        "",
        "| fault | must hold | held | worst case | part, seed |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        held = row.count if row.ok else f"**broken**: {row.count}"
        cells = (row.fault, row.promise, held, row.worst_case, f"`{row.part}` {row.seed}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def fill(document: Path, table: str) -> None:
    """Put the table between the markers. Raises ValueError when the document has none."""
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no {BEGIN} … {END} to put the table between")
    document.write_text(f"{before}{begin}\n{table}\n{end}{after}")
