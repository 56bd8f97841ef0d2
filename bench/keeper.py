"""Runs one command and makes sure that nothing of it is left, however it or the benchmark itself ends.

`python -m bench.keeper FOLDER COMMAND …` writes the command's process id to standard output, leaves standard error to
the command, and stops it at the end of standard input. It must not know what the command does.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

from cog_celery.local.processes import tied

from . import procfs

GRACE = 10.0
"""Seconds between SIGTERM to the command and SIGKILL to all that is left of it."""
ORPHAN_GRACE = 1.0
"""Seconds that its descendants have once the command itself has ended."""

_PR_SET_CHILD_SUBREAPER = 36
_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(folder: str, command: Sequence[str]) -> int:
    # Orphans of the command become our children, so that the tree below us stays complete: a worker that is killed
    # leaves processes of its model behind which nothing else would find.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    # Blocked, to be waited for in _end; a handler makes sure that it is delivered at all.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})

    os.chdir(folder)
    line = tied(command)
    child = os.posix_spawn(
        line[0],
        line,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
        setsigmask=(),
        setsigdef=(*_DEAF_TO, signal.SIGCHLD),
    )
    os.write(1, f"{child}\n".encode())
    select.select([0, os.pidfd_open(child)], [], [])
    return _end(child)


def _end(child: int) -> int:
    """Stop what still runs; the exit status of the command as Python gives it."""
    status = 0
    deadline = time.monotonic() + GRACE
    _kill({child}, signal.SIGTERM)
    while True:
        try:
            pid, waited = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status  # no child is left, hence no descendant either
        if pid == child:
            status = os.waitstatus_to_exitcode(waited)
            deadline = min(deadline, time.monotonic() + ORPHAN_GRACE)
        if pid:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            _kill(procfs.tree([os.getpid()]) - {os.getpid()}, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, max(left, 0.1))


def _kill(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]) & 0xFF)
