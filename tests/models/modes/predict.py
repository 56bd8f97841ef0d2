"""A predictor that does what its `mode` says, for tests of everything around it."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from cog import BaseModel, BasePredictor, Input, Path


class Answer(BaseModel):
    text: str
    file: Path


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("setup of modes")
        self.setups = getattr(self, "setups", 0) + 1
        self.predictions = 0

    def predict(
        self,
        mode: str,
        text: str = Input(default="world"),
        count: int = Input(default=3, ge=0),
        seconds: float = Input(default=0.0, ge=0),
    ) -> Any:
        self.predictions += 1
        return getattr(self, mode)(text=text, count=count, seconds=seconds)

    # Outputs

    def hello(self, text: str, **_: Any) -> Any:
        return "hello " + text

    def json(self, text: str, **_: Any) -> Any:
        return json.loads(text)

    def yields(self, text: str, count: int, seconds: float, **_: Any) -> Any:
        for i in range(count):
            if i:
                time.sleep(seconds)
            yield f"{text} {i}"
        time.sleep(seconds)

    def yields_json(self, text: str, seconds: float, **_: Any) -> Any:
        for value in json.loads(text):
            yield value
            time.sleep(seconds)

    def prints_and_yields(self, text: str, count: int, seconds: float, **_: Any) -> Any:
        for i in range(count):
            print(f"{text} {i}")
            yield f"{text} {i}"
            time.sleep(seconds)

    def a_file(self, text: str, **_: Any) -> Any:
        return self.write("hello.txt", text)

    def yields_files(self, text: str, count: int, seconds: float, **_: Any) -> Any:
        for i in range(count):
            yield self.write(f"file{i}.txt", f"{text} {i}")
            time.sleep(seconds)

    def same_names(self, count: int, **_: Any) -> Any:
        for i in range(count):
            yield self.write("same.txt", f"file {i}")

    def yields_a_file_and_dies(self, text: str, **_: Any) -> Any:
        yield self.write("hello.txt", text)
        os.kill(os.getpid(), signal.SIGKILL)

    def model(self, text: str, **_: Any) -> Any:
        return Answer(text=text, file=self.write("model.txt", text))

    @staticmethod
    def write(name: str, text: str) -> Path:
        path = os.path.join(tempfile.mkdtemp(), name)
        with open(path, "w") as f:
            f.write(text)
        return Path(path)

    # Failures

    def fails(self, text: str, **_: Any) -> Any:
        raise ValueError(text)

    def fails_after_output(self, text: str, seconds: float, **_: Any) -> Any:
        yield "partial"
        time.sleep(seconds)
        raise ValueError(text)

    def os_exit(self, count: int, **_: Any) -> Any:
        print("last words", flush=True)
        os._exit(count)

    def sys_exit(self, count: int, **_: Any) -> Any:
        sys.exit(count)

    def segfault(self, **_: Any) -> Any:
        ctypes.string_at(0)

    def kills_itself(self, **_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    # Logs

    def prints(self, text: str, count: int, seconds: float, **_: Any) -> Any:
        for i in range(count):
            if i:
                time.sleep(seconds)
            print(f"{text} {i}")
        time.sleep(seconds)
        return "printed"

    def writes(self, text: str, **_: Any) -> Any:
        """text: a list of [file descriptor, bytes in hex, seconds to wait afterwards]"""
        for fd, data, seconds in json.loads(text):
            os.write(fd, bytes.fromhex(data))
            time.sleep(seconds)
        return "written"

    def puts(self, text: str, **_: Any) -> Any:
        libc = ctypes.CDLL(None)
        libc.puts(text.encode())
        return "put"

    def runs(self, text: str, **_: Any) -> Any:
        return subprocess.call(["sh", "-c", text])

    # Time

    def sleeps(self, text: str, seconds: float, **_: Any) -> Any:
        time.sleep(seconds)
        return text

    def sleeps_then_cleans_up(self, seconds: float, **_: Any) -> Any:
        try:
            print("began", flush=True)
            time.sleep(seconds)
        finally:
            print("cleaned up")

    def yields_then_cleans_up(self, count: int, seconds: float, **_: Any) -> Any:
        try:
            print("began", flush=True)
            for i in range(count):
                yield i
                time.sleep(seconds)
        finally:
            print("cleaned up")

    def stuck(self, **_: Any) -> Any:
        """Waits in C for a mutex that it holds: no signal handler of Python's runs any more."""
        print("stuck", flush=True)
        mutex = ctypes.create_string_buffer(64)
        lock = ctypes.CDLL(None).pthread_mutex_lock
        lock(mutex)
        lock(mutex)

    def starts_a_child(self, text: str, seconds: float, **_: Any) -> Any:
        """A child of the model's own, which nothing in the model would ever end."""
        child = subprocess.Popen(["sleep", "600"])
        print(f"child {child.pid}", flush=True)
        time.sleep(seconds)
        return child.pid

    # What it is

    def identity(self, seconds: float, **_: Any) -> Any:
        time.sleep(seconds)
        return {
            "pid": os.getpid(),
            "setups": self.setups,
            "predictions": self.predictions,
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "folder": os.getcwd(),
        }

    def environment(self, **_: Any) -> Any:
        return dict(os.environ)

    def loaded(self, **_: Any) -> Any:
        """The top-level modules that this process has imported."""
        return sorted({name.split(".")[0] for name in sys.modules})
