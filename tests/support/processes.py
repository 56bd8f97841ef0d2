"""Starts child processes of a test with their output in a file, and finds processes by a mark in their environment.

It must not know what the processes are.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

MARK = "COG_TEST_MARK"
"""The environment variable that every process of one fleet carries, those of its models too."""

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1


def wait_until(condition: Callable[[], T], what: str, timeout: float = 10.0, interval: float = 0.01) -> T:
    """Return the first true value of `condition`; AssertionError saying `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}; last seen: {value!r}")
        time.sleep(interval)


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it. `born` tells it from a later one with the same id."""

    pid: int
    born: str
    parent: int
    command: str

    @classmethod
    def read(cls, pid: int) -> Process | None:
        """None when there is none, or when it is dead and only not yet waited for."""
        try:
            stat = Path("/proc", str(pid), "stat").read_text(errors="replace")
            command = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name, in parentheses, may hold anything.
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, fields[19], int(fields[1]), command)

    @property
    def alive(self) -> bool:
        now = Process.read(self.pid)
        return now is not None and now.born == self.born


def processes() -> list[Process]:
    """Every live process of this machine that can be seen."""
    found = (Process.read(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


def marked(mark: str) -> set[Process]:
    """The live processes whose environment has MARK=`mark`."""
    needle = f"{MARK}={mark}".encode()
    found: set[Process] = set()
    for process in processes():
        try:
            environ = Path("/proc", str(process.pid), "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if needle in environ.split(b"\0"):
            found.add(process)
    return found


def family(roots: Iterable[int]) -> set[Process]:
    """The live processes of these ids, and all that descend from them."""
    everything = processes()
    ids = set(roots)
    found: set[Process] = set()
    while grown := {one for one in everything if one.pid in ids or one.parent in ids} - found:
        found |= grown
        ids = {one.pid for one in grown}
    return found


class Child:
    """One process, its standard output and error together in one file.

    It gets a session of its own, so that Ctrl-C in a terminal reaches the test run alone, and dies with the test run.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, cwd: Path | None = None, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        prctl = ctypes.CDLL(None).prctl

        def die_with_parent() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def check_running(self) -> None:
        """AssertionError with the end of its log if the process has ended."""
        if not self.running:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.text()[-4000:]}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_up(self, timeout: float = 15.0) -> None:
        """Until it has a handler for SIGTERM, or has ended."""
        wait_until(lambda: self._catches(signal.SIGTERM) or not self.running, f"{self.name}'s handler", timeout)

    def _catches(self, number: signal.Signals) -> bool:
        try:
            status = Path("/proc", str(self.pid), "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (number - 1) & 1)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 20.0) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s:\n{self.text()[-4000:]}") from None

    def discard(self) -> None:
        """End the process whatever its state, without judging how it ended."""
        if self.running:
            self.process.kill()
        self.process.wait()
