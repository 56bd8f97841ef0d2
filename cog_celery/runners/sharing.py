"""One runner that serves several predictions at once: a seat for each, which is to its slot what its own runner is.

It must not know where predictions come from. A thread reads what the runner says and gives each seat its part.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping

from cog_celery.errors import RunnerDied, RunnerProtocolError
from cog_celery.runners.runner import Blocked, Done, Health, Lines, Log, Message, Refused, Runner
from cog_celery.runners.wake import Attentive, Wake
from cog_celery.telemetry.logs import LineSplitter, model_lines

log = logging.getLogger(__name__)


class SharedRunner:
    """A runner that is ready, and its seats. Its process may be killed from any thread."""

    def __init__(self, runner: Runner, seats: int) -> None:
        self._runner = runner
        self._writing = threading.Lock()
        self._seated: dict[str, Seat] = {}
        self._health: queue.SimpleQueue[Health] = queue.SimpleQueue()
        self.end: RunnerDied | RunnerProtocolError | None = None
        """How it ended, once it has."""
        self.seats = [Seat(self, index) for index in range(seats)]
        self._reader = threading.Thread(target=self._read, name=f"runner {runner.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._runner.pid

    @property
    def exitcode(self) -> int:
        return self._runner.exitcode

    def seat(self, id: str, seat: Seat) -> None:
        """What is said of this prediction is for this seat."""
        self._seated[id] = seat

    def say(self, step: Callable[[Runner], None]) -> None:
        """Tell the runner something; one message at a time."""
        with self._writing:
            if self.end is None:
                step(self._runner)

    def healthcheck(self, timeout: float) -> Health | None:
        """What the model says of itself; None when it does not answer."""
        self.say(lambda runner: runner.ask("healthcheck"))
        try:
            return self._health.get(timeout=timeout)
        except queue.Empty:
            return None

    def kill(self, by: Seat | None = None) -> None:
        """End the process. For all but `by`, whose prediction did not stop, that is none of their doing."""
        if self.end is not None:
            return  # it has died of something else
        for seat in self.seats:
            if seat is not by:
                seat.bystander = True
        self._runner.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        self.kill()
        self._reader.join()

    def _read(self) -> None:
        try:
            while True:
                for message in self._runner.wait(None):
                    self._route(message)
        except RunnerDied as death:
            self.end = death
        except RunnerProtocolError as error:
            self._runner.end()
            self.end = error
        for seat in self.seats:
            seat.wake.set()

    def _route(self, message: Message | Lines) -> None:
        match message:
            case Lines():
                model_lines(message.lines, "of no prediction alone")
            case Blocked():
                seat = self._seated.get(message.id or "")
                log.warning(
                    "prediction %s has held up all others in its runner for %.1f s, at %s: await what takes long, or "
                    "run it in a thread",
                    *("unknown" if seat is None else seat.label, message.seconds, message.at),
                )
            case Health():
                self._health.put(message)
            case _:
                id = getattr(message, "id", None)
                seat = self._seated.get(id) if id is not None else None
                if seat is None:
                    if isinstance(message, Log):
                        return  # of a task that outlived its prediction
                    raise RunnerProtocolError(f"The runner said {type(message).__name__} of no prediction that runs.")
                if isinstance(message, Done | Refused):
                    del self._seated[seat.id]
                seat.deliver(message)


class Seat(Attentive):
    """What an Execution needs of a runner. Used by one slot; cancel() and kill() may come from any thread."""

    def __init__(self, shared: SharedRunner, index: int) -> None:
        super().__init__()
        self._shared = shared
        self._index = index
        self._came: deque[Message | Lines] = deque()
        self._splitter = LineSplitter()
        self._canceled = False
        self.wake = Wake()
        self._poll.register(self.wake.fileno(), select.POLLIN)
        self.id = ""
        self.label = ""
        """What its prediction is called in the log."""
        self.bystander = False
        """Whether the process was killed for another's sake."""
        self.ended = False
        """Whether its end has been told."""

    def __del__(self) -> None:
        self.wake.close()  # its slot may wait for it until it has seen the end, whoever else has begun anew

    @property
    def pid(self) -> int:
        return self._shared.pid

    @property
    def exitcode(self) -> int:
        """As Python gives it, once `ended`."""
        return self._shared.exitcode

    def predict(self, id: str, input: bytes, *, hold: bool = False, context: Mapping[str, str] | None = None) -> None:
        """Send a prediction. `input` is a JSON object as its producer wrote it."""
        self.id, self._canceled = id, False
        self._splitter = LineSplitter()
        self._shared.seat(id, self)
        self._shared.say(lambda runner: runner.predict(id, input, hold=hold, context=context, slot=self._index))

    def go(self, id: str, paths: list[str]) -> None:
        """Let an accepted prediction begin, with its files."""
        self._shared.say(lambda runner: runner.go(id, paths))

    def drop(self, id: str) -> None:
        """End an accepted prediction that has not begun."""
        self._shared.say(lambda runner: runner.drop(id))

    def cancel(self) -> None:
        """Cancel the prediction that runs; nothing happens when none does."""
        if not self._canceled:
            self._canceled = True
            id = self.id
            self._shared.say(lambda runner: runner.cancel_one(id))

    def kill(self) -> None:
        """End the process, and with it what the others do."""
        self._shared.kill(self)

    def end(self) -> None:
        """End the process."""
        self.kill()
        self.ended = True

    def wait(self, timeout: float | None) -> list[Message | Lines]:
        """What came, in order; empty after `timeout` seconds, or when the attended descriptor is readable.

        Raises RunnerDied and RunnerProtocolError, when all that was said before has been returned.
        """
        if not self._came:
            self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        self.wake.clear()
        end = self._shared.end
        came: list[Message | Lines] = []
        with contextlib.suppress(IndexError):
            while True:
                came.append(self._came.popleft())
        if not came and end is not None:
            raise self._told(end)
        return came

    def between(self) -> list[str]:
        """Between two predictions: nothing, since lines of no prediction go to the log. Raises RunnerDied."""
        if self._shared.end is not None:
            raise self._told(self._shared.end)
        return []

    def deliver(self, message: Message) -> None:
        """From the reader."""
        if isinstance(message, Log):
            lines = self._splitter.feed(message.text.encode(errors="replace"))
            if lines:
                self._came.append(Lines(lines))
        else:
            if isinstance(message, Done) and (rest := self._splitter.finish()):
                self._came.append(Lines(rest))
            self._came.append(message)
        self.wake.set()

    def _told(self, end: RunnerDied | RunnerProtocolError) -> RunnerDied | RunnerProtocolError:
        self.ended = True
        if self.bystander and isinstance(end, RunnerDied):
            return RunnerDied(end.exitcode, bystander=True)
        return end
