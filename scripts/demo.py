"""The demonstration: a real model installed, a fleet of one worker on a server of its own, one prediction sent to it.

It must not know how any of that is done: it runs the command line as a user would, and keeps a small HTTP server that
takes what is uploaded and gives it back.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cog_celery.local.embedded import EmbeddedServer
from cog_celery.local.processes import tied

ROOT = Path(__file__).resolve().parent.parent
MODEL = Path("workers", "speech")
RECORDING = MODEL / "station.wav"
COMMAND = Path(sys.executable).with_name("cog-celery")
QUEUE = "speech"
PICTURE = "speech.svg"
MADE = ["piece-1.wav", "piece-2.wav", "piece-3.wav", PICTURE]
PREDICTION_TIMEOUT = 120.0
STOP_TIMEOUT = 40.0
INTERRUPTED = 130


class FileServer(ThreadingHTTPServer):
    """PUT /upload/NAME makes the file NAME in `folder`, GET gives it back."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def file(self, url_path: str) -> Path | None:
        """The file that a URL's path stands for: never one outside of the folder."""
        folder, _, name = unquote(urlsplit(url_path).path).rpartition("/")
        if folder != "/upload" or name in ("", ".", "..") or "\0" in name:
            return None
        return self.folder / name


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        file = self.server.file(self.path)
        if file is None or not file.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._answer(HTTPStatus.OK, file.read_bytes())

    def do_PUT(self) -> None:
        file = self.server.file(self.path)
        if file is None:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        file.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(HTTPStatus.CREATED, b"")

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal belongs to the prediction."""


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    with FileServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, name="file-server", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running_fleet(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The fleet as a child process, stopped as a user would stop it. Its output goes to a file."""
    with log.open("wb") as output:
        # In a session of its own, so that Ctrl-C stops the prediction first and then, from here, the fleet.
        process = subprocess.Popen(
            tied(command), cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def show(command: list[str]) -> None:
    print(f"\n$ {shlex.join(command)}", flush=True)


def empty(folder: Path) -> None:
    """Make the folder and remove what an earlier run left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.wav"), *folder.glob("*.svg"), *folder.glob("*.log")]:
        old.unlink()


def run(folder: Path) -> int:
    empty(folder)
    log = folder / "fleet.log"
    program = str(COMMAND.relative_to(ROOT)) if COMMAND.is_relative_to(ROOT) else str(COMMAND)
    env = {name: value for name, value in os.environ.items() if not name.startswith("COG_CELERY_")}

    print("A model that hears where somebody speaks, in an environment of its own:", flush=True)
    install = [program, "install", str(MODEL)]
    show(install)
    if status := subprocess.run(install, cwd=ROOT, env=env, check=False).returncode:
        print("\nThe demonstration failed: the model's packages could not be installed.", file=sys.stderr)
        return status

    with EmbeddedServer() as redis, file_server(folder) as files:
        env["REDIS_URL"] = redis.url
        print(f"\nA fleet that serves it, on a server of its own: REDIS_URL={redis.url}")
        start = [program, "run", str(MODEL), "--queue", QUEUE, "--upload-url", f"{files.url}/upload"]
        show(start)
        with running_fleet(start, env, log) as fleet:
            print(f"(in the background; its output is in {log})")
            send = [program, "send", "--queue", QUEUE, "--output", "text", "-i", f"audio=@{RECORDING}"]
            print("\nA recording of a voice, two bells and a hiss, sent to it:")
            show(send)
            status = follow(send, env, fleet)

    made = [folder / name for name in MADE if (folder / name).is_file()]
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status or fleet.returncode or len(made) != len(MADE):
        print(
            f"\nThe demonstration failed: `send` ended with {status}, `run` with {fleet.returncode}, "
            f"and there are {len(made)} of {len(MADE)} files.",
            file=sys.stderr,
        )
        print(f"The end of {log}:\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
        return 1
    print("\nThe pieces of speech, and a picture of them to open in a browser:")
    for file in made:
        print(f"  {file}  {file.stat().st_size:,} bytes")
    print("The server, the bridge, the worker and its runner have been stopped.")
    return 0


def follow(send: list[str], env: Mapping[str, str], fleet: subprocess.Popen[bytes]) -> int:
    """Run `send` to its end and return its exit status; 1 when the fleet ends before it, or at the limit."""
    deadline = time.monotonic() + PREDICTION_TIMEOUT
    process = subprocess.Popen(send, cwd=ROOT, env=env)
    try:
        while time.monotonic() < deadline and fleet.poll() is None:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        return 1
    except KeyboardInterrupt:
        return process.wait(STOP_TIMEOUT)  # the terminal told it too: it cancels its prediction
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="the folder for what the model makes")
    options = parser.parse_args()
    try:
        return run(options.output)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
