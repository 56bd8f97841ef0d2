"""Starts child processes that cannot outlive the thread that started them, whatever ends it.

It must not know what the children do, nor when they should be stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Runs between fork and exec of the child proper, as a program of its own: a `preexec_fn` would run Python in a forked
# copy of a process with threads, which can deadlock (Python 3.12 and later warn of it). The parent-death signal stays
# set through the exec. A parent that died before the prctl has been replaced by another, hence the comparison after it.
_TIE = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(1, int(signal.SIGKILL), 0, 0, 0):
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def tied(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` such that Linux kills it (SIGKILL) when the thread that spawns it ends.

    For a child of *this* process only, spawned from a thread that lives as long as the child should. Costs about 20 ms
    once. The process id and the exit status are those of `command`; a program that cannot be run is status 1 with the
    reason on standard error. Elsewhere than on Linux there is no such signal: `command` as it is.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]
