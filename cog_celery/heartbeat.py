"""The file by which a process shows that its loop moves: written by the loop itself, read by `cog-celery health`.

It must not know what the loop does. In /tmp anybody may have been first: folders and links of others are not trusted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "waiting", "not consuming", "unhealthy", "draining"]
"""`starting`: until setup() is done. `waiting`: for a server that is out of reach. `not consuming`: tickets that were
sent to it do not come. `unhealthy`: the model says that it is not well.
"""
STATES: Final[tuple[State, ...]] = ("starting", "ready", "waiting", "not consuming", "unhealthy", "draining")
ROLES: Final = ("bridge", "worker")

EVERY = 1.0
"""Seconds between two writes; a change of state is written at once."""
SILENCE = 30.0
"""Seconds after which a loop that was not heard of is stuck: more than any single wait for a server takes."""
FORGOTTEN = 3600.0
"""Seconds for which a process that is gone is told of."""
LARGEST = 1 << 16
SUFFIX = ".json"


class Heartbeat:
    """Writes the file. touch() is for the loop alone, and costs a few system calls a second."""

    def __init__(self, file: str | None, role: str, queues: Sequence[str], name: str, life: str) -> None:
        self._about = {"role": role, "queues": list(queues), "name": name, "life": life, "pid": os.getpid()}
        # The same for every life: a process that was killed and started again leaves nothing behind.
        digest = hashlib.sha256(json.dumps([*sorted(queues), name]).encode()).hexdigest()[:16]
        self._file = f"{role}-{digest}{SUFFIX}" if file is None else os.path.basename(file)
        self._folder = None if file is None else os.path.dirname(file) or "."
        self._state: State | None = None
        self._due = 0.0
        self._looked = False
        self._complained = False

    def touch(self, state: State) -> None:
        """The loop has come around, in this state. Never raises: where nothing can be written, that is logged once."""
        now = time.monotonic()
        if state == self._state and now < self._due:
            return
        self._state, self._due = state, now + EVERY
        try:
            with _opened(self._folder, create=True) as folder:
                if not self._looked:
                    self._looked = True
                    self._look_for_another(folder)
                self._write(folder, json.dumps({**self._about, "state": state, "at": now}).encode())
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("the heartbeat file cannot be written, `cog-celery health` will not find it: %s", error)

    def remove(self) -> None:
        """The process ends; the next one of its name may have begun to write."""
        with contextlib.suppress(OSError, ValueError), _opened(self._folder, create=False) as folder:
            if _read(folder, self._file).get("life") == self._about["life"]:
                os.unlink(self._file, dir_fd=folder)

    def _look_for_another(self, folder: int) -> None:
        """Two processes of one name overwrite each other's file, and one of them is not watched."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            other = Seen(_read(folder, self._file))
            if other.life != self._about["life"] and other.pid != os.getpid() and other.problem is None:
                log.warning(
                    "process %d has the same name and the same heartbeat file: `cog-celery health` sees only one of "
                    "them; give each a --name of its own",
                    other.pid,
                )

    def _write(self, folder: int, data: bytes) -> None:
        """Replace the file in one step; what is there under its name is not opened, nor followed."""
        temporary = f".{self._file}.{secrets.token_hex(4)}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
            os.replace(temporary, self._file, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._overwrite(folder, data):
                raise

    def _overwrite(self, folder: int, data: bytes) -> bool:
        """On a full disk, write over what this process has written before, which takes no room. False where that is not
        there. Raises OSError.
        """
        with contextlib.suppress(FileNotFoundError, ValueError):
            if _read(folder, self._file).get("life") == self._about["life"]:
                fd = os.open(self._file, os.O_WRONLY | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    # In one piece, and what is left of a longer one is white space to JSON.
                    os.pwrite(fd, data.ljust(os.fstat(fd).st_size), 0)
                finally:
                    os.close(fd)
                return True
        return False


class Seen:
    """One process's heartbeat as it was found. `problem`: what is wrong, None when it lives and its loop moves."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.role, self.name = str(found["role"]), str(found["name"])
        self.queues = [str(queue) for queue in found["queues"]]
        self.life, self.pid, self.state = str(found["life"]), int(found["pid"]), str(found["state"])
        # CLOCK_MONOTONIC is one for all processes of a machine, and does not jump; it starts again with the machine.
        self.age = time.monotonic() - float(found["at"])
        if self.state not in STATES or self.role not in ROLES or self.pid <= 0:
            raise ValueError("no heartbeat")

    def __str__(self) -> str:
        return f"{self.role} {self.life} on {', '.join(self.queues)}"

    @property
    def problem(self) -> str | None:
        if not _lives(self.pid):
            return f"{self} is gone (process {self.pid})"
        if not 0 <= self.age <= SILENCE:
            return f"{self} is stuck: its loop was last heard of {abs(self.age):.0f} s ago"
        if self.state == "not consuming":
            return f"{self} does not consume: tickets that were sent to it do not come"
        if self.state == "unhealthy":
            return f"{self} has a model that is not well: its log says what it answered"
        return None

    @property
    def unready(self) -> str | None:
        """Why it takes no work now, None when it does."""
        if self.problem is not None or self.state == "ready":
            return self.problem
        reasons = {"starting": "is still starting", "waiting": "waits for a server", "draining": "is about to end"}
        return f"{self} takes no work: it {reasons[self.state]}"


def look(file: str | None, role: str | None, queues: Sequence[str], name: str | None) -> list[Seen]:
    """The heartbeats in `file`, or of all processes of this role, name and any of these queues; without them, of all.

    Raises OSError for a folder that is not ours alone.
    """
    seen: list[Seen] = []
    folder = None if file is None else os.path.dirname(file) or "."
    try:
        with _opened(folder, create=False) as fd:
            names = os.listdir(fd) if file is None else [os.path.basename(file)]
            for entry in sorted(names):
                if file is None and (entry.startswith(".") or not entry.endswith(SUFFIX)):
                    continue
                with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                    seen.append(Seen(_read(fd, entry)))
    except FileNotFoundError:
        return []
    wanted = [
        one
        for one in seen
        if (role is None or one.role == role)
        and (file is not None or name is None or one.name == name)
        and (file is not None or not queues or set(queues) & set(one.queues))
    ]
    # What a killed process left is told of for a while, unless another one of its role lives: its successor may have
    # another name.
    living = {one.role for one in wanted if _lives(one.pid)}
    return [one for one in wanted if _lives(one.pid) or (one.role not in living and 0 <= one.age < FORGOTTEN)]


def _read(folder: int, name: str) -> dict[str, Any]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        found = json.loads(os.read(fd, LARGEST))
    finally:
        os.close(fd)
    if not isinstance(found, dict):
        raise ValueError("no heartbeat")
    return found


@contextlib.contextmanager
def _opened(folder: str | None, *, create: bool) -> Iterator[int]:
    """A file descriptor of the folder: the operator's, or ours in the temporary folder if it is ours alone."""
    path = folder or str(Path(tempfile.gettempdir(), f"cog-celery-{os.getuid()}"))
    if folder is None and create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if folder is None else 0))
    try:
        about = os.fstat(fd)
        if folder is None and (about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077):
            raise PermissionError(f"{path} is not ours alone: remove it, or name another place with --heartbeat-file")
        yield fd
    finally:
        os.close(fd)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's: it lives
    with contextlib.suppress(OSError):
        # A zombie is dead, though nobody has waited for it. The name before the state may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    return True
