"""Queues, workers and single predictions for people and for programs: one screen, however small, or JSON.

It must not know where any of it comes from, and trusts no text in it: ids and names may have been chosen to harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cog_celery.cli.dead_view import one_line
from cog_celery.cli.sending_view import size
from cog_celery.delivery.presence import SlotSeen, gpus_of
from cog_celery.delivery.status import ProcessSeen, QueueSeen
from cog_celery.delivery.whereabouts import Sighting

PLAIN_WIDTH: Final = 2000
"""Columns of what goes into a file or a pipe, where nothing is cut."""
ENDLESS: Final = 1 << 30
"""Lines of what is no screen."""
GAP: Final = 2
"""Columns between two columns."""
_STYLES: Final = {
    "busy": "cyan",
    "running": "cyan",
    "processing": "cyan",
    "idle": "green",
    "ready": "green",
    "succeeded": "green",
    "failed": "bold red",
    "dead": "bold red",
    "gone": "bold red",
    "late": "yellow",
    "canceled": "yellow",
    "unwell": "bold red",
    "out": "bold red",
    "restarting": "yellow",
    "starting": "yellow",
    "waiting": "yellow",
    "draining": "yellow",
    "not consuming": "bold red",
    "unhealthy": "bold red",
    "unknown": "yellow",
}


@dataclass
class Column:
    """One of a table. The one with the highest `rank` is left out first where there is no room; `least`: the width that
    it can be cut to before any is.
    """

    title: str
    rank: int = 0
    right: bool = False
    least: int | None = None
    cells: list[Text] = field(default_factory=list)

    @property
    def natural(self) -> int:
        return max([cell_len(self.title), *(cell.cell_len for cell in self.cells)])

    @property
    def narrowest(self) -> int:
        return self.natural if self.least is None else min(self.least, self.natural)


def fitted(columns: Sequence[Column], width: int) -> Table:
    """A table that is not wider than that: what matters least is left out, and what is long is cut."""
    shown = [column for column in columns if any(cell.plain for cell in column.cells)]

    def room() -> int:
        return width - GAP * (len(shown) - 1) - sum(column.narrowest for column in shown)

    while len(shown) > 1 and room() < 0:
        shown.remove(max(shown, key=lambda column: column.rank))
    left = max(0, room())
    widths = {}
    for column in sorted(shown, key=lambda column: column.natural - column.narrowest):
        more = min(left, column.natural - column.narrowest)
        widths[id(column)] = min(width, column.narrowest + more)
        left -= more
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim", collapse_padding=True)
    for column in shown:
        table.add_column(
            Text(column.title),
            width=widths[id(column)],
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.right else "left",
        )
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table


# -- queues


def screen(
    queues: Sequence[QueueSeen], *, width: int, height: int | None = None, notes: Iterable[str] = ()
) -> RenderableType:
    """The queues and their workers; within `height` lines, if there is one: what does not fit is counted."""
    lines = [Text(one_line(note), style="yellow") for note in notes]
    for queue in queues:
        name = Text(one_line(queue.name), style="bold")
        name.truncate(max(8, width // 3), overflow="ellipsis")
        lines += [Text.assemble(name, ": ", one_line(trouble), style="yellow") for trouble in queue.troubles()]
    room = ENDLESS
    if height is not None:
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        lines = _limited(lines, max(1, height // 5), "more")
        room = height - (len(lines) + 1 if lines else 0)  # with a blank line before them
    rows = [row for queue in queues for row in _process_rows(queue)]
    needed = 1 + len(queues) + (2 + len(rows) if rows else 0)
    # Where that is too much, half of it is for the queues, if there are workers; each half has a heading.
    most = len(queues) if needed <= room else max(1, (room - 4) // 2 if rows else room - 2)
    shown = queues if len(queues) <= most else sorted(queues, key=_urgency)[:most]
    parts: list[RenderableType] = [fitted(_queue_columns(shown), width)]
    room -= len(shown) + 1
    if len(shown) < len(queues):
        parts.append(_more(len(queues) - len(shown), "queue", "", width))
        room -= 1
    if shown is not queues:
        rows = [row for queue in shown for row in _process_rows(queue)]
    fit = room - 2  # behind a blank line and a heading
    if len(rows) > fit:
        rows.sort(key=lambda row: row.urgency)
        fit = max(0, fit - 1)
        rows, hidden = rows[:fit], len(rows) - fit
    else:
        hidden = 0
    if rows:
        parts += [Text(""), fitted(_process_columns(rows, len(queues) > 1), width)]
    if hidden and room > 0:
        parts.append(_more(hidden, "line", " (--output json)", width))
    if lines:
        parts += [Text(""), *lines]
    return Group(*parts)


def _more(count: int, what: str, rest: str, width: int) -> Text:
    text = Text(f"… and {count:,} more {what}{'' if count == 1 else 's'}{rest}", style="dim")
    text.truncate(width, overflow="ellipsis")
    return text


def _limited(lines: list[Text], most: int, what: str) -> list[Text]:
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], Text(f"… and {len(lines) - most + 1} {what}", style="yellow")]


def _urgency(queue: QueueSeen) -> tuple[bool, int, str]:
    return not queue.troubles(), -(queue.waiting or 0), queue.name


def _queue_columns(queues: Sequence[QueueSeen]) -> list[Column]:
    columns = {
        "queue": Column("queue", 0, least=12),
        "waiting": Column("waiting", 1, True),
        "oldest": Column("oldest", 4, True),
        "lane": Column("in .high", 6, True),
        "running": Column("running", 2, True),
        "dead": Column("dead", 3, True),
        "slots": Column("busy/slots", 5, True),
        "rate": Column("ended/s", 6, True),
        "failed": Column("failed", 7, True),
        "waits": Column("waits p50", 9, True),
        "waits95": Column("p95", 10, True),
        "runs": Column("runs p50", 8, True),
        "runs95": Column("p95", 11, True),
        "window": Column("of the last", 12, True),
        "bridges": Column("bridges", 13, True),
    }
    if all(queue.in_lane is None for queue in queues):
        del columns["lane"]
    for queue in queues:
        slots, rates = queue.slots(), queue.rates
        failed = sum(count for what, count in rates.outcomes.items() if what.startswith("failed")) if rates else 0
        cells = {
            "queue": Text(one_line(queue.name), "" if queue.exists else "dim"),
            "waiting": _number(queue.waiting, "yellow"),
            "oldest": Text(span(queue.oldest) if queue.oldest is not None else "-"),
            "lane": _number(queue.in_lane, "yellow") if queue.in_lane is not None else Text("-"),
            "running": _number(queue.running, "cyan"),
            "dead": _number(queue.dead, "bold red"),
            "slots": Text(f"{slots['busy']}/{slots.total()}", "" if slots.total() else "bold red")
            if queue.settings is None or not queue.settings.front
            else Text("-"),
            "rate": Text(rate(rates.per_second) if rates else "?"),
            "failed": _number(failed if rates else None, "red"),
            "waits": Text(span(rates.in_queue.p50) if rates and rates.in_queue else "-"),
            "waits95": Text(span(rates.in_queue.p95) if rates and rates.in_queue else "-"),
            "runs": Text(span(rates.run.p50) if rates and rates.run else "-"),
            "runs95": Text(span(rates.run.p95) if rates and rates.run else "-"),
            "window": Text(span(rates.seconds) if rates else "-"),
            "bridges": _number(sum(bridge.alive for bridge in queue.bridges), ""),
        }
        for name, column in columns.items():
            column.cells.append(cells[name])
    return list(columns.values())


@dataclass(frozen=True)
class Row:
    """A line about a process: one of its slots that does something, or all of those that do the same nothing."""

    queue: str
    process: ProcessSeen
    first: bool
    slot: str
    gpu: str
    doing: str
    id: str = ""
    seconds: float | None = None
    attempt: int | None = None

    @property
    def urgency(self) -> int:
        """Lines of processes in trouble come first, idle ones last."""
        return 0 if self.process.state in ("late", "gone") else 1 if self.id else 2


def _process_rows(queue: QueueSeen) -> list[Row]:
    rows: list[Row] = []
    for process in queue.processes:
        if process.role == "bridge" and process.alive:
            continue  # counted with its queue
        own: list[tuple[str, str, str, str, float | None, int | None]] = []
        at_rest: dict[str, list[tuple[int, SlotSeen]]] = {}
        for index, slot in enumerate(process.slots):
            for one in slot.running:
                doing = "uploading" if one.uploading else "held" if process.state == "gone" else "running"
                own.append((str(index), slot.gpu or "", doing, one.id, one.seconds, one.attempt))
            if not slot.running and process.alive:
                at_rest.setdefault(slot.state, []).append((index, slot))
        for state, slots in at_rest.items():
            many = len(slots) > 1
            label = f"{slots[0][0]}+{len(slots) - 1}" if many else str(slots[0][0])
            state = "setup" if process.state == "starting" and state == "restarting" else state
            own.append((label, ",".join(gpus_of([slot for _, slot in slots])), state, "", None, None))
        for number, (label, gpu, doing, id, seconds, attempt) in enumerate(own or [("", "", "-", "", None, None)]):
            rows.append(Row(queue.name, process, not number, label, gpu, doing, id, seconds, attempt))
    return rows


def _process_columns(rows: Sequence[Row], many_queues: bool) -> list[Column]:
    columns = {
        "queue": Column("queue", 7, least=10),
        "process": Column("worker", 0, least=14),
        "state": Column("state", 1),
        "beat": Column("heard", 4, True),
        "model": Column("model", 6, least=8),
        "version": Column("version", 9),
        "ours": Column("cog_celery", 12),
        "slot": Column("slot", 3, True),
        "gpu": Column("GPU", 8, least=3),
        "doing": Column("does", 2),
        "for": Column("for", 5, True),
        "attempt": Column("attempt", 10, True),
        "id": Column("prediction", 2, least=16),
    }
    last = None
    for row in rows:
        process, first = row.process, row.process.life != last
        last = process.life
        cells = {
            "queue": Text(one_line(row.queue) if many_queues and first else ""),
            "process": Text(one_line(process.life) if first else ""),
            "state": _state(process.state if first else ""),
            "beat": Text(span(process.age) if first and process.age is not None else ""),
            "model": Text(one_line(process.model) if first else ""),
            "version": Text(one_line(process.model_version[:7]) if first else ""),
            "ours": Text(one_line(process.version) if first else ""),
            "slot": Text(row.slot),
            "gpu": Text(one_line(row.gpu)),
            "doing": _state(row.doing),
            "for": Text(span(row.seconds) if row.seconds is not None else ""),
            "attempt": Text(str(row.attempt) if row.attempt is not None else ""),
            "id": Text(one_line(row.id)),
        }
        for name, cell in cells.items():
            columns[name].cells.append(cell)
    return list(columns.values())


def _state(state: str) -> Text:
    return Text(one_line(state), _STYLES.get(state, ""))


def _number(count: int | None, style: str) -> Text:
    return Text("?", "dim") if count is None else Text(f"{count:,}", style if count else "")


# -- one prediction


def sighting(one: Sighting) -> RenderableType:
    """All that is known of a request."""
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, str | Text]] = [
        ("prediction", one_line(one.id or one.entry)),
        ("entry", f"{one.entry} of queue {one_line(one.queue)}"),
        ("state", _whereabouts(one)),
    ]
    if one.sent is not None:
        ago = f", {span(one.age)} ago" if one.age is not None else ""
        rows.append(("sent", f"{_when(one.sent):%Y-%m-%d %H:%M:%S} UTC{ago}"))
    if one.reason:
        rows.append(("reason", one_line(one.reason)))
    if one.size is not None:
        rows.append(("request", size(one.size)))
    if one.response is not None:
        response = one.response
        told = [response.status, size(response.size) if response.size else "", response.note]
        told += [f"{response.logs} log lines" if response.logs else ""]
        rows.append(("response", one_line(f"{', '.join(filter(None, told))} (at {response.key})")))
        if response.error is not None:
            rows.append(("error", one_line(response.error)))
    for number, event in enumerate(one.history):
        line = Text.assemble((f"{_clock(event.at)}  ", "dim"), one_line(event.what))
        rows.append(("" if number else "history", line))
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def _whereabouts(one: Sighting) -> Text:
    said = Text()
    state = one.status or "ended" if one.state == "ended" else one.state
    said.append(one_line(state), _STYLES.get(state, "bold"))
    attempt = ""
    if one.attempt:
        attempt = f", attempt {one.attempt}" + (f" of {one.max_attempts}" if one.max_attempts else "")
    owner = one_line(one.owner or "")
    match one.state:
        case "waiting":
            if one.place is not None:
                said.append(f", {one.place:,} request{' is' if one.place == 1 else 's are'} before it")
            said.append(", given back by a worker" if one.attempt else "")
        case "dispatched":
            said.append(f": {owner} has it, and sends it to an idle slot")
        case "running":
            said.append(f" for {span(one.seconds or 0.0)} in slot {owner}{attempt}")
            if one.worker is not None:
                said.append(_described(one.worker, owner))
        case "dead":
            said.append(f" letter {one_line(one.letter or '')}, after {one.attempt} runs; last with {owner}")
        case "ended":
            fault = f", the {one.fault}'s fault" if one.fault else ""
            took = f" after {span(one.seconds)}" if one.seconds is not None else ""
            said.append(f"{fault}{took} in slot {owner}{attempt}")
    return said


def _described(worker: ProcessSeen, owner: str) -> str:
    index = owner.rpartition(".")[2].rstrip("b")
    gpu = worker.slots[int(index)].gpu if index.isdigit() and int(index) < len(worker.slots) else None
    parts = [f"model {worker.model}" if worker.model else "", f"GPU {gpu}" if gpu else ""]
    parts += [f"the worker is {worker.state}" if worker.state in ("late", "gone", "draining") else ""]
    told = ", ".join(filter(None, parts))
    return f" ({one_line(told)})" if told else ""


# -- for programs


def queues_json(queues: Sequence[QueueSeen], at: float, complete: bool) -> dict[str, Any]:
    """As JSON; `complete`: whether these are all queues that the server has."""
    told = []
    for queue in queues:
        one = msgspec.to_builtins(queue)
        told.append(one | {"slots": dict(queue.slots()), "troubles": queue.troubles()})
    return {"at": at, "complete": complete, "queues": told}


def write_json(console: Console, value: Any, *, indent: bool) -> None:
    """ASCII alone: no terminal can be harmed by it."""
    text = json.dumps(value, indent=2 if indent else None).replace("\x7f", "\\u007f")
    console.file.write(text + "\n")
    console.file.flush()


# -- figures


def span(seconds: float) -> str:
    """`0.4 ms`, `25 ms`, `3.2 s`, `42 s`, `3m05s`, `2h05m`, `3d04h`."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    for unit, smaller, names in ((60, 1, "ms"), (3600, 60, "hm"), (86400, 3600, "dh")):
        if whole < unit * (60 if unit < 3600 else 24 if unit == 3600 else 10**9):
            return f"{whole // unit}{names[0]}{whole % unit // smaller:02d}{names[1]}"
    return "?"


def rate(per_second: float) -> str:
    """`0`, `0.03`, `4.2`, `1,250`."""
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2f}" if per_second else "0"


def _when(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _clock(at: float) -> str:
    return f"{_when(at):%H:%M:%S}.{int(at * 1000) % 1000:03d}"
