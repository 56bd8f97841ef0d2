"""One prediction on one runner, from its input to a terminal state.

It must not know where the prediction came from or where snapshots go: that is its Outlet's. Nothing here is remembered
from one prediction to the next.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from cog_celery import failpoints
from cog_celery.delivery.prediction import NULL, Prediction
from cog_celery.errors import Canceled, InputError, PlatformError, RunnerDied, RunnerProtocolError, UploadError
from cog_celery.files.cancel import Cancel
from cog_celery.runners.runner import Accepted, Done, FieldError, File, Lines, Message, Output, Refused, Runner
from cog_celery.runners.sharing import Seat
from cog_celery.runners.wake import Wake

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

Reason = Literal["canceled", "timeout", "lost", "refused", "failed", "shutdown", "its GPU failed"]
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

    def upload(self, path: str, cancel: Cancel) -> Future[str]:
        """Begin to upload an output's file; the result is its URL, or UploadError, or Canceled."""
        ...

    @property
    def all_open(self) -> bool:
        """Whether no file that is being uploaded needs to stay where it is."""
        ...


class _Output:
    """A value that the predictor put out, and its files that are on their way."""

    __slots__ = ("files", "value", "yielded")

    def __init__(self, value: msgspec.Raw, yielded: bool) -> None:
        self.value: Any = value
        self.files: list[tuple[Any, str | int | None, Future[str]]] = []
        """The container in which a file has its place, its key there, and its URL; without a key the value itself."""
        self.yielded = yielded

    @property
    def there(self) -> bool:
        """Whether all of its files are, or one of them never will be."""
        return all(url.done() for _, _, url in self.files)

    def with_urls(self) -> msgspec.Raw:
        """The value. Raises UploadError, Canceled."""
        for container, key, url in self.files:
            if key is None:
                self.value = url.result()
            else:
                container[key] = url.result()
            failpoints.reach("slot.uploaded")
        return msgspec.Raw(msgspec.json.encode(self.value)) if self.files else self.value


class Execution:
    """Runs once; afterwards it may be `uploading` what was put out last, until it is finished.

    stop() and nudge() may be called from any thread; the first reason holds.
    """

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
        self._wake: Wake | None = wake
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
        self._hopeless = False
        """Whether its files are not waited for any more."""
        self._outputs: deque[_Output] = deque()
        """What waits for its files, and for those before it."""
        self._end: Done | PlatformError | None = None
        self._single: msgspec.Raw | None = None
        self.reason: Reason | None = None
        self.unshown = False
        """Whether something changed that no snapshot has shown yet."""
        # Points in time, seconds since 1970.
        self._began: float | None = None
        self._ended: float | None = None
        self.first_output: float | None = None
        self.last_output: float | None = None
        """When a predictor that yields had put out everything."""

    def stop(self, reason: Reason, error: str = "") -> None:
        """Have the prediction end soon: canceled in the predictor, killed after the grace."""
        with self._lock:
            if self.reason is None:
                self.reason, self._error = reason, error
                if self._running:
                    self._signal()
                else:  # the runner is to answer, and may be stuck even so
                    self._kill_at = time.monotonic() + self._grace
            if reason != "timeout":  # what was put out in time may still arrive, unless another reason follows
                self._abandon_files()
        self.nudge()

    def nudge(self) -> None:
        """Have whoever runs or finishes it look around."""
        with self._lock:
            if self._wake is not None:
                self._wake.set()

    @property
    def predicting(self) -> tuple[float, float] | None:
        """When predict() ran: from the runner's own clock, if it lived to tell how long it took; None if it did not."""
        if self._began is None or self._ended is None:
            return None
        took = self._prediction.predict_time
        return self._began if took is None else self._ended - took, self._ended

    @property
    def uploading(self) -> bool:
        """Whether the predictor is done, and its output is not."""
        return bool(self._outputs)

    def run(self, input: bytes, *, hold: bool, context: dict[str, str] | None, last_try: bool = True) -> bool:
        """Predict. Afterwards the prediction is terminal, but for a `reason` that leaves the answer to another attempt;
        or it is `uploading`, and to be finished.

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
            self._over(death)
        except RunnerProtocolError as error:
            self._runner.end()
            self._hear()
            self._over(error)
        except BaseException:
            self._runner.end()
            raise
        finally:
            with self._lock:
                self._wake = None  # it wakes whoever uses the runner next
        return True

    def finish(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Wait for the uploads, after run(), in any one thread; then the prediction is as run() would leave it.

        Returns before if `enough`, which is asked again when nudge() is called.
        """
        if not self._outputs or enough():
            return  # as most do: a Wake costs them a tenth of their time
        with closing(Wake()) as wake:
            poll = select.poll()
            poll.register(wake.fileno(), select.POLLIN)
            with self._lock:
                self._wake = wake
            if self.unshown and self._due is None:
                self._schedule()  # what came together with the end
            try:
                while self._outputs and not enough():
                    wake.clear()
                    if self._settle():
                        self._schedule()
                    now = time.monotonic()
                    if self._due is not None and now >= self._due:
                        self._show(now)
                    elif self._outputs and not enough():
                        wait = _soonest(now, self._due)
                        poll.poll(None if wait is None else wait * 1000)
            finally:
                with self._lock:
                    self._wake = None

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
            assert self._wake is not None
            self._wake.clear()
            changed = self._settle()
            if late:  # and it was not over by then: what lay in the pipe has been read
                self._deadline = None
                self.stop("timeout")
            if (came or changed) and self.unshown:
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
                self.first_output = self.first_output or time.time()
                prediction.stream()
                self._put_out(message.value, message.files, yielded=True)
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
        self._began = time.time()
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

    def _abandon_files(self) -> None:
        with self._lock:
            self._hopeless = True
            if self._cancel is not None:
                self._cancel.set()

    def _signal(self) -> None:
        if self._signal_at is None:
            self._runner.cancel()
            now = time.monotonic()
            self._signal_at, self._kill_at = now + SIGNAL_AGAIN, now + self._grace

    def _put_out(self, value: msgspec.Raw, files: list[File], *, yielded: bool) -> None:
        """Add a value to the output once its files are uploaded, and those of all before it."""
        output = _Output(value, yielded)
        if files:
            if self.reason is not None:
                return
            output.value = msgspec.json.decode(value)
            places = [_place(output.value, file.at) for file in files]
            for file, (container, key) in zip(files, places, strict=True):
                url = self._outlet.upload(file.path, self._files_cancel())
                output.files.append((container, key, url))
                url.add_done_callback(lambda _: self.nudge())
        self._outputs.append(output)
        self._settle()

    def _settle(self) -> bool:
        """Take over what has all of its files, in order; the end, when there is nothing more to wait for.

        Whether there is something new to show.
        """
        changed = False
        if self._hopeless:
            self._outputs.clear()
        while self._outputs and self._outputs[0].there:
            output = self._outputs[0]
            try:
                value = output.with_urls()
            except (UploadError, Canceled) as error:
                self._outputs.clear()
                self._abandon_files()
                # Whoever canceled has left the reason; and a runner that died was the first to go wrong.
                if isinstance(error, UploadError) and not isinstance(self._end, PlatformError):
                    self.stop("failed", str(error))
                break
            self._outputs.popleft()
            if not output.yielded:
                self._single = value
            elif self._prediction.add(value):
                self.unshown = changed = True
        if self._end is not None and not self._outputs:
            self._conclude(self._end)
        return changed

    def _done(self, done: Done) -> None:
        prediction = self._prediction
        prediction.predict_time, prediction.metrics = done.predict_time, done.metrics or None
        now = self._ended = time.time()
        if done.streamed:
            prediction.stream()
            if done.status == "succeeded" and self.first_output is not None:
                self.last_output = now
        elif done.status == "succeeded":
            self.first_output = now
            self._put_out(done.output or NULL, done.files, yielded=False)
        self._over(done)

    def _over(self, end: Done | PlatformError) -> None:
        """The runner has nothing more to say of it, and files may still be on their way."""
        with self._lock:
            self._running = False
        self._ended = self._ended or time.time()
        self._end = end
        self._settle()

    def _conclude(self, end: Done | PlatformError) -> None:
        """Make the prediction terminal, if that is for us to do."""
        if self._stopped():
            return
        now = time.time()
        if isinstance(end, PlatformError):
            self._prediction.fail(now, str(end), "platform")
        elif end.status == "succeeded":
            self._prediction.succeed(now, self._single)
        elif end.status == "canceled":
            self._prediction.fail(now, "The prediction was canceled by the predictor itself.", "model")
        else:
            self._prediction.fail(now, end.error or "unknown error", end.fault or "model")

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
            case "lost" | "shutdown" | "refused" | "its GPU failed":
                pass  # another attempt answers, or nobody can
            case "canceled":
                self._prediction.cancel(now)
        return True


def _soonest(now: float, *times: float | None) -> float | None:
    soonest = min((t for t in times if t is not None), default=None)
    return None if soonest is None else max(0.0, soonest - now)


def _place(value: Any, at: list[str | int]) -> tuple[Any, str | int | None]:
    """The container and the key at which a file stands in a value; no key if it is the value. Raises
    RunnerProtocolError.
    """
    if not at:
        return None, None
    try:
        for step in at[:-1]:
            value = value[step]
        value[at[-1]]
        if isinstance(value, str):  # it has characters, and no places
            raise TypeError
    except (LookupError, TypeError):
        raise RunnerProtocolError(f"The runner names a file at {at}, where its output has no place.") from None
    return value, at[-1]
