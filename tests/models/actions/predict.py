"""A predictor that does what its `action` says, and keeps a journal of it, for tests of delivery.

Each line of the file named by ACTIONS_JOURNAL is one event: {"event": "setup" | "start" | "end", "runner": process id,
"born": its start time as /proc tells it, "request": the input `text`, which marks the request, "at": Unix time, "how":
"returned" or the name of what was raised, at the end only}. What is killed writes no end. ACTIONS_SETUP=SLOW_SETUP
makes setup() take 3 s, FAIL_SETUP makes it fail.
"""

import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cog import BasePredictor, Input, Path

try:
    from cog import CancelationException
except ImportError:  # Cog's own queue worker runs this model too, beside ours
    from cog.server.exceptions import CancelationException

CANCELATION = {signal.SIGUSR1}
"""The signal that a prediction is canceled by."""
MIB = 1 << 20
HEADROOM = 256 * MIB
"""Bytes of address space that OOM may take before it ends as the kernel would end it."""


class Journal:
    """Appends lines, each with one write: they never mix with those of other runners."""

    def __init__(self) -> None:
        name = os.environ.get("ACTIONS_JOURNAL")
        self.file = None if name is None else os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        with open("/proc/self/stat") as f:
            self.born = f.read().rpartition(")")[2].split()[19]

    def write(self, event: str, request: str = "", how: str = "") -> None:
        if self.file is None:
            return
        line = {"event": event, "runner": os.getpid(), "born": self.born, "request": request, "at": time.time()}
        if how:
            line["how"] = how
        os.write(self.file, (json.dumps(line) + "\n").encode())

    @contextmanager
    def run(self, request: str) -> Iterator[None]:
        """Both lines are written, whenever a cancelation strikes: it waits, or has struck, while they are."""
        how = "returned"
        signal.pthread_sigmask(signal.SIG_BLOCK, CANCELATION)
        self.write("start", request)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, CANCELATION)
            yield
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, CANCELATION)
            except BaseException as error:
                how = type(error).__name__
                raise
            finally:
                self.write("end", request, how)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, CANCELATION)


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.journal = Journal()
        self.journal.write("setup")
        how = os.environ.get("ACTIONS_SETUP")
        if how == "SLOW_SETUP":
            time.sleep(3)
        elif how == "FAIL_SETUP":
            raise RuntimeError("told to fail")

    def predict(
        self,
        action: str = Input(
            choices=[
                *("OK", "LOGS", "STREAM", "FILES", "RAISE", "EXIT", "KILL", "SEGV"),
                *("HANG", "IGNORE_TERM", "FLOOD", "BIG", "SLEEP", "OOM"),
            ]
        ),
        seconds: float = Input(default=0, ge=0),
        n: int = Input(default=1, ge=0),
        text: str = "",
    ) -> Any:
        if action == "STREAM":
            return self.stream(seconds, n, text)
        with self.journal.run(text):
            do = self.raise_ if action == "RAISE" else getattr(self, action.lower())
            return do(seconds=seconds, n=n, text=text)

    # What ends well. `seconds` is how long it takes in all.

    def ok(self, seconds: float, text: str, **_: Any) -> Any:
        time.sleep(seconds)
        return text

    sleep = ok

    def logs(self, seconds: float, n: int, text: str) -> Any:
        """n lines."""
        for i in range(n):
            print(f"{text} {i}", flush=True)
            time.sleep(seconds / n)
        return text

    def stream(self, seconds: float, n: int, text: str) -> Any:
        """n outputs."""
        with self.journal.run(text):
            for i in range(n):
                yield f"{text} {i}"
                time.sleep(seconds / n)

    def files(self, seconds: float, n: int, text: str) -> Any:
        """n files."""
        folder = tempfile.mkdtemp()
        paths = []
        for i in range(n):
            paths.append(Path(os.path.join(folder, f"{i}.txt")))
            paths[-1].write_text(f"{text} {i}")
        time.sleep(seconds)
        return paths

    def flood(self, seconds: float, n: int, text: str) -> Any:
        """n MiB of logs, as fast as they go."""
        line = (text[:50] + " ").ljust(127, ".") + "\n"
        for _ in range(n):
            sys.stdout.write(line * (MIB // len(line)))
            sys.stdout.flush()
        time.sleep(seconds)
        return text

    def big(self, seconds: float, n: int, **_: Any) -> Any:
        """An output of n MiB."""
        time.sleep(seconds)
        return "x" * (n * MIB)

    # What fails, after `seconds`

    def raise_(self, seconds: float, text: str, **_: Any) -> Any:
        time.sleep(seconds)
        raise ValueError(text)

    def exit(self, seconds: float, **_: Any) -> Any:
        time.sleep(seconds)
        sys.exit(3)

    def kill(self, seconds: float, **_: Any) -> Any:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def segv(self, seconds: float, **_: Any) -> Any:
        time.sleep(seconds)
        ctypes.string_at(0)

    def oom(self, seconds: float, **_: Any) -> Any:
        """Takes memory until there is none, within a limit of its own, and then ends as the kernel ends such a one."""
        time.sleep(seconds)
        with open("/proc/self/statm") as f:
            size = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, size + HEADROOM))
        hoard = []
        try:
            while True:
                hoard.append(bytearray(MIB))
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)

    # What does not end

    def hang(self, **_: Any) -> Any:
        """Until it is canceled."""
        while True:
            time.sleep(60)

    def ignore_term(self, **_: Any) -> Any:
        """Until it is killed."""
        while True:
            try:
                time.sleep(60)
            except CancelationException:
                print("not now", flush=True)


class Together(BasePredictor):
    """OK and SLEEP, as many at once as cog.yaml says."""

    async def setup(self) -> None:
        self.journal = Journal()
        self.journal.write("setup")

    async def predict(
        self, action: str = Input(choices=["OK", "SLEEP"]), seconds: float = Input(default=0, ge=0), text: str = ""
    ) -> str:
        self.journal.write("start", text)
        how = "returned"
        try:
            await asyncio.sleep(seconds)
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            self.journal.write("end", text, how)
        return text
