"""What Linux says about a tree of processes: who is in it, its CPU time, its memory.

It must not know what the processes are for.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Fields of /proc/<pid>/stat, counted from behind the command's closing parenthesis (the command may hold blanks).
_PARENT = 1
_THREADS = 17
_CHILDREN = slice(13, 15)  # cutime, cstime: of children that were waited for


def tree(roots: Iterable[int]) -> set[int]:
    """The processes among `roots` that exist, and all their descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    alive = set()
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            pid = int(folder.name)
            alive.add(pid)
            children[int(fields[_PARENT])].append(pid)
    found: set[int] = set()
    ahead = [pid for pid in roots if pid in alive]
    while ahead:
        pid = ahead.pop()
        if pid not in found:
            found.add(pid)
            ahead.extend(children[pid])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, to a nanosecond, and of those of their children that are gone, to 10 ms
    each.
    """
    return sum(_own_cpu_seconds(pid) + _childrens_cpu_seconds(pid) for pid in pids)


def memory_bytes(pids: Iterable[int]) -> int:
    """Their proportional set size: pages that several processes share are counted once, in parts."""
    return sum(_proportional_set_size(pid) for pid in pids)


def command(pid: int) -> str:
    """Its command line; empty when it is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def threads(pid: int) -> int:
    """How many threads it has; 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[_THREADS]) if fields else 0


def _own_cpu_seconds(pid: int) -> float:
    """All of its threads', of those that have ended too."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid() returns for a process
    except OSError:
        return 0.0


def _childrens_cpu_seconds(pid: int) -> float:
    return sum(map(int, _stat(pid)[_CHILDREN])) / _TICKS_PER_SECOND


def _stat(pid: int) -> list[str]:
    """The fields behind the command; empty when the process is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _proportional_set_size(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0]) * 1024
    return 0
