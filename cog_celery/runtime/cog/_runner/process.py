"""The runner as a process: who may outlive whom, what its standard streams do.

It must not know the protocol or the model.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from os import write  # as it is now, whatever the model does to it
from typing import Any, Optional

from .standard import import_standard

PR_SET_PDEATHSIG = 1
OOM_SCORE_RAISE = 500
"""Of 1000: when memory runs out the kernel ends the runner, not the worker that can say so."""
EXIT_LIMIT = 5
"""Seconds that the model's threads and exit handlers have when there is no more work."""


def die_with(worker: int, read_fd: int) -> None:
    """Have the kernel kill this process when the worker dies, even in the middle of a prediction.

    Where that cannot be had, because another process stands between the two or the system is not Linux, a thread waits
    for the end of the worker's side of the pipe.
    """
    if os.getppid() == worker and _kill_with_parent():
        if os.getppid() != worker:  # it died before we asked
            os.kill(os.getpid(), signal.SIGKILL)
        return
    import_standard("threading").Thread(
        target=_wait_for_hangup, args=(read_fd,), name="cog-worker-watch", daemon=True
    ).start()


def _kill_with_parent() -> bool:
    return sys.platform == "linux" and _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0


def give_back_memory() -> None:
    """Have the C library return to the system what was freed: a megabyte after a load, more where weights were read."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> Optional[int]:
    """Call a function of the C library; None where that cannot be done."""
    try:
        import _ctypes  # a third of the memory of ctypes

        function = _ctypes.dlsym(_ctypes.dlopen(None, 0), name)  # type: ignore[arg-type]
        return int(_ctypes.call_cdeclfunction(function, arguments))
    except (ImportError, OSError, AttributeError):  # an interpreter without it, or another C library
        return None


def _wait_for_hangup(read_fd: int) -> None:
    poll = import_standard("select").poll()
    poll.register(read_fd, 0)  # nothing but the hang-up, which is always told
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def be_first_out_of_memory() -> None:
    """Have the kernel prefer this process, when memory runs out, over the worker."""
    # Not everywhere there is such a file, or leave to write it; the platform does without then.
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = min(1000, int(file.read()) + OOM_SCORE_RAISE)
        file.seek(0)
        file.write(str(score))


def prepare_streams() -> None:
    """A print() never fails, and a line that is complete is written at once, in one piece."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=False
        )


def flush_streams() -> None:
    """Write what Python holds back, whatever the model has put in the streams' place."""
    _flush(sys.stdout)
    _flush(sys.stderr)
    if sys.stdout is not sys.__stdout__:
        _flush(sys.__stdout__)
    if sys.stderr is not sys.__stderr__:
        _flush(sys.__stderr__)


def _flush(stream: Any) -> None:
    try:  # noqa: SIM105 -- in the path of every prediction
        stream.flush()
    except Exception:
        pass  # closed, gone, or no stream at all: the model owns it, and nothing is left in it for us to write


def write_error(text: str) -> None:
    """Write to the process's standard error, behind all that was printed before; to nobody when the model closed it."""
    flush_streams()
    data = text.encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        while data:
            data = data[write(2, data) :]


def limit_exit() -> None:
    """From here on the process ends within EXIT_LIMIT seconds, whatever the model's threads do."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(EXIT_LIMIT)
