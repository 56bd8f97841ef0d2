"""A fleet under measurement: some commands running together, with their process trees and their logs.

It must not know whose commands these are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from . import BenchError, procfs
from .keeper import GRACE
from .wire import Wire

START_TIMEOUT = 60.0
_ROOT = Path(__file__).resolve().parent.parent
_LOG_TAIL_BYTES = 3000


@dataclass(frozen=True)
class Command:
    """One process to start: its arguments, its folder, its whole environment."""

    argv: Sequence[str]
    folder: Path
    env: Mapping[str, str]


class Fleet:
    """A context manager: inside it the commands run; behind it no process of theirs is left."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = commands
        self._kept: list[_Kept] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            # All are asked to stop before the first is waited for.
            stack.callback(self._wait)
            for number, command in enumerate(self._commands):
                log = stack.enter_context((folder / f"{number}.log").open("w+b"))
                self._kept.append(_Kept(command, log))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait_ready(self, wire: Wire, queue: str, slots: int, timeout: float = START_TIMEOUT) -> None:
        """Return when every slot has told the duration of its setup, of up to 100. Raises BenchError with the last log
        lines.
        """
        deadline = time.monotonic() + timeout
        while (ready := wire.call("XLEN", f"{queue}-setup-time")) < slots:
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{ready} of {slots} slots were ready after {timeout:g} s{self.tail()}")
            time.sleep(0.02)

    def check(self) -> None:
        """Raises BenchError when a process of the fleet has ended."""
        for kept in self._kept:
            if (status := kept.keeper.poll()) is not None:
                raise BenchError(f"{' '.join(kept.command.argv[:4])} ended with status {status}{self.tail()}")

    def cpu_seconds(self) -> float:
        return procfs.cpu_seconds(self._pids())

    def memory_bytes(self) -> int:
        return procfs.memory_bytes(self._pids())

    @property
    def size(self) -> int:
        """How many commands there are."""
        return len(self._kept)

    def pids(self, number: int) -> set[int]:
        """The processes of one of the commands, and below it."""
        return procfs.tree([self._kept[number].pid])

    def tail(self) -> str:
        """The last log lines of all processes, to be put behind a message."""
        return "".join(f"\n--- {' '.join(kept.command.argv[:4])} …\n{kept.tail()}" for kept in self._kept)

    def _pids(self) -> set[int]:
        return procfs.tree(kept.pid for kept in self._kept)

    def _wait(self) -> None:
        for kept in self._kept:
            kept.ask_to_stop()
        for kept in self._kept:
            kept.wait()


class _Kept:
    """One command and the keeper that runs it."""

    def __init__(self, command: Command, log: IO[bytes]) -> None:
        self.command = command
        self._log = log
        # A session of its own: Ctrl-C is for the benchmark, which then stops its fleets in order.
        self.keeper = subprocess.Popen(
            [sys.executable, "-m", "bench.keeper", str(command.folder), *command.argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=_ROOT,
            env=command.env,
            start_new_session=True,
        )
        assert self.keeper.stdout is not None
        line = self.keeper.stdout.readline()
        if not line:
            self.wait()
            raise BenchError(f"cannot start {command.argv[0]}:\n{self.tail()}")
        self.pid = int(line)

    def ask_to_stop(self) -> None:
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()

    def wait(self) -> None:
        """Return when nothing of the command is left. The keeper kills after its grace, and needs no limit of ours."""
        self.ask_to_stop()
        self.keeper.wait(GRACE + 10)
        assert self.keeper.stdout is not None
        self.keeper.stdout.close()

    def tail(self) -> str:
        size = self._log.seek(0, 2)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip() or "(it has written nothing)"
