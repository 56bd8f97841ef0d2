"""Models' own environments: virtual environments named after what is in them, where they lie, and how one is made.

It must not know what a model is for. An environment lies in `cog-celery/envs/NAME` of the user's cache folder, and
counts as installed when the file that is written last is there; NAME.lock is held by who makes it, and by pip or uv.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from cog_celery.errors import InstallError, UsageError
from cog_celery.models import indexes, interpreters
from cog_celery.models.build import Build, read_build
from cog_celery.runners.environment import INTERPRETER, OURS
from cog_celery.runners.guardian import Guardian

log = logging.getLogger(__name__)

MARKER: Final = "cog-celery.json"
LAST_LINES: Final = 12
_ERROR: Final = re.compile(r"\s*(?:error|cause|\u00d7|\u2570\u2500\u25b6)[:\s]+(.*\S)")
_AT: Final = re.compile(r"^\S+\s+(?:Collecting|Processing|Building wheel for) ([^\s(]+)", re.MULTILINE)
_USER: Final = re.compile(r"(://)[^/\s@]+@")
_LIST: Final = """
import json
from importlib.metadata import distributions
print(json.dumps(sorted({(d.metadata["Name"] or "?", d.version or "?") for d in distributions()})))
"""

Tool = Literal["uv", "pip"]


class Place(msgspec.Struct, frozen=True):
    """Where an environment is, or would be."""

    folder: Path

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    def is_installed(self) -> bool:
        """Whether it is there as a whole, and so is the Python that it was made of."""
        return (self.folder / MARKER).is_file() and os.access(self.python, os.X_OK)

    def packages(self) -> list[tuple[str, str]]:
        """Names and versions of what is installed. Raises InstallError."""
        try:
            done = subprocess.run([self.python, "-I", "-c", _LIST], capture_output=True, text=True, check=True)
            return [(name, version) for name, version in json.loads(done.stdout)]
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise InstallError(f"{self.python} cannot be asked what it has: {error}. Delete {self.folder}.") from None


def place_of(build: Build) -> Place:
    """Where the environment of a model that asks for this lies. Raises UsageError."""
    return Place(_cache() / "cog-celery" / "envs" / build.digest())


def python_for(folder: Path) -> str:
    """The interpreter for a model when nobody named one: its environment's if it is installed, else ours.

    Logs a warning when the model asks for packages or another Python than ours, and has no environment.
    """
    try:
        build = read_build(folder)
        place = place_of(build)
    except UsageError as error:
        log.warning("%s; the model runs in %s", error, sys.executable)
        return sys.executable
    if place.is_installed():
        return place.python
    if build.wants_packages or build.python[:2] != sys.version_info[:2]:
        what = "packages that are" if build.wants_packages else f"Python {_dotted(build.python)}, which is"
        log.warning(
            "cog.yaml asks for %s not installed for it: run `cog-celery install %s`, or name an interpreter with "
            "--python; now the model runs in %s",
            *(what, shlex.quote(str(folder)), sys.executable),
        )
    return sys.executable


def install(build: Build, tool: Tool | None, say: Callable[[str], None]) -> tuple[Place, bool]:
    """Make the environment, if it is not there; whether it was made. What pip or uv says goes to file descriptor 2.

    `tool`: None for uv if it is there, else pip. Raises UsageError and InstallError; nothing is left behind then.
    """
    place = place_of(build)
    if place.is_installed():
        return place, False
    uv = _uv(tool)
    python = _interpreter(build, say)
    try:
        place.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(place, say) as lock, closing(Guardian()) as guardian:
            if place.is_installed():
                return place, False
            try:
                _remove(place.folder)
                say(f"making an environment with Python {_dotted(python.version)} in {place.folder}")
                _Maker(build, place, lock, guardian, say).make(python.path, uv)
            except BaseException:
                shutil.rmtree(place.folder, ignore_errors=True)
                raise
    except OSError as error:
        raise InstallError(f"The environment in {place.folder} cannot be made: {error.strerror or error}.") from None
    return place, True


class _Maker:
    """Makes one environment, while it holds the lock."""

    def __init__(self, build: Build, place: Place, lock: int, guardian: Guardian, say: Callable[[str], None]) -> None:
        self._build = build
        self._place = place
        self._lock = lock
        self._guardian = guardian
        self._say = say
        self._environment = _environment()

    def make(self, python: str, uv: str | None) -> None:
        folder = self._place.folder
        # -I here and below: a module in the model's folder may have the name of one of pip's, or of Python's own.
        if uv is not None:
            status, last = self._run([uv, "venv", "--quiet", "--python", python, str(folder)])
        else:
            status, last = self._run([python, "-I", "-m", "venv", str(folder)])
        if status != 0:
            hint = "" if uv else " Has it its venv module (on Debian and Ubuntu: apt-get install python3-venv)?"
            raise InstallError(
                f"No environment could be made with {python}: {_error(last) or f'status {status}'}. What it said is "
                f"above.{hint}"
            )
        if self._build.wants_packages:
            self._install_packages(python, uv)
        about = {"python": python, "packages": self._build.packages, "requirements": self._build.requirements}
        # Renamed: a file that was begun must not count.
        begun = folder / f"{MARKER}.new"
        begun.write_bytes(msgspec.json.encode(about, enc_hook=str))
        begun.rename(folder / MARKER)

    def _install_packages(self, base: str, uv: str | None) -> None:
        python, notes = self._place.python, self._place.folder / "pip.log"
        if uv is not None:
            command = [uv, "pip", "install", "--python", python, *self._as_pip_is_configured(base)]
        else:
            command = [python, "-I", "-m", "pip", "install", "--log", str(notes)]
        status, last = self._run([*command, *self._requirements()])
        if status != 0:
            error = _error(last) or f"status {status}"
            package = None if uv is not None else _last_package(notes)
            at = f", at {package}" if package and "No matching distribution" not in error else ""
            raise InstallError(
                f"{'pip' if uv is None else 'uv'} could not install what cog.yaml asks for{at}: {error}. The rest of "
                "what it said is above; nothing was kept."
            )
        notes.unlink(missing_ok=True)

    def _as_pip_is_configured(self, base: str) -> Iterator[str]:
        """Have uv take packages from where pip does; gives what only its command line can say."""
        found = indexes.of_pip((base, sys.executable), self._environment)
        self._environment |= found.variables
        if found.named:
            self._say(f"uv follows pip's configuration: {', '.join(found.named)}")
        if found.none:
            yield "--no-index"

    def _requirements(self) -> Iterator[str]:
        if self._build.packages:
            # In a file: there pip reads them as Cog has it read them, options and all.
            file = self._place.folder / "python_packages.txt"
            file.write_text("\n".join(self._build.packages) + "\n", encoding="utf-8")
            yield from ("--requirement", str(file))
        if self._build.requirements is not None:
            yield from ("--requirement", str(self._build.requirements))

    def _run(self, command: Sequence[str]) -> tuple[int, list[str]]:
        """Run it in the model's folder; its exit status, and the last lines of its standard error."""
        # It has the lock too: until it is gone, nobody may build where it still writes. Its group, in which are the
        # processes that it starts itself, is killed when we stop, and by the guardian when we are gone.
        process = subprocess.Popen(
            command,
            cwd=self._build.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=2,  # its progress bars, if that is a terminal
            stderr=subprocess.PIPE,
            pass_fds=(self._lock,),
            start_new_session=True,
        )
        self._guardian.watch(process.pid)
        assert process.stderr is not None
        last: deque[str] = deque(maxlen=LAST_LINES)
        try:
            for raw in process.stderr:
                line = _USER.sub(r"\1***@", raw.decode(errors="replace").rstrip())
                last.append(line)
                os.write(2, f"{line}\n".encode())
            self._guardian.forget(process.pid)
            return process.wait(), list(last)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._guardian.forget(process.pid)
                process.wait()
            process.stderr.close()


def _error(last: list[str]) -> str:
    """What pip or uv says is wrong; its last line when nothing looks like that."""
    by_pip = [line.removeprefix("ERROR:") for line in last if line.startswith("ERROR:")][-1:]
    found = by_pip or [match[1] for line in last if (match := _ERROR.match(line))][-2:]
    said = found or [line for line in last if line.strip()][-1:]
    return ": ".join(text.strip().rstrip(".") for text in said)


def _last_package(notes: Path) -> str | None:
    """What pip was at when it failed, by its own log."""
    try:
        text = notes.read_text(errors="replace")
    except OSError:
        return None
    packages = _AT.findall(text)
    return _USER.sub(r"\1***@", packages[-1]) if packages else None


def _uv(tool: Tool | None) -> str | None:
    uv = None if tool == "pip" else interpreters.uv()
    if tool == "uv" and uv is None:
        raise UsageError("--with uv: there is no uv on PATH; pip does it too")
    return uv


def _interpreter(build: Build, say: Callable[[str], None]) -> interpreters.Interpreter:
    wanted = build.python
    found = interpreters.find(wanted)
    if found is None:
        there = ", ".join(_dotted(one.version) for one in interpreters.found()) or "none"
        version = _dotted(wanted)
        raise InstallError(
            f"cog.yaml asks for Python {version}, and this machine has {there}. Install it (apt-get install "
            f"python{_dotted(wanted[:2])}-venv, uv python install {version}, or pyenv install {version}), or change "
            "build.python_version."
        )
    if found.version[: len(wanted)] != wanted:
        say(f"Python {_dotted(wanted)} is not on this machine: {_dotted(found.version)} takes its place")
    return found


@contextmanager
def _locked(place: Place, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock. Its file stays: who deletes it would lock one that others no longer see."""
    lock = os.open(f"{place.folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process makes this environment: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """What an interrupted one has left."""
    if folder.is_symlink() or folder.exists():
        shutil.rmtree(folder)


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # another one is to be passed over
        return Path(given)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise UsageError("there is no home folder for environments: set XDG_CACHE_HOME")
    return Path(home) / ".cache"


def _environment() -> dict[str, str]:
    """For pip and uv, which run what packages bring: without our servers, and for an interpreter that is not ours."""
    ours = {name for name in os.environ if OURS.match(name)} | INTERPRETER
    elsewhere = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIREMENT", "PIP_DRY_RUN"}
    return {name: value for name, value in os.environ.items() if name not in ours | elsewhere} | {
        "PIP_USER": "0",
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def _dotted(version: interpreters.Version) -> str:
    return ".".join(map(str, version))
