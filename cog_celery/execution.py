"""One prediction on one runner, from its input to a terminal state.

It must not know where the prediction came from or where snapshots go: that is its Outlet's. Nothing here is remembered
from one prediction to the next.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from cog_celery.cancel import Cancel
from cog_celery.errors import Canceled, InputError, PlatformError, RunnerDied, RunnerProtocolError, UploadError
from cog_celery.prediction import NULL, Prediction
from cog_celery.runner import Accepted, Done, FieldError, File, Lines, Output, Refused, Runner

BURST = 0.02
"""Seconds after the last log or output until a snapshot shows it: things that happen back to back share one."""
BURST_LONGEST = 0.1
"""Seconds after the first log or output of a burst, however long the burst goes on."""
BURST_RATE = 2e6
"""Bytes per second that one prediction's snapshots may cost: large ones are written less often, so cost grows with
output, not with its square."""

SIGNAL_AGAIN = 0.1
"""Seconds between signals to a predictor that is to be canceled: one that comes in the instant before a blocking system
call is only noticed when the call is interrupted, and the runner heeds the first alone."""
ANSWER = 0.002
"""Seconds for which the predictor is looked after before the answer to the start snapshot: a prediction that is over by
then never waits for it."""

Reason = Literal["canceled", "timeout", "lost", "upload", "input", "shutdown"]


log = logging.getLogger(__name__)


class Outlet(Protocol):
    """Where a prediction is shown while it runs, and where its files come from and go."""

    def refused(self, errors: Sequence[FieldError]) -> str:
        """What the producer is told about an input that is not valid."""
        ...

    def started(self) -> bool:
        """The prediction was accepted: show it. May ask for a stop(). True: whether it may be shown is to be asked by
        answered().
        """
        ...

    def answered(self) -> None:
        """Heed the answer to started(), if it has not come yet. May ask for a stop()."""
        ...

    def changed(self) -> int:
        """Show the prediction as it is; the snapshot's size in bytes. May ask for a stop()."""
        ...

    def lines(self, lines: list[str]) -> list[str]:
        """Log lines as they are to be shown."""
        ...

    def fetch(self, urls: list[str], cancel: Cancel) -> list[Path]:
        """The local files of these URLs. Raises InputError, Canceled."""
        ...

    def upload(self, path: str, cancel: Cancel) -> str:
        """The URL of an output's file. Raises UploadError, Canceled."""
        ...


class Execution:
    """Runs once. stop() may be called from any thread; the first reason holds."""

    def __init__(
        self,
        runner: Runner,
        prediction: Prediction,
        outlet: Outlet,
        *,
        id: str,
        timeout: float | None,
        grace: float,
        wake: Wake,
    ) -> None:
        self._runner = runner
        self._prediction = prediction
        self._outlet = outlet
        self._id = id
        self._timeout = timeout
        self._grace = grace
        self._wake = wake
        self._lock = threading.RLock()  # reentrant: a signal handler may come in between
        self._running = False
        self._signal_at: float | None = None
        self._kill_at: float | None = None
        self._error = ""
        self._cancel: Cancel | None = None
        self.reason: Reason | None = None
        self.unshown = False
        """Whether something changed that no snapshot has shown yet."""

    def stop(self, reason: Reason, error: str = "") -> None:
        """Have the prediction end soon: canceled in the predictor, killed after the grace."""
        with self._lock:
            if self.reason is None:
                self.reason, self._error = reason, error
                if self._running:
                    self._signal()
                if self._cancel is not None:
                    self._cancel.set()
        self._wake.set()

    def run(self, input: bytes, *, hold: bool, context: dict[str, str] | None, last_try: bool = True) -> bool:
        """Predict. Afterwards the prediction is terminal, but for a `reason` that leaves the answer to another attempt.

        False, without `last_try`, when the runner died before it took the input: it may be run again on another.
        """
        prediction, runner = self._prediction, self._runner
        deadline: float | None = None
        first_change: float | None = None
        due: float | None = None
        answer: float | None = None
        size = 0
        try:
            runner.predict(self._id, input, hold=hold, context=context)
            while True:
                now = time.monotonic()
                if self._kill_at is not None and now >= self._kill_at:
                    runner.kill()
                    self._kill_at = self._signal_at = None
                if self._signal_at is not None and now >= self._signal_at:
                    runner.cancel()
                    self._signal_at = now + SIGNAL_AGAIN
                if deadline is not None and now >= deadline:
                    deadline = None
                    self.stop("timeout")
                if answer is not None and now >= answer:
                    answer = None
                    self._outlet.answered()
                if due is not None and now >= due:
                    first_change = due = None
                    self.unshown = False
                    size = self._outlet.changed()
                    continue
                for message in runner.wait(_soonest(now, deadline, self._signal_at, self._kill_at, due, answer)):
                    match message:
                        case Done():
                            self._done(message)
                            return True
                        case Lines():
                            self._log(message.lines)
                        case Accepted():
                            for name in message.ignored:
                                log.warning("prediction %s: unknown input field ignored: %s", self._id, name)
                            prediction.start(time.time())
                            if self._outlet.started():
                                if hold or message.files:
                                    self._outlet.answered()
                                else:
                                    answer = time.monotonic() + ANSWER
                            self._begin(message, hold)
                            if self._timeout is not None:
                                deadline = time.monotonic() + self._timeout
                        case Output():
                            prediction.stream()
                            self.unshown |= prediction.add(self._with_urls(message.value, message.files))
                        case Refused():
                            prediction.fail(time.time(), self._outlet.refused(message.errors), "input")
                            return True
                        case _:
                            raise RunnerProtocolError(f"The runner sent {message.__class__.__name__} in a prediction.")
                self._wake.clear()
                if self.unshown:
                    now = time.monotonic()
                    first_change = first_change or now
                    due = min(now + BURST, first_change + max(BURST_LONGEST, size / BURST_RATE))
        except RunnerDied as death:
            if not last_try and prediction.status == "starting" and self.reason is None:
                return False
            self._ended(death)
        except RunnerProtocolError as error:
            runner.end()
            self._ended(error)
        finally:
            if answer is not None:
                self._outlet.answered()
        return True

    # -- inside

    def _log(self, lines: list[str]) -> None:
        self.unshown |= self._prediction.log(self._outlet.lines(lines))

    def _begin(self, accepted: Accepted, hold: bool) -> None:
        """Let the predictor begin, unless it has begun by itself or is to be stopped first."""
        if not hold and not accepted.files:
            with self._lock:
                self._running = True
                if self.reason is not None:
                    self._signal()
            return
        paths: list[Path] = []
        if accepted.files and self.reason is None:
            try:
                paths = self._outlet.fetch(accepted.files, self._files_cancel())
            except InputError as error:
                self.stop("input", str(error))
            except Canceled:
                pass  # whoever canceled has left the reason
        with self._lock:
            if self.reason is not None:
                self._runner.drop(self._id)
                self._kill_at = time.monotonic() + self._grace
                return
            self._running = True
        self._runner.go(self._id, [str(path) for path in paths])

    def _files_cancel(self) -> Cancel:
        """Stops a download or an upload; made for the few predictions that have files."""
        with self._lock:
            if self._cancel is None:
                self._cancel = Cancel()
                if self.reason is not None:
                    self._cancel.set()
            return self._cancel

    def _signal(self) -> None:
        if self._signal_at is None:
            self._runner.cancel()
            now = time.monotonic()
            self._signal_at, self._kill_at = now + SIGNAL_AGAIN, now + self._grace

    def _with_urls(self, value: msgspec.Raw, files: list[File]) -> msgspec.Raw:
        """The value with its files' URLs in their places."""
        if not files or self.reason is not None:
            return value
        decoded: Any = msgspec.json.decode(value)
        for file in files:
            try:
                decoded = _put(decoded, file.at, self._outlet.upload(file.path, self._files_cancel()))
            except UploadError as error:
                self.stop("upload", str(error))
                break
            except Canceled:
                break  # whoever canceled has left the reason
        return msgspec.Raw(msgspec.json.encode(decoded))

    def _done(self, done: Done) -> None:
        prediction = self._prediction
        with self._lock:
            self._running = False
        prediction.predict_time, prediction.metrics = done.predict_time, done.metrics or None
        if done.streamed:
            prediction.stream()
        output = done.output
        if done.status == "succeeded":
            output = self._with_urls(output, done.files)
        if self._stopped():
            return
        now = time.time()
        if done.status == "succeeded":
            prediction.succeed(now, None if done.streamed else output or NULL)
        elif done.status == "canceled":
            prediction.fail(now, "The prediction was canceled by the predictor itself.", "model")
        else:
            prediction.fail(now, done.error or "unknown error", "model")

    def _ended(self, error: PlatformError) -> None:
        """The runner is gone."""
        with self._lock:
            self._running = False
        if not self._stopped():
            self._prediction.fail(time.time(), str(error), "platform")

    def _stopped(self) -> bool:
        """Finish a prediction that was to be stopped, whatever its runner says of it."""
        now = time.time()
        match self.reason:
            case None:
                return False
            case "timeout":
                self._prediction.fail(now, "Prediction timed out", "platform")
            case "upload" | "input":
                self._prediction.fail(now, self._error, "platform")
            case "lost" | "shutdown":
                pass  # another attempt answers
            case "canceled":
                self._prediction.cancel(now)
        return True


class Wake:
    """Wakes a thread that waits in poll()."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._is_set = False
        self._lock = threading.RLock()  # reentrant: a signal handler may come in between

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        with self._lock:
            if not self._is_set:
                self._is_set = True
                os.write(self._write, b"\0")

    def clear(self) -> None:
        if self._is_set:
            with self._lock:
                self._is_set = False
                os.read(self._read, 1)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


def _soonest(now: float, *times: float | None) -> float | None:
    soonest = min((t for t in times if t is not None), default=None)
    return None if soonest is None else max(0.0, soonest - now)


def _put(value: Any, at: list[str | int], url: str) -> Any:
    if not at:
        return url
    place = value
    try:
        for step in at[:-1]:
            place = place[step]
        place[at[-1]] = url
    except (LookupError, TypeError):
        raise RunnerProtocolError(f"The runner names a file at {at}, where its output has no place.") from None
    return value
