"""One prediction's state: what has happened to it so far, and that a terminal state cannot be left.

It must not know how it is shown, where it came from, or what time it is.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["starting", "processing", "succeeded", "failed", "canceled"]
TERMINAL = frozenset({"succeeded", "failed", "canceled"})
NULL = msgspec.Raw(b"null")


class Prediction:
    """Output items are JSON as the runner wrote it; times are seconds since the epoch."""

    __slots__ = (
        "_log_room",
        "completed_at",
        "error",
        "fault",
        "items",
        "logs",
        "logs_left_out",
        "metrics",
        "predict_time",
        "single",
        "started_at",
        "status",
    )

    def __init__(self, max_log_bytes: int = 1 << 62) -> None:
        self.status: Status = "starting"
        self.items: list[msgspec.Raw] | None = None
        self.single: msgspec.Raw = NULL
        self.logs: list[str] = []
        self.logs_left_out = 0
        self.error: str | None = None
        self.fault: Literal["model", "platform", "input"] | None = None
        self.started_at: float | None = None
        self.completed_at: float | None = None
        self.predict_time: float | None = None
        self.metrics: msgspec.Raw | None = None
        self._log_room = max_log_bytes

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    def start(self, now: float) -> None:
        """It was accepted: its input is valid."""
        if self.status == "starting":
            self.status, self.started_at = "processing", now

    def log(self, lines: list[str]) -> bool:
        """Add lines, as far as there is room; True when the prediction changed."""
        if not lines or self.terminal:
            return False
        if self.logs_left_out:
            self.logs_left_out += 1 + len("\n".join(lines).encode())
            return False
        before = len(self.logs)
        for line in lines:
            size = 1 + (len(line) if line.isascii() else len(line.encode()))
            self._log_room -= size
            if self._log_room >= 0:
                self.logs.append(line)
            else:
                self.logs_left_out += size
        return len(self.logs) > before

    def stream(self) -> None:
        """The predictor yields: its output is a list, also while it is empty."""
        if self.items is None and not self.terminal:
            self.items = []

    def add(self, item: msgspec.Raw) -> bool:
        """Add one yield; True when the prediction changed."""
        if self.terminal:
            return False
        if self.items is None:
            self.items = []
        self.items.append(item)
        return True

    def succeed(self, now: float, output: msgspec.Raw | None) -> None:
        """predict() returned; `output` is what it returned, None when it yielded."""
        if output is not None and self.items is None and not self.terminal:
            self.single = output
        self._finish("succeeded", now)

    def fail(self, now: float, error: str, fault: Literal["model", "platform", "input"]) -> None:
        """It failed, and who is to blame. What it has put out stays."""
        if not self.terminal:
            self.error, self.fault = error, fault
        self._finish("failed", now)

    def cancel(self, now: float) -> None:
        """Its producer wanted it no more."""
        self._finish("canceled", now)

    def without_output(self, error: str) -> Prediction:
        """The same prediction, failed by the platform for having too much to show."""
        other = Prediction()
        other.started_at = self.started_at
        other.fail(self.completed_at or 0.0, error, "platform")
        return other

    def _finish(self, status: Status, now: float) -> None:
        if self.terminal:
            return
        if self.logs_left_out:
            self.logs.append(
                f"[{self.logs_left_out} bytes of logs were left out: the limit for one prediction is used up]"
            )
        if self.started_at is None and self.fault != "input":
            self.started_at = now  # it was never accepted, and has times all the same
        self.status, self.completed_at = status, now
