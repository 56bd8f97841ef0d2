"""All processes that a runner has started, however far they went: by its mark in their environment, and by descent.

A process group ends at setsid(), which launchers of several ranks call for each, and a daemon leaves its parents. The
mark is inherited whatever they do. It must not know what runs in them. As a program (`python -I -S kin.py`) it is the
guardian: standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time

MARK = "COG_RUNNER"
"""The variable that every process of a runner has, and no other has with its value."""
PATIENCE = 10.0
"""Seconds for all of them to end: one that has much memory takes its time, and one may start another meanwhile."""
LONGEST_PAUSE = 0.05
"""Seconds between looks at whether they have."""


def kill_kin(group: int, mark: str, patience: float = PATIENCE) -> int:
    """Kill the process group, and all that belongs to it by mark, session or descent, and wait for their end; how many
    have not ended within `patience` seconds. Without a mark it goes by the rest.
    """
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    needle = f"{MARK}={mark}".encode() if mark else b""
    until, pause = time.monotonic() + patience, 0.001
    found: dict[int, str] = {}
    while True:
        found = _find(group, needle, found)
        for pid, born in found.items():
            _kill_one(pid, born)
        if not found or time.monotonic() > until:
            return len(found)
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 2)


def _find(group: int, needle: bytes, known: dict[int, str]) -> dict[int, str]:
    """Those that live, and when each was born; `known`: those that were found before. One that is ending has lost its
    environment, and so its mark, while it still holds its devices.
    """
    parents: dict[int, int] = {}
    births: dict[int, str] = {}
    kin: set[int] = set()
    me = os.getpid()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        pid = int(entry) if entry.isdigit() else me
        if pid == me:
            continue
        read = _stat(pid)
        if read is None:
            continue
        parents[pid], session, births[pid] = read
        if session == group or known.get(pid) == births[pid] or (needle and _marked(pid, needle)):
            kin.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in kin} - kin
        kin |= more
        grown = bool(more)
    return {pid: births[pid] for pid in kin}


def _stat(pid: int) -> tuple[int, int, str] | None:
    """A living process's parent, session and birth."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else (int(fields[1]), int(fields[3]), fields[19].decode())


def _marked(pid: int, needle: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return needle in file.read().split(b"\0")
    except OSError:  # another user's, or gone
        return False


def _kill_one(pid: int, born: str) -> None:
    """Kill this one, and no later one of its number."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return  # gone
    except AttributeError:  # Python was built where there was none
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        return
    with contextlib.suppress(OSError):
        read = _stat(pid)
        if read is not None and read[2] == born:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    os.close(fd)


def guard() -> None:
    """Read lines from standard input until its end: `+` or `-`, then `g` with a group and its mark, or `d` with a
    folder. Then kill those groups with their kin, and remove those folders.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept: set[bytes] = set()
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            (kept.add if line[:1] == b"+" else kept.discard)(line[1:])
    groups = [what[1:].partition(b" ") for what in kept if what[:1] == b"g"]
    for group, _, _ in groups:  # all at once, before any is waited for
        with contextlib.suppress(OSError):
            os.killpg(int(group), signal.SIGKILL)
    for group, _, mark in groups:
        kill_kin(int(group), mark.decode())
    for what in kept:
        if what[:1] == b"d":
            shutil.rmtree(what[1:], ignore_errors=True)


if __name__ == "__main__":
    guard()
