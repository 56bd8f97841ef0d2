"""Where an output's file really lies, and whether it may be given out; for the runner, and for the worker that uploads.

It must not know whose output it is, nor open anything.
"""

from __future__ import annotations

import os
from typing import Optional

MAX_LINKS = 40
"""As in Linux: more of them are a circle, which whoever opens the file is told."""

SYSTEM = ("/proc", "/sys", "/dev")
SHARED_MEMORY = "/dev/shm"
"""An ordinary folder, for all that its name says."""


class NotToBeGiven(Exception):
    """A file that must not leave the machine; the message is a clause that goes on after the file's name."""


def real_place(path: str, scratch: Optional[str]) -> str:
    """The absolute `path` with every link in it followed. Raises NotToBeGiven, ValueError for what is no path.

    What the system makes up of itself is not given, by whatever way: a process that opens it reads about itself. What
    is reached through `scratch`, the runner's temporary folder, must lie there: what a model unpacked there is not
    its own.
    """
    steps = _steps(path)
    real = steps[-1]
    if any(_of_the_system(step) for step in steps) or _on_a_system_mount(real):
        raise NotToBeGiven("lies among the files of the system itself (/proc, /sys, /dev), which are not given out")
    if scratch is not None:
        folder = os.path.realpath(scratch)
        if any(_below(step, folder) for step in steps):
            if not _below(real, folder):
                raise NotToBeGiven("is a link that leads out of the temporary folder: copy the file instead")
            if _names(real) > 1:
                raise NotToBeGiven("has another name, which may be outside of the temporary folder: copy the file")
    return real


def _steps(path: str) -> list[str]:
    """All places on the way to a file, one link after the other; the last of them is where it lies."""
    here, steps, links = "/", ["/"], 0
    left = path.split("/")[::-1]
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here)
            continue
        step = os.path.join(here, part)
        steps.append(step)
        target = _target(step) if links < MAX_LINKS else None
        if target is None:
            here = step
            continue
        links += 1
        left += target.split("/")[::-1]
        if target.startswith("/"):
            here = "/"
    if steps[-1] != here:
        steps.append(here)
    return steps


def _target(path: str) -> Optional[str]:
    try:
        return os.readlink(path)
    except OSError:  # no link, or nothing at all: whoever opens it is told
        return None


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _of_the_system(path: str) -> bool:
    return any(_below(path, folder) for folder in SYSTEM) and not _below(path + "/", SHARED_MEMORY)


def _on_a_system_mount(path: str) -> bool:
    """Whether it lies in /proc or /sys under another name: containers get the host's mounted elsewhere."""
    try:
        device = os.stat(path).st_dev
        return any(os.path.ismount(folder) and os.stat(folder).st_dev == device for folder in SYSTEM[:2])
    except OSError:
        return False


def _names(path: str) -> int:
    try:
        return os.stat(path).st_nlink
    except OSError:
        return 1
