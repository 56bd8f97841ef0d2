"""What we compare ourselves with: releases of Cog, and the AWS command line, each in a virtual environment of its own.

It must not know how they are measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

RELEASES = {"cog 0.4.4": "0.4.4", "cog 0.6.1": "0.6.1"}
# Neither release runs on a newer Python; both import pkg_resources, which later setuptools have dropped.
_PYTHON = "python3.10"
_SETUPTOOLS = "setuptools<81"
_INSTALL_TIMEOUT = 600.0


class PeerMissing(Exception):
    """A peer cannot be run here; the message says why and what to do."""


def interpreter(release: str, cache: Path, say: Callable[[str], None], *others: str) -> Path:
    """A Python with this release of Cog, and other packages, installed under `cache` at the first call.

    Raises PeerMissing.
    """
    folder = cache / f"cog-{release}"
    python = folder / "bin" / "python"
    if python.exists() and installed(python) == release:
        return python
    base = _find_python()
    say(f"installing cog {release} with {base} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    _run([base, "-m", "venv", str(folder)], f"cog {release}")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, f"cog=={release}", _SETUPTOOLS, *others], f"cog {release}")
    return python


def aws(cache: Path, say: Callable[[str], None]) -> Path:
    """The AWS command line, installed under `cache` at the first call. Raises PeerMissing."""
    folder = cache / "awscli"
    program = folder / "bin" / "aws"
    if program.exists():
        return program
    say(f"installing the AWS command line into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    _run([sys.executable, "-m", "venv", str(folder)], "the AWS command line")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "awscli"], "the AWS command line")
    return program


def installed(python: Path) -> str | None:
    """The release of Cog in this interpreter's environment, None without one."""
    code = "import importlib.metadata as metadata; print(metadata.version('cog'))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=60.0)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _find_python() -> str:
    versions = Path.home() / ".pyenv" / "versions"
    for candidate in (shutil.which(_PYTHON), *map(str, sorted(versions.glob("3.10*/bin/python"), reverse=True))):
        # pyenv puts a program of that name on PATH which fails unless that version is selected.
        if candidate and subprocess.run([candidate, "-m", "venv", "-h"], capture_output=True).returncode == 0:
            return candidate
    raise PeerMissing(f"Cog's queue workers need Python 3.10, and there is no {_PYTHON} on PATH nor in ~/.pyenv")


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise PeerMissing(f"installing {what} took longer than {_INSTALL_TIMEOUT:g} s") from None
    if done.returncode:
        lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise PeerMissing(f"{what} could not be installed:\n{lines}")
