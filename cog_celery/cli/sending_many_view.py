"""What a person or a pipe sees of many requests: a bar that moves, a line for each response, and a sum at the end.

It must not know how responses are found, and trusts nothing in them.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, ExitStack
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from cog_celery.cli.sending_view import duration, printable, shown
from cog_celery.producer.sending import Snapshot, escaped
from cog_celery.producer.sending_many import Request

MAX_LINE: Final = 200
"""Characters that are shown of an output or error: of many, each has a line."""

EVERY: Final = 0.1
"""Seconds between two updates of the bar."""


class ManyView:
    """Counts, and shows: with `as_json`, a line of JSON for each response on standard output; else text.

    On a terminal a bar moves meanwhile, and as text only what has not succeeded gets a line. `total` is the number of
    lines, if that is known; `wait`: whether responses are awaited.
    """

    def __init__(
        self, out: Console, err: Console, *, as_json: bool, total: int | None = None, wait: bool = True
    ) -> None:
        self.count = {"sent": 0, "succeeded": 0, "failed": 0, "canceled": 0, "lost": 0, "refused": 0}
        self._out = out
        self._err = err
        self._as_json = as_json
        self._wait = wait
        self._total = total
        self._began = time.monotonic()
        self._moved = 0.0
        self._last = 0
        self._stack = ExitStack()
        self._bar: Progress | None = None

    @property
    def all_well(self) -> bool:
        """Whether every line was a request that succeeded, as far as is known."""
        return not any(self.count[bad] for bad in ("failed", "canceled", "lost", "refused"))

    def __enter__(self) -> Self:
        if self._err.is_terminal:
            # Standard output goes through the bar's console only if it is a terminal, too.
            self._bar = Progress(
                BarColumn(40),
                MofNCompleteColumn(),
                TextColumn("{task.fields[more]}", style="dim"),
                _Rate(),
                TextColumn("eta", style="dim"),
                TimeRemainingColumn(),
                console=self._err,
                redirect_stdout=self._out.is_terminal,
                transient=True,
            )
            self._stack.enter_context(self._bar)
            self._task = self._bar.add_task("", total=self._total, more="")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def refused(self, line: int, why: str) -> None:
        self.count["refused"] += 1
        self.notice(f"line {line} is not sent: {why}")

    def sent(self, request: Request) -> None:
        self.count["sent"] += 1
        self._last = max(self._last, request.line)
        if self._wait:
            return
        sent = request.sent
        if self._as_json:
            told = {"line": request.line, "id": sent.id, "entry": sent.entry}
            self._print_json(told | {"response_queue": sent.response_queue, "cancel_key": sent.cancel_key})
        elif self._bar is None:
            self._print_line(request, "sent", f"as entry {sent.entry}")

    def ended(self, request: Request, snapshot: Snapshot) -> None:
        status = str(snapshot.get("status"))
        self.count[status] += 1
        if self._as_json:
            self._print_json({"line": request.line, "id": request.sent.id, **snapshot})
        elif self._bar is None or status != "succeeded":
            detail = snapshot.get("output" if status == "succeeded" else "error")
            self._print_line(request, status, "" if detail is None else shown(detail))

    def lost(self, request: Request, why: str) -> None:
        self.count["lost"] += 1
        self.notice(f"line {request.line} ({printable(request.sent.id)}) has no response: {why}")

    def notice(self, text: str) -> None:
        (self._bar.console if self._bar else self._err).print(
            Text(f"cog-celery: {text}", style="yellow"), soft_wrap=True
        )

    def tick(self) -> None:
        if self._bar is not None and time.monotonic() - self._moved > EVERY:
            self._moved = time.monotonic()
            count = self.count
            failed = count["failed"] + count["canceled"] + count["lost"]
            more = [f"{count['sent']} sent"] if self._wait else []
            more += [f"{failed} failed"] if failed else []
            self._bar.update(self._task, completed=self._done() + count["refused"], more=", ".join(more))

    def finished(self, *, all_sent: bool) -> None:
        """The sum, on standard error."""
        self._stack.close()
        took = time.monotonic() - self._began
        count = self.count
        told = [f"{count['sent']} sent"]
        told += [f"{number} {what}" for what, number in count.items() if number and what not in ("sent", "refused")]
        told += [f"{count['refused']} lines refused"] if count["refused"] else []
        rate = f", {self._done() / took:.0f} per second" if took > 1 else ""
        self._err.print(Text(f"cog-celery: {', '.join(told)} in {duration(took)}{rate}"), soft_wrap=True)
        if not all_sent:
            last = f"the last line that was sent is {self._last}" if self._last else "no line was sent"
            self._err.print(Text(f"cog-celery: {last}"), soft_wrap=True)

    def _done(self) -> int:
        ended = sum(self.count[what] for what in ("succeeded", "failed", "canceled", "lost"))
        return ended if self._wait else self.count["sent"]

    def _print_line(self, request: Request, status: str, detail: str) -> None:
        detail = printable(detail.replace("\n", " "))
        detail = detail if len(detail) <= MAX_LINE else f"{detail[:MAX_LINE]}…"
        text = f"line {request.line} ({printable(request.sent.id)}) {status}"
        self._out.print(Text(f"{text}: {detail}" if detail else text), soft_wrap=True)

    def _print_json(self, value: dict[str, object]) -> None:
        ascii_only = self._out.encoding.lower() not in ("utf-8", "utf8")
        self._out.file.write(escaped(json.dumps(value, ensure_ascii=ascii_only)) + "\n")
        self._out.file.flush()


class _Rate(ProgressColumn):
    """Requests per second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f}/s" if speed else "", style="dim")


class UploadBar(AbstractContextManager["UploadBar"]):
    """Bytes and rate of a producer's files on their way, on a terminal alone."""

    def __init__(self, err: Console) -> None:
        self._progress = Progress(
            TextColumn("uploading {task.description}"),
            BarColumn(30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._tasks: dict[str, int] = {}

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def moved(self, name: str, sent: int, size: int) -> None:
        """So much of the file has been sent."""
        if not self._tasks:
            self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(printable(name), total=size)
        self._progress.update(self._tasks[name], completed=sent)  # type: ignore[arg-type]


def count_lines(path: str) -> int | None:
    """The lines of a regular file that have something in them, roughly; None of anything else."""
    try:
        with open(path, "rb") as file:
            if not file.seekable():
                return None
            count, last = 0, b""
            while block := file.read(1 << 20):
                count, last = count + block.count(b"\n"), block
            return count + (not last.endswith(b"\n") if last else 0)
    except OSError:
        return None
