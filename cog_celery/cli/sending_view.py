"""What a person sees of a request that is followed: its logs and outputs as they come, and where it stands.

It must not know how snapshots are found, and trusts nothing in them: both dialects, and any JSON, can be shown.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cog_celery.producer.sending import TERMINAL, Sent, Snapshot, escaped

MAX_SHOWN: Final = 10_000
"""Characters of one output or log line that are shown."""

_STYLES: Final = {"succeeded": "bold green", "failed": "bold red", "canceled": "bold yellow", "processing": "cyan"}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_DATA_URI: Final = re.compile(r"data:([^,]{0,200}),(.*)", re.DOTALL)
_PERCENT: Final = re.compile(r"(?<![\d.])(\d{1,3})(?:\.\d+)?\s?%")


class View(Protocol):
    """A watcher that is also told the beginning and the end."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def sent(self, sent: Sent) -> None:
        """The request is in the queue."""

    def tick(self) -> None: ...
    def snapshot(self, snapshot: Snapshot) -> None: ...
    def notice(self, text: str) -> None: ...
    def ended(self, snapshot: Snapshot) -> None:
        """The terminal snapshot."""


class JsonView:
    """The terminal snapshot alone on standard output; notices on standard error."""

    def __init__(self, out: Console, err: Console) -> None:
        self._out = out
        self._err = err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def sent(self, sent: Sent) -> None:
        return None

    def tick(self) -> None:
        return None

    def snapshot(self, snapshot: Snapshot) -> None:
        return None

    def notice(self, text: str) -> None:
        self._err.print(Text(f"cog-celery: {text}"), soft_wrap=True)

    def ended(self, snapshot: Snapshot) -> None:
        print_json(self._out, snapshot)


class TextView:
    """Lines that stay, for logs and outputs; on a terminal, below them one that moves: status, progress, time."""

    def __init__(self, out: Console, err: Console) -> None:
        self._out = out
        self._err = err
        self._status = "waiting"
        self._progress: int | None = None
        self._logs = 0
        self._outputs = 0
        self._whole: Any = None
        self._began = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = Live(console=out, get_renderable=self._line, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def sent(self, sent: Sent) -> None:
        self._began = time.monotonic()
        self._say(Text.assemble(("sent ", "dim"), sent.id, (f" to {sent.queue} as entry {sent.entry}", "dim")))

    def tick(self) -> None:
        return None

    def snapshot(self, snapshot: Snapshot) -> None:
        status = printable(str(snapshot.get("status")))
        if status != self._status and status not in TERMINAL:
            self._say(Text.assemble((f"{status} ", _STYLES.get(status, "")), (f"after {self._elapsed()}", "dim")))
        self._status = status
        for line in self._new_logs(snapshot):
            self._progress = percent(line) if percent(line) is not None else self._progress
            self._say(Text(printable(line), style="dim"))
        for index, output in self._new_outputs(snapshot):
            self._say(Text.assemble((f"output{index}: ", "bold"), shown(output)))

    def notice(self, text: str) -> None:
        self._err.print(Text(f"cog-celery: {text}", style="yellow"), soft_wrap=True)

    def ended(self, snapshot: Snapshot) -> None:
        status = printable(str(snapshot.get("status")))
        summary = Text.assemble((status, _STYLES.get(status, "bold")), (f" in {self._elapsed()}", "dim"))
        if snapshot.get("error") is not None:
            summary.append(f": {shown(snapshot['error'])}")
        self._live.stop()
        self._say(summary)

    def _say(self, text: Text) -> None:
        self._out.print(text, soft_wrap=True)

    def _elapsed(self) -> str:
        return duration(time.monotonic() - self._began)

    def _line(self) -> RenderableType:
        status = Text.assemble((self._status, _STYLES.get(self._status, "")), (f"  {self._elapsed()}", "dim"))
        row = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self._spinner, status]
        if self._progress is not None:
            cells += [ProgressBar(100, self._progress, width=30), Text(f"{self._progress} %", style="dim")]
        row.add_row(*cells, Text("Ctrl-C cancels", style="dim"))
        return Group(row)

    def _new_logs(self, snapshot: Snapshot) -> Iterator[str]:
        logs = snapshot.get("logs")
        lines = log_lines(logs)
        if isinstance(logs, str) and not logs.endswith("\n") and snapshot.get("status") not in TERMINAL:
            lines = lines[:-1]  # it may still grow
        yield from lines[self._logs :]
        self._logs = max(self._logs, len(lines))

    def _new_outputs(self, snapshot: Snapshot) -> Iterator[tuple[str, Any]]:
        """Elements that a list has grown by, and any other output when it is another one than before."""
        output = snapshot.get("output")
        if isinstance(output, list):
            for number in range(self._outputs, len(output)):
                yield f"[{number}]", output[number]
            self._outputs = max(self._outputs, len(output))
        elif output is not None and output != self._whole:
            self._whole = output
            yield "", output


def print_json(out: Console, snapshot: Snapshot) -> None:
    """The snapshot as JSON: one line, or indented on a terminal."""
    indent = 2 if out.is_terminal else None
    # ASCII on a terminal's own encoding can always be written, and is the same JSON.
    text = json.dumps(snapshot, indent=indent, ensure_ascii=out.encoding.lower() not in ("utf-8", "utf8"))
    out.file.write(escaped(text) + "\n")
    out.file.flush()


def log_lines(logs: object) -> list[str]:
    """The lines of either dialect's logs: a list of lines, or one text."""
    if isinstance(logs, str):
        return logs.splitlines()
    return [str(line) for line in logs] if isinstance(logs, list) else []


def percent(line: str) -> int | None:
    """The progress that a log line tells, as progress bars write it; None when it tells none."""
    found = _PERCENT.findall(line)
    return int(found[-1]) if found and int(found[-1]) <= 100 else None


def shown(value: object) -> str:
    """The value for a person: strings as they are, files inside the response by their type and size, JSON otherwise."""
    value = _shortened(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)")


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor or change its mind: those characters as escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text.rstrip("\r\n"))


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        match = _DATA_URI.fullmatch(value) if value.startswith("data:") else None
        if match is None or len(value) <= 100:
            return value
        count = len(match[2]) * 3 // 4 if match[1].endswith(";base64") else len(match[2])
        return f"data:{match[1]},{match[2][:12]}… ({size(count)})"
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return value


def size(count: int) -> str:
    """`812 bytes`, `12.3 KiB`."""
    if count < 1024:
        return f"{count} bytes"
    amount, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f} {unit}"
