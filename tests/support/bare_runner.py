"""A runner and nothing around it: a test speaks the protocol of docs/runner-protocol.md to it itself.

It must not know cog_celery.runners.runner, whose work it does here in the plainest way.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import cog_celery

RUNTIME = Path(cog_celery.__file__).parent / "runtime"
MAIN = RUNTIME / "cog" / "_runner" / "__main__.py"
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
PATIENCE = 10.0
REPEAT = 0.1

Message = dict[str, Any]


def interpreter(version: str) -> str | None:
    """The path of an interpreter of that version: the one that runs us, one on PATH, or one of pyenv's."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for python in (*sorted(pyenv.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")):
        if python and answers(str(python), version):
            return str(python)
    return None


def answers(python: str, version: str) -> bool:
    """Whether it runs; a shim of pyenv's may name a version that is not there."""
    asked = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and asked.stdout.startswith(f"Python {version}.")


PYTHONS = {version: python for version in VERSIONS if (python := interpreter(version))}


def write_model(folder: Path, source: str, config: str | None = 'predict: "predict.py:Predictor"\n') -> Path:
    """A model's folder with predict.py, dedented, and cog.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predict.py").write_text(textwrap.dedent(source))
    if config is not None:
        (folder / "cog.yaml").write_text(config)
    return folder


class BareRunner:
    """Started at once; `logs` has everything that it wrote to file descriptors 1 and 2, as far as logs() was called."""

    def __init__(
        self, model: Path, python: str = sys.executable, environment: Mapping[str, str] | None = None, worker: int = 0
    ) -> None:
        theirs_in, self._out = os.pipe()
        self.events, theirs_out = os.pipe()
        self._log, theirs_log = os.pipe()
        self.model = model
        self.process = subprocess.Popen(
            [python, "-u", str(MAIN), str(theirs_in), str(theirs_out), str(worker or os.getpid())],
            cwd=model,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=theirs_log,
            stderr=theirs_log,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        for fd in (theirs_in, theirs_out, theirs_log):
            os.close(fd)
        os.set_blocking(self._log, False)
        self._buffer = b""
        self._number = 0
        self._canceling = False

    def __enter__(self) -> BareRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    # -- messages

    def load(self, predict: str | None = None, **fields: Any) -> Message:
        """hello, load, and the answer: ready or setup_failed."""
        assert self.receive()["type"] == "hello"
        self.send({"type": "load", "protocol": 2, "model_dir": str(self.model), "predict": predict, **fields})
        return self.receive()

    def send(self, message: Message) -> None:
        self.send_line(json.dumps(message).encode())

    def send_line(self, line: bytes) -> None:
        os.write(self._out, line + b"\n")

    def receive(self) -> Message:
        message = json.loads(self.receive_line())
        assert isinstance(message, dict)
        return message

    def receive_line(self) -> bytes:
        """The next line as it was written; fails when none comes."""
        until = time.monotonic() + PATIENCE
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            assert left > 0, f"no message came; logs: {self.logs()}"
            if not select.select([self.events], [], [], min(left, REPEAT))[0]:
                if self._canceling:
                    self.cancel()
                continue
            data = os.read(self.events, 1 << 16)
            if not data:
                raise EOFError(f"the runner ended with exit code {self.process.wait(PATIENCE)}; logs() says why")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def silent(self) -> bool:
        """Whether there is no message to be received now."""
        return not self._buffer and not select.select([self.events], [], [], 0)[0]

    def begin(self, input: Message, **fields: Any) -> str:
        """Send a prediction; returns its id."""
        self._number += 1
        id = f"p{self._number}"
        self.send({"type": "predict", "id": id, "input": input, "hold": False, "context": {}, **fields})
        return id

    def until_over(self) -> list[Message]:
        """The messages up to `done` or `refused`."""
        messages = [self.receive()]
        while messages[-1]["type"] not in ("done", "refused"):
            messages.append(self.receive())
        self._canceling = False
        return messages

    def until_all_over(self, *ids: str) -> dict[str, list[Message]]:
        """The messages of several predictions, each up to `done` or `refused`."""
        messages: dict[str, list[Message]] = {id: [] for id in ids}
        left = set(ids)
        while left:
            message = self.receive()
            messages[message["id"]].append(message)
            if message["type"] in ("done", "refused"):
                left.remove(message["id"])
        return messages

    def predict(self, input: Message, **fields: Any) -> list[Message]:
        """A prediction's messages, from `accepted` or `refused` on."""
        self.begin(input, **fields)
        return self.until_over()

    def done(self, input: Message, **fields: Any) -> Message:
        """A prediction's last message."""
        return self.predict(input, **fields)[-1]

    # -- the process

    def cancel(self) -> None:
        """Signal it, and again while its answer is awaited, as a slot does."""
        self._canceling = True
        os.kill(self.process.pid, signal.SIGUSR1)

    def close(self) -> None:
        """Close the pipe to it, as a worker that has no more work."""
        if self._out >= 0:
            os.close(self._out)
            self._out = -1

    def end(self) -> int:
        """Close the pipe, and wait for its exit code."""
        self.close()
        return self.process.wait(PATIENCE)

    def logs(self) -> str:
        """What was written to file descriptors 1 and 2 since the last call."""
        pieces = []
        while True:
            try:
                piece = os.read(self._log, 1 << 16)
            except BlockingIOError:
                break
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces).decode(errors="backslashreplace")

    def wait_for_log(self, text: str) -> str:
        """What was written, until this text is in it."""
        seen = ""
        until = time.monotonic() + PATIENCE
        while text not in seen:
            left = until - time.monotonic()
            assert left > 0 and select.select([self._log], [], [], left)[0], f"{text!r} is not in {seen!r}"
            seen += self.logs()
        return seen

    def discard(self) -> None:
        """Let go of it, whatever its state."""
        self.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for fd in (self.events, self._log):
            if fd >= 0:
                os.close(fd)
        self.events = self._log = -1
