"""One prediction on one runner, from its input to a terminal state.

It must not know where the prediction came from or where snapshots go: that is its Outlet's. Nothing here is remembered
from one prediction to the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from cog_celery import failpoints
from cog_celery.cancel import Cancel
from cog_celery.errors import Canceled, InputError, PlatformError, RunnerDied, RunnerProtocolError, UploadError
from cog_celery.prediction import NULL, Prediction
from cog_celery.runner import Accepted, Done, FieldError, File, Lines, Message, Output, Refused, Runner
from cog_celery.sharing import Seat
from cog_celery.wake import Wake

BURST = 0.02
"""Seconds after the last log or output until a snapshot shows it: things that happen back to back share one."""
BURST_LONGEST = 0.1
"""Seconds after the first log or output of a burst, however long the burst goes on."""
SHOW_PAUSE = 0.075
SHOW_RATE = 2e6
"""Seconds, and bytes per second, from one snapshot to the next: large ones are written less often, so that cost grows
with output, not with its square. Things 100 ms apart still get a snapshot each."""
SHOW_AGAIN = 0.5
"""Seconds until a snapshot that the server did not take is tried again."""
SIGNAL_AGAIN = 0.1
"""Seconds between signals to a predictor that is to be canceled: one that comes in the instant before a blocking system
call is only noticed when the call is interrupted, and the runner heeds the first alone."""
ANSWER = 0.002
"""Seconds for which the predictor is looked after before the answer to the start snapshot: a prediction that is over by
then never waits for it."""

Reason = Literal["canceled", "timeout", "lost", "refused", "failed", "shutdown"]
IN_A_PREDICTION = (Accepted, Refused, Output, Done)

log = logging.getLogger(__name__)


class Outlet(Protocol):
    """Where a prediction is shown while it runs, and where its files come from and go."""

    def refused(self, errors: Sequence[FieldError]) -> str:
        """What the producer is told about an input that is not valid."""
        ...

    def started(self) -> bool:
        """Show that the prediction was accepted. True: answered() is to be asked whether it was shown; False: not."""
        ...

    def answered(self) -> bool:
        """Whether what started() sent was shown. May ask for a stop()."""
        ...

    def changed(self) -> int | None:
        """Show the prediction as it is; the snapshot's bytes, None if it was not shown. May ask for a stop()."""
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
        runner: Runner | Seat,
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
        self._deadline: float | None = None
        self._answer_at: float | None = None
        self._changed_at: float | None = None
        self._due: float | None = None
        self._not_before = 0.0
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
                else:  # the runner is to answer, and may be stuck even so
                    self._kill_at = time.monotonic() + self._grace
                if self._cancel is not None:
                    self._cancel.set()
        self._wake.set()

    def run(self, input: bytes, *, hold: bool, context: dict[str, str] | None, last_try: bool = True) -> bool:
        """Predict. Afterwards the prediction is terminal, but for a `reason` that leaves the answer to another attempt.

        False, without `last_try`, when the runner died before it took the input: it may be run again on another.
        Whatever else is raised, the runner is gone then: nothing of this prediction may reach the next one.
        """
        try:
            self._runner.predict(self._id, input, hold=hold, context=context)
            self._attend(hold)
        except RunnerDied as death:
            if death.bystander and self.reason is None:
                self.reason = "shutdown"  # another attempt answers
            if not last_try and self._prediction.status == "starting" and self.reason is None:
                return False
            self._hear()
            self._ended(death)
        except RunnerProtocolError as error:
            self._runner.end()
            self._hear()
            self._ended(error)
        except BaseException:
            self._runner.end()
            raise
        return True

    # -- inside

    def _attend(self, hold: bool) -> None:
        """Take what the runner says, and look after the clock, until the prediction is over."""
        while True:
            now = time.monotonic()
            if self._kill_at is not None and now >= self._kill_at:
                self._runner.kill()
                self._kill_at = self._signal_at = None
            if self._signal_at is not None and now >= self._signal_at:
                self._runner.cancel()
                self._signal_at = now + SIGNAL_AGAIN
            if self._answer_at is not None and now >= self._answer_at:
                self._hear()
            if self._due is not None and now >= self._due:
                self._show(now)
            late = self._deadline is not None and now >= self._deadline
            wait = (
                0.0
                if late
                else _soonest(now, self._deadline, self._signal_at, self._kill_at, self._due, self._answer_at)
            )
            came = self._runner.wait(wait)
            for message in came:
                if self._take(message, hold):
                    self._hear()
                    return
            self._wake.clear()
            if late:  # and it was not over by then: what lay in the pipe has been read
                self._deadline = None
                self.stop("timeout")
            if came and self.unshown:
                self._schedule()

    def _take(self, message: Message | Lines, hold: bool) -> bool:
        """Heed one message; True when it was the last one."""
        prediction = self._prediction
        if isinstance(message, Lines):
            self.unshown |= prediction.log(self._outlet.lines(message.lines))
            return False
        if not isinstance(message, IN_A_PREDICTION) or message.id != self._id:
            raise RunnerProtocolError(f"The runner said {type(message).__name__} where it was not asked for.")
        accepted = prediction.status != "starting"
        match message:
            case Output() if accepted:
                prediction.stream()
                value = self._with_urls(message.value, message.files)
                if value is not None:
                    self.unshown |= prediction.add(value)
            case Done() if accepted:
                self._done(message)
                return True
            case Accepted() if not accepted:
                for name in message.ignored:
                    log.warning("prediction %s: unknown input field ignored: %s", self._id, name)
                prediction.start(time.time())
                if self._outlet.started():
                    self._answer_at = time.monotonic() + ANSWER
                else:
                    self.unshown = True
                self._begin(message, hold)
            case Refused() if not accepted:
                if not self._stopped():
                    prediction.fail(time.time(), self._outlet.refused(message.errors), "input")
                return True
            case _:
                raise RunnerProtocolError(f"The runner said {type(message).__name__} out of turn.")
        return False

    def _hear(self) -> None:
        """Hear whether the start snapshot was shown."""
        if self._answer_at is not None:
            self._answer_at = None
            self.unshown |= not self._outlet.answered()
            failpoints.reach("slot.started")

    def _show(self, now: float) -> None:
        self._due = self._changed_at = None
        self.unshown = False
        size = self._outlet.changed()
        failpoints.reach("slot.shown")
        if size is None:  # the server is out of reach
            self.unshown = True
            self._due = now + SHOW_AGAIN
        else:
            self._not_before = now + max(SHOW_PAUSE, size / SHOW_RATE)

    def _schedule(self) -> None:
        """Show what changed when the burst is over."""
        now = time.monotonic()
        if self._changed_at is None:
            self._changed_at = now
        self._due = max(min(now + BURST, self._changed_at + BURST_LONGEST), self._not_before)

    def _begin(self, accepted: Accepted, hold: bool) -> None:
        """Let the predictor begin, unless it has begun by itself or is to be stopped first."""
        if not hold and not accepted.files:
            with self._lock:
                self._start_clock()
                if self.reason is not None:
                    self._signal()
            return
        self._hear()  # it says whether the cancel key exists
        paths: list[Path] = []
        if accepted.files and self.reason is None:
            try:
                paths = self._outlet.fetch(accepted.files, self._files_cancel())
            except InputError as error:
                self.stop("failed", str(error))
            except Canceled:
                pass  # whoever canceled has left the reason
        with self._lock:
            if self.reason is not None:
                self._runner.drop(self._id)
                return
            self._start_clock()
        self._runner.go(self._id, [str(path) for path in paths])

    def _start_clock(self) -> None:
        self._running = True
        if self._timeout is not None:
            self._deadline = time.monotonic() + self._timeout

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

    def _with_urls(self, value: msgspec.Raw, files: list[File]) -> msgspec.Raw | None:
        """The value with its files' URLs in their places; None when one could not be uploaded."""
        if not files:
            return value
        self._hear()  # an upload may have to ask whether we are still the owner
        if self.reason is not None:
            return None
        decoded: Any = msgspec.json.decode(value)
        for file in files:
            try:
                decoded = _put(decoded, file.at, self._outlet.upload(file.path, self._files_cancel()))
                failpoints.reach("slot.uploaded")
            except UploadError as error:
                self.stop("failed", str(error))
                return None
            except Canceled:
                return None  # whoever canceled has left the reason
        return msgspec.Raw(msgspec.json.encode(decoded))

    def _done(self, done: Done) -> None:
        prediction = self._prediction
        with self._lock:
            self._running = False
        prediction.predict_time, prediction.metrics = done.predict_time, done.metrics or None
        if done.streamed:
            prediction.stream()
        output = self._with_urls(done.output, done.files) if done.status == "succeeded" else None
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
            case "failed":
                self._prediction.fail(now, self._error, "platform")
            case "lost" | "shutdown" | "refused":
                pass  # another attempt answers, or nobody can
            case "canceled":
                self._prediction.cancel(now)
        return True


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
