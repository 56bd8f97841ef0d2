"""The parent's side of a runner: starts the process, speaks its protocol, reads its logs, cancels and kills it.

It must not know about Redis, Celery or snapshots. The protocol is docs/runner-protocol.md; a Runner is used by one
thread, but for cancel() and kill(), which any thread may call.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from cog_celery.errors import RunnerDied, RunnerProtocolError, SetupError
from cog_celery.runners import kin
from cog_celery.runners.guardian import Guardian
from cog_celery.runners.wake import Attentive
from cog_celery.telemetry.logs import LineSplitter

PROTOCOL = 2
MAIN = Path(__file__).parents[1] / "runtime" / "cog" / "_runner" / "__main__.py"
MAX_MESSAGE = 512 << 20
"""Bytes. Redis takes no longer value, so no longer output could ever be shown."""
READ = 1 << 18
WRITE_PATIENCE = 30.0
"""Seconds for which a runner may leave a message unread before it counts as stuck."""
CLOSED_PATIENCE = 1.0
"""Seconds between the end of file on a runner's pipe and the end of its process, as a rule microseconds."""
KILL_PATIENCE = 10.0
"""Seconds for a process that was killed to end. One that is stuck in the kernel, as in the driver of a GPU that is
gone, may never do so, and is left behind."""

log = logging.getLogger(__name__)


class File(msgspec.Struct, frozen=True):
    """A file in an output: where in the value its URL belongs, and where it lies."""

    at: list[str | int]
    path: str


class FieldError(msgspec.Struct, frozen=True):
    field: str
    kind: str
    limit: Any = None
    value: str = ""


class Hello(msgspec.Struct, tag="hello", tag_field="type", frozen=True):
    protocol: int
    python: str


class Ready(msgspec.Struct, tag="ready", tag_field="type", frozen=True):
    setup_time: float
    inputs: list[dict[str, Any]]
    concurrency: int = 1
    healthcheck: bool = False
    in_setup: float = 0.0


class SetupFailed(msgspec.Struct, tag="setup_failed", tag_field="type", frozen=True):
    kind: str
    error: str
    in_setup: float | None = None


class Accepted(msgspec.Struct, tag="accepted", tag_field="type", frozen=True):
    id: str
    files: list[str] = []
    ignored: list[str] = []


class Refused(msgspec.Struct, tag="refused", tag_field="type", frozen=True):
    id: str
    errors: list[FieldError]


class Output(msgspec.Struct, tag="output", tag_field="type", frozen=True):
    id: str
    value: msgspec.Raw
    files: list[File] = []


class Done(msgspec.Struct, tag="done", tag_field="type", frozen=True):
    id: str
    status: str
    output: msgspec.Raw = msgspec.Raw(b"")  # empty: the message has none
    files: list[File] = []
    streamed: bool = False
    error: str | None = None
    fault: Literal["platform"] | None = None
    metrics: msgspec.Raw = msgspec.Raw(b"")
    predict_time: float = 0.0


class Log(msgspec.Struct, tag="log", tag_field="type", frozen=True):
    """What one of several predictions wrote."""

    id: str
    text: str


class Blocked(msgspec.Struct, tag="blocked", tag_field="type", frozen=True):
    id: str | None
    seconds: float
    at: str


class Health(msgspec.Struct, tag="health", tag_field="type", frozen=True):
    healthy: bool
    error: str | None = None


class Lines(msgspec.Struct, frozen=True):
    """What the process and its children wrote to file descriptors 1 and 2; not a message, but it comes the same way."""

    lines: list[str]


class Schema(msgspec.Struct, tag="schema", tag_field="type", frozen=True):
    document: dict[str, Any]


class TestInputs(msgspec.Struct, tag="test_inputs", tag_field="type", frozen=True):
    """`input` is None when the model offers none; the places of `files` in it hold None."""

    __test__ = False  # pytest would take it for a test

    input: dict[str, Any] | None
    files: list[File] = []
    error: str | None = None


Message = (
    Hello | Ready | SetupFailed | Accepted | Refused | Output | Done | Log | Blocked | Health | Schema | TestInputs
)
_decode = msgspec.json.Decoder(Message).decode
_encode = msgspec.json.encode


class RunnerCommand(msgspec.Struct, frozen=True):
    """How to start a runner. `predict` is `file.py:Name`, None as cog.yaml says; `setup`: whether setup() is run.

    `concurrency`: how many predictions would be sent at once.
    """

    python: str
    model_dir: str
    environment: Mapping[str, str]
    predict: str | None = None
    setup: bool = True
    concurrency: int = 1


class Runner(Attentive):
    """One process in the model's own interpreter. It leads a process group, and dies with its parent."""

    def __init__(self, command: RunnerCommand, guardian: Guardian) -> None:
        """Start the process. The calling thread must live as long as the runner may: its end would kill it."""
        super().__init__()
        self._guardian = guardian
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        self._mark = secrets.token_hex(8)
        arguments = [command.python, "-u", str(MAIN), str(theirs_in), str(theirs_out), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                arguments,
                cwd=command.model_dir,
                env={**command.environment, "PYTHONUNBUFFERED": "1", kin.MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._in)
            os.close(self._out)
            raise SetupError(
                f"The model's interpreter {command.python} cannot be started in {command.model_dir}: {error.strerror}. "
                "Name another with --python."
            ) from None
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.pid = self._process.pid
        guardian.watch(self.pid, self._mark)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._logs = {stream.fileno(): LineSplitter() for stream in (self._process.stdout, self._process.stderr)}
        self._pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
        self._drain = select.poll()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        self._poll.register(self._in, select.POLLIN)
        for fd in self._logs:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
            self._drain.register(fd, select.POLLIN)
        if self._pidfd >= 0:
            self._poll.register(self._pidfd, select.POLLIN)
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._ended = False
        self._killed_at: float | None = None
        self._reaping = threading.Lock()
        self.exitcode = 0
        """As Python gives it, once `ended`."""

    # -- to the runner

    def load(self, command: RunnerCommand) -> None:
        """Have the predictor imported and set up."""
        message = {
            "type": "load",
            "protocol": PROTOCOL,
            "model_dir": command.model_dir,
            "predict": command.predict,
            "setup": command.setup,
            "concurrency": command.concurrency,
        }
        self._send(_encode(message) + b"\n")

    def ask(self, question: Literal["schema", "test_inputs", "healthcheck"]) -> None:
        """Ask for a Schema, TestInputs or Health, between two predictions."""
        self._send(_encode({"type": question}) + b"\n")

    def predict(
        self, id: str, input: bytes, *, hold: bool = False, context: Mapping[str, str] | None = None, slot: int = 0
    ) -> None:
        """Send a prediction. `input` is a JSON object as its producer wrote it; `slot`: which of several it is."""
        if b"\n" in input or b"\r" in input:
            # Between tokens white space is free; inside a string neither is allowed.
            input = input.replace(b"\n", b" ").replace(b"\r", b" ")
        self._send(
            b'{"type":"predict","id":%b,"input":%b,"hold":%b,"context":%b,"slot":%d}\n'
            % (_encode(id), input, b"true" if hold else b"false", _encode(context) if context else b"{}", slot)
        )

    def go(self, id: str, paths: list[str]) -> None:
        """Let an accepted prediction begin, with its files."""
        self._send(_encode({"type": "go", "id": id, "paths": paths}) + b"\n")

    def drop(self, id: str) -> None:
        """End an accepted prediction that has not begun."""
        self._send(_encode({"type": "drop", "id": id}) + b"\n")

    def cancel(self) -> None:
        """Cancel the prediction that runs; nothing happens when none does."""
        self._signal(signal.SIGUSR1)

    def cancel_one(self, id: str) -> None:
        """Cancel one of several predictions."""
        self._send(_encode({"type": "cancel", "id": id}) + b"\n")

    def kill(self) -> None:
        """End the process and its whole group at once."""
        if not self._ended:
            self._killed_at = self._killed_at or time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    # -- from the runner

    def wait(self, timeout: float | None) -> list[Message | Lines]:
        """What came, in order; empty after `timeout` seconds or before, also when the attended descriptor is readable.

        Lines that were written before a Done come before it. Raises RunnerDied when the process has ended and all that
        it said has been returned, RunnerProtocolError when it said something else than messages, or was killed and does
        not end.
        """
        killed_at = self._killed_at
        if killed_at is not None and time.monotonic() - killed_at > KILL_PATIENCE and not self._has_ended():
            raise RunnerProtocolError("The runner was killed, and its process does not end.")
        # It may be killed meanwhile, from another thread.
        patience = KILL_PATIENCE if timeout is None else min(KILL_PATIENCE, max(0.0, timeout))
        ready = {fd for fd, _ in self._poll.poll(patience * 1000)}
        came: list[Message | Lines] = []
        for fd in list(self._logs):
            if fd in ready:
                self._read_lines(fd, came)
        if self._in in ready:
            messages = self._read_messages()
            if messages and type(messages[-1]) is Done:
                # Written before it, but perhaps not there yet when we polled.
                self._drain_lines(came)
                self._finish_lines(came)
            came += messages
        if not came and self._has_ended():
            self._drain_lines(came)
            self._finish_lines(came)
            if not came:
                raise RunnerDied(self._reap())
        return came

    def setup(self, command: RunnerCommand, on_lines: Callable[[list[str]], None], timeout: float | None) -> Ready:
        """Load the predictor and wait until its setup() is done. Raises SetupError; the process is gone then."""
        until = None if timeout is None else time.monotonic() + timeout
        try:
            self.load(command)
            while until is None or time.monotonic() < until:
                for message in self.wait(None if until is None else until - time.monotonic()):
                    match message:
                        case Lines():
                            on_lines(message.lines)
                        case Hello() if message.protocol != PROTOCOL:
                            raise SetupError(
                                f"The runner speaks protocol {message.protocol}, this worker {PROTOCOL}: "
                                "install one release of both."
                            )
                        case Ready():
                            return message
                        case SetupFailed():
                            self._drain_until_end(on_lines)
                            what = "" if message.kind == "refused" else "Predictor errored during setup: "
                            raise SetupError(what + message.error, message.in_setup)
                        case _:
                            pass
        except RunnerDied as death:
            raise SetupError(
                "Predictor setup failed for an unknown reason. It might have run out of memory? "
                f"(exitcode {death.exitcode})"
            ) from None
        except RunnerProtocolError as error:
            self.end()
            raise SetupError(str(error)) from None
        except SetupError:
            self.end()
            raise
        self.end()
        raise SetupError(f"Predictor setup did not end within {timeout:g} s.")

    def between(self) -> list[str]:
        """Between two predictions: lines that were written while none ran. Raises RunnerDied."""
        if not self._poll.poll(0):
            return []
        if self._has_ended():
            raise RunnerDied(self._reap())
        came: list[Message | Lines] = []
        self._drain_lines(came)
        self._finish_lines(came)
        return [line for part in came if isinstance(part, Lines) for line in part.lines]

    @property
    def ended(self) -> bool:
        """Whether its end has been told, by RunnerDied or by end()."""
        return self._ended

    def end(self) -> None:
        """Kill the process, if it is there, and let go of it."""
        self.kill()
        self._reap()

    # -- inside

    def _send(self, message: bytes) -> None:
        view = memoryview(message)
        until = time.monotonic() + WRITE_PATIENCE
        while view:
            try:
                view = view[os.write(self._out, view) :]
            except BlockingIOError:
                writable = select.poll()
                writable.register(self._out, select.POLLOUT)
                if not writable.poll(max(0.0, until - time.monotonic()) * 1000):
                    self.kill()  # wait() will say so
                    return
            except BrokenPipeError:
                return  # wait() will say how it ended

    def _signal(self, number: int) -> None:
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _read_lines(self, fd: int, came: list[Message | Lines], most: int = READ) -> None:
        try:
            data = os.read(fd, most)
        except BlockingIOError:
            return
        if not data:  # all who had it closed it: nothing more to come
            self._poll.unregister(fd)
            self._drain.unregister(fd)
            lines = self._logs.pop(fd).finish()
        else:
            lines = self._logs[fd].feed(data)
        if lines:
            came.append(Lines(lines))

    def _drain_lines(self, came: list[Message | Lines]) -> None:
        # What is in the pipes now and no more: a process that writes for ever must not hold up the answer.
        for fd, _ in self._drain.poll(0):
            waiting = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), "little")
            while True:
                most = min(waiting, READ)
                self._read_lines(fd, came, max(1, most))
                waiting -= most
                if waiting <= 0:
                    break

    def _finish_lines(self, came: list[Message | Lines]) -> None:
        for splitter in self._logs.values():
            if rest := splitter.finish():
                came.append(Lines(rest))

    def _read_messages(self) -> list[Message]:
        try:
            data = os.read(self._in, READ)
        except BlockingIOError:
            return []
        if not data:
            self._poll.unregister(self._in)
            self._await_end(CLOSED_PATIENCE)
            self.kill()  # a process that closed its end of the pipe is no runner any more
            return []
        if self._rest:
            if b"\n" not in data:
                self._rest.append(data)
                self._rest_size += len(data)
                if self._rest_size > MAX_MESSAGE:
                    raise RunnerProtocolError(
                        f"An output has more than {MAX_MESSAGE >> 20} MiB: return a file instead."
                    )
                return []
            self._rest.append(data)
            data = b"".join(self._rest)
            self._rest.clear()
        lines = data.split(b"\n")
        if lines[-1]:
            self._rest.append(lines[-1])
            self._rest_size = len(lines[-1])
        lines.pop()
        try:
            return [_decode(line) for line in lines]
        except (msgspec.MsgspecError, RecursionError) as error:
            raise RunnerProtocolError(f"The runner said something that is no message: {error}.") from None

    def _drain_until_end(self, on_lines: Callable[[list[str]], None]) -> None:
        until = time.monotonic() + 5.0
        with contextlib.suppress(RunnerDied, RunnerProtocolError):
            while (left := until - time.monotonic()) > 0:
                for message in self.wait(left):
                    if isinstance(message, Lines):
                        on_lines(message.lines)

    def _has_ended(self) -> bool:
        if self._pidfd >= 0:
            return self._await_end(0)
        return self._process.poll() is not None

    def _await_end(self, timeout: float | None) -> bool:
        """Whether the process ends within `timeout` seconds, without reaping it."""
        if self._pidfd < 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            return self._process.returncode is not None
        end = select.poll()
        end.register(self._pidfd, select.POLLIN)
        return bool(end.poll(None if timeout is None else timeout * 1000))

    def _reap(self) -> int:
        """Collect the exit code, when the process has ended or is about to; what it has started is killed."""
        with self._reaping:
            if not self._ended:
                self._let_go()
        return self.exitcode

    def _let_go(self) -> None:
        ended = self._await_end(KILL_PATIENCE)
        # Not yet reaped, the number of the group is still ours.
        left = kin.kill_kin(self.pid, self._mark)
        self._ended = True
        if ended and not left:
            self._guardian.forget(self.pid, self._mark)
        else:
            log.error("runner %d: it or what it started was killed and does not end, it is left behind", self.pid)
        self.exitcode = self._process.wait() if ended else -signal.SIGKILL
        for fd in (self._in, self._out, self._pidfd):
            if fd >= 0:
                os.close(fd)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
