"""Files in and out at full size: one gigabyte beside curl and the AWS command line, and many small ones beside Cog.

It must not know how anything is uploaded: a prediction goes in, and the clock stops at its terminal snapshot.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import BenchError
from .contestants import Contestant, Job, environment
from .fleet import Command, Fleet
from .phases import KEYS
from .report import AWS, CURL, OURS
from .wire import Wire

MODEL = Path(__file__).parent / "models" / "files"
SIZE = 1_000_000_000
BUCKET = "bench"
KEY, SECRET = "benchkey", "benchsecret"
START_TIMEOUT = 20.0
TRANSFER_TIMEOUT = 300.0
NO_FILE = {"file": "data:text/plain;base64,bm9uZQ=="}

Say = dict[str, dict[str, float]]
"""Values by contestant and measure."""


def measure(wire: Wire, field: Sequence[Contestant], aws: Path | None, fresh: Iterator[int]) -> Say:
    """MB/s by measure, and ms for the small ones; without `aws`, nothing beside it. Raises BenchError."""
    rclone = Path(sys.executable).with_name("rclone")
    if not rclone.exists():
        raise BenchError("files are measured with rclone's servers, which the development requirements bring")
    found: Say = {}
    with tempfile.TemporaryDirectory(prefix="bench-files-", dir=_memory()) as folder:
        root = Path(folder)
        with _serving(rclone, root, "webdav") as dav, _serving(rclone, root, "s3") as s3:
            source = _make(root)
            ours = _Ours(wire, source, root, f"http://127.0.0.1:{dav}", f"http://127.0.0.1:{s3}")
            found[OURS] = ours.measure(fresh)
            if curl := shutil.which("curl"):
                found[CURL] = _curl(curl, source, f"http://127.0.0.1:{dav}")
            if aws is not None:
                found[AWS] = _aws(aws, source, f"http://127.0.0.1:{s3}")
    with Store() as store:
        for contestant in field:
            milliseconds = _small(wire, contestant, store, f"bench-files-{next(fresh)}")
            found.setdefault(contestant.name, {})["files_small"] = milliseconds
    return found


def _memory() -> str | None:
    """A folder in memory with room for all of it, if there is one: disks have days, and minutes, of their own."""
    folder = "/dev/shm"
    return folder if os.path.isdir(folder) and shutil.disk_usage(folder).free > 8 * SIZE else None


def _make(root: Path) -> Path:
    (root / BUCKET).mkdir(exist_ok=True)
    source = root / BUCKET / "source.bin"
    block = os.urandom(1_000_000)
    with source.open("wb") as file:
        for _ in range(SIZE // len(block)):
            file.write(block)
    return source


@contextmanager
def _serving(rclone: Path, root: Path, kind: str) -> Iterator[int]:
    """The port of one of rclone's servers."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = int(taken.getsockname()[1])
    command = [str(rclone), "serve", kind, "--addr", f"127.0.0.1:{port}", str(root)]
    if kind == "s3":
        command += ["--auth-key", f"{KEY},{SECRET}"]
    env = {**environment(), "RCLONE_CONFIG": os.devnull}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if server.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"rclone serve {kind} did not start")
                time.sleep(0.02)
            yield port
        finally:
            server.terminate()


@dataclass(frozen=True)
class _Ours:
    wire: Wire
    source: Path
    root: Path
    dav: str
    s3: str

    def measure(self, fresh: Iterator[int]) -> dict[str, float]:
        return {**self._to(f"{self.dav}/{BUCKET}", "put", fresh), **self._to(f"s3://{BUCKET}/up", "s3", fresh)}

    def _to(self, upload_url: str, kind: str, fresh: Iterator[int]) -> dict[str, float]:
        queue = f"bench-files-{next(fresh)}"
        program = (sys.executable, "-m", "cog_celery")
        common = ("--queue", queue, "--redis-url", f"redis://{self.wire.host}:{self.wire.port}/0")
        files = ("--upload-url", upload_url, "--allow-address", "127.0.0.0/8")
        env = {**environment(), **aws_environment(self.s3), "TMPDIR": str(self.root)}
        folder = Path(__file__).resolve().parent.parent
        self.wire.call("FLUSHALL")
        self.wire.call("XGROUP", "CREATE", queue, queue, "0", "MKSTREAM")
        commands = [
            Command((*program, "bridge", *common), folder, env),
            Command((*program, "worker", str(MODEL), *common, *files), folder, env),
        ]
        figures = {}
        with Fleet(commands) as fleet:
            fleet.wait_ready(self.wire, queue, 1)
            if kind == "put":
                given = {"what": "size", "file": f"{self.dav}/{BUCKET}/{self.source.name}"}
                figures["down_http"] = SIZE / 1e6 / _predict(self.wire, queue, given, SIZE)
            _predict(self.wire, queue, {"what": "large", **NO_FILE}, None)  # makes the file
            figures[f"up_{kind}"] = SIZE / 1e6 / _predict(self.wire, queue, {"what": "large", **NO_FILE}, None)
        return figures


def aws_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def _predict(wire: Wire, queue: str, given: Mapping[str, object], expected: object) -> float:
    """Seconds from the XADD to the terminal snapshot; `expected` is the output, None any."""
    key = f"{KEYS}files:{queue}"
    with Wire(f"redis://{wire.host}:{wire.port}", timeout=TRANSFER_TIMEOUT) as events:
        events.call("SUBSCRIBE", f"__keyspace@0__:{key}")
        started = time.perf_counter()
        wire.call("XADD", queue, "*", "value", json.dumps({"input": given, "response_queue": key}))
        while True:
            events.receive()
            snapshot = json.loads(wire.call("GET", key))
            if snapshot["status"] not in ("starting", "processing"):
                break
        seconds = time.perf_counter() - started
    if snapshot["status"] != "succeeded" or expected not in (None, snapshot["output"]):
        raise BenchError(f"a prediction with files did not come out as it should: {json.dumps(snapshot)[:500]}")
    return seconds


def _timed(command: Sequence[str], env: Mapping[str, str]) -> float:
    """MB/s of a command that moves one file of SIZE."""
    started = time.perf_counter()
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TRANSFER_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{command[0]} took longer than {TRANSFER_TIMEOUT:g} s") from None
    seconds = time.perf_counter() - started
    if done.returncode:
        raise BenchError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-500:]}")
    return SIZE / 1e6 / seconds


def _curl(curl: str, source: Path, url: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="curl-", dir=source.parent.parent) as folder:
        target = str(Path(folder, "down.bin"))
        plain = [curl, "--silent", "--show-error", "--fail"]
        down = _timed([*plain, "--output", target, f"{url}/{BUCKET}/{source.name}"], environment())
        up = _timed([*plain, "--upload-file", target, f"{url}/{BUCKET}/curl.bin"], environment())
    return {"down_http": down, "up_put": up}


def _aws(aws: Path, source: Path, endpoint: str) -> dict[str, float]:
    env = {**environment(), **aws_environment(endpoint)}
    with tempfile.TemporaryDirectory(prefix="aws-", dir=source.parent.parent) as folder:
        target = str(Path(folder, "down.bin"))
        plain = [str(aws), "s3", "cp", "--only-show-errors"]
        down = _timed([*plain, f"s3://{BUCKET}/{source.name}", target], env)
        up = _timed([*plain, target, f"s3://{BUCKET}/up/aws.bin"], env)
    return {"down_http": down, "up_s3": up}


def _small(wire: Wire, contestant: Contestant, store: Store, queue: str) -> float:
    """Milliseconds of a prediction that gives out a hundred files of 100 kB."""
    wire.call("FLUSHALL")
    wire.call("XGROUP", "CREATE", queue, queue, "0", "MKSTREAM")
    job = Job(MODEL, queue, 1, wire.host, wire.port, upload_url=store.url)
    with Fleet(contestant.commands(job)) as fleet:
        fleet.wait_ready(wire, queue, 1)
        times = [_predict(wire, queue, {"what": "small", **NO_FILE}, None) for _ in range(4)]
    return 1000 * min(times[1:])


class Store:
    """Takes files as Cog's servers do: raw at their name, or as a form, which is answered with a URL."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Store:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0 and (block := self.rfile.read(min(left, 1 << 18))):
            left -= len(block)
        form = self.headers.get("Content-Type", "").startswith("multipart/")
        body = json.dumps({"url": f"http://127.0.0.1{self.path}"}).encode() if form else b""
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: only the clock matters."""
