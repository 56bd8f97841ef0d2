"""Finds the Pythons of this machine: on PATH, pyenv's, uv's.

It must not know what they are wanted for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

OLDEST, NEWEST = (3, 9), (3, 14)
"""What a model can run in."""
PATIENCE: Final = 30.0
"""Seconds for an answer, of a machine that has just been started, say."""
_ASK: Final = "import sys; print(sys.implementation.name, *sys.version_info[:3])"

Version = tuple[int, ...]


class Interpreter(msgspec.Struct, frozen=True):
    """A CPython that answered."""

    path: str
    version: Version


def ask(program: str) -> tuple[str, Version]:
    """The implementation and the version of a Python. Raises OSError, SubprocessError, or ValueError for no Python."""
    done = subprocess.run([program, "-I", "-c", _ASK], capture_output=True, text=True, timeout=PATIENCE, check=True)
    name, *numbers = done.stdout.split() or [""]
    version = tuple(int(number) for number in numbers)
    if len(version) != 3:
        raise ValueError(f"it said {done.stdout[:80]!r}")
    return name, version


def find(wanted: Version) -> Interpreter | None:
    """A CPython of that version (3.11, or 3.11.7): exactly that, else one that differs in the last number alone."""
    minor, nearest = wanted[:2], None
    for path in _candidates(minor):
        found = _answered(path)
        if found is None or found.version[:2] != minor:
            continue  # a shim, of pyenv say, for a version that is not there
        if found.version[: len(wanted)] == wanted:
            return found
        nearest = nearest or found
    return nearest


def found() -> list[Interpreter]:
    """One of each version that a model can run in."""
    minors = [(3, minor) for minor in range(OLDEST[1], NEWEST[1] + 1)]
    return [interpreter for minor in minors if (interpreter := find(minor)) is not None]


def uv() -> str | None:
    """The program uv, if it is there."""
    return shutil.which("uv")


def _answered(path: str) -> Interpreter | None:
    try:
        name, version = ask(path)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(path, version) if name == "cpython" else None


def _candidates(minor: Version) -> Iterator[str]:
    """Paths that may be one, the nearest first, each once."""
    seen: set[str] = set()
    for path in _places(minor):
        if path not in seen and os.access(path, os.X_OK):
            seen.add(path)
            yield path


def _places(minor: Version) -> Iterator[str]:
    text = ".".join(map(str, minor))
    if sys.version_info[:2] == minor:
        yield sys.executable
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield os.path.join(os.path.abspath(folder), f"python{text}")
    pyenv = Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")) / "versions"
    yield from map(str, sorted(pyenv.glob(f"{text}.*/bin/python"), key=_numbers, reverse=True))
    if (program := uv()) is not None:
        command = [program, "python", "find", "--system", text]
        environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd="/")
        except (OSError, subprocess.SubprocessError):
            return
        if done.returncode == 0 and done.stdout.strip():
            yield done.stdout.strip()


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.parts[-3])]
