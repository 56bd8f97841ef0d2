"""The journal that the action predictor keeps: what was run where and when, whatever the fleet believes.

It must not know what should have been run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import wait_until


@dataclass(frozen=True)
class Event:
    """A line of the predictor's journal: `setup`, `start` or `end`, in which runner, of which request, when."""

    event: str
    runner: int
    mark: str
    at: float


class Journal:
    """The journal that the action predictor keeps, as far as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._read = 0
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            fields = json.loads(line)
            self._events.append(Event(fields["event"], fields["runner"], fields["request"], fields["at"]))
        return self._events

    def starts(self, mark: str) -> list[Event]:
        """When and where a request was run, in order."""
        return [event for event in self.events() if event.event == "start" and event.mark == mark]

    def runs(self) -> dict[str, list[Event]]:
        """The starts of every request."""
        runs: dict[str, list[Event]] = {}
        for event in self.events():
            if event.event == "start":
                runs.setdefault(event.mark, []).append(event)
        return runs

    def wait_start(self, mark: str, nth: int = 1, *, timeout: float = 20.0) -> Event:
        """The `nth` run of a request, as soon as it has begun."""
        return wait_until(lambda: self.starts(mark)[nth - 1 :], f"run {nth} of {mark}", timeout, interval=0.005)[0]
