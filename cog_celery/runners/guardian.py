"""Kills the process groups of this process's runners, and removes their folders, when this process is gone, however it
went.

A parent-death signal reaches a runner but not what the model has started itself, and nothing in a runner can act while
it is stuck in C: so a small process of its own holds a pipe to us, and at its end kills every group it was told of, and
its kin. It must not know what runs in them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

from cog_celery.runners import kin


class Guardian:
    """One for a process; threads may share it. If somebody kills it, the next check() starts another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, group: int, mark: str = "") -> None:
        """From now on this group, and all processes with this mark, if there is one, do not outlive us."""
        self._keep(f"g{group} {mark}")

    def forget(self, group: int, mark: str = "") -> None:
        """The group is gone. To be called before its leader is reaped: its number may then be another's."""
        self._drop(f"g{group} {mark}")

    def watch_folder(self, folder: str) -> None:
        """From now on this folder does not outlive us either."""
        self._keep(f"d{folder}")

    def forget_folder(self, folder: str) -> None:
        """The folder is gone, or about to go."""
        self._drop(f"d{folder}")

    def check(self) -> None:
        """Start another guardian if this one was killed."""
        with self._lock:
            if self._kept:
                self._tell("")

    def close(self) -> None:
        """The guardian ends, and kills what it still watches."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None and process.stdin is not None:
                process.stdin.close()
                process.wait()

    def _keep(self, what: str) -> None:
        with self._lock:
            self._kept.add(what)
            self._tell(f"+{what}\n")

    def _drop(self, what: str) -> None:
        with self._lock:
            self._kept.discard(what)
            self._tell(f"-{what}\n")

    def _tell(self, line: str) -> None:
        process = self._process
        if process is not None and process.poll() is None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(line.encode())
                return
        # The environment may hold credentials, and this needs none of it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", kin.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"+{what}\n" for what in self._kept).encode())
