"""A model may do to its process what it likes: the runner goes on, or ends and is seen to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bare_runner import PYTHONS, BareRunner, write_model

PREDICTOR = """
    import io
    import os
    import signal
    import subprocess
    import sys
    import threading
    import time
    from typing import Any

    from cog import BasePredictor, CancelationException, Path


    class Predictor(BasePredictor):
        def setup(self) -> None:
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, lambda *_: None)

        def predict(self, mode: str, text: str = "x") -> Any:
            return getattr(self, mode)(text)

        def echo(self, text):
            print("echo", text)
            return text

        def replaces_stdout(self, text):
            sys.stdout = io.StringIO()
            print("swallowed")
            return text

        def stdout_is_none(self, text):
            sys.stdout = sys.stderr = None
            return text

        def stdout_breaks(self, text):
            class Broken:
                def write(self, text):
                    raise OSError("no")
                def flush(self):
                    raise OSError("no")
            sys.stdout = sys.stderr = Broken()
            raise ValueError(text)

        def restores(self, text):
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            return text

        def closes_stdout(self, text):
            os.close(1)
            try:
                print("to nobody")
            except OSError:
                pass
            return text

        def closes_both(self, text):
            os.close(1)
            os.close(2)
            raise ValueError(text)

        def changes_directory(self, text):
            os.chdir("/")
            open("/tmp/cog-isolation-test", "w").close()
            return [os.getcwd(), Path("tmp/cog-isolation-test")]

        def changes_directory_back(self, text):
            os.unlink("/tmp/cog-isolation-test")
            os.chdir(os.path.dirname(__file__))

        def takes_signals(self, text):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            signal.alarm(0)
            return text

        def sleeps(self, text):
            print("asleep")
            time.sleep(60)

        def starts_thread(self, text):
            threading.Thread(target=time.sleep, args=(3600,)).start()
            return text

        def starts_process(self, text):
            return subprocess.Popen(["sleep", "3600"]).pid

        def forks(self, text):
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            return os.waitpid(pid, 0)[1] >> 8

        def forks_and_returns_twice(self, text):
            return os.fork() == 0

        def closes_all(self, text):
            os.closerange(3, 256)
            return text

        def closes_ours(self, text):
            os.closerange(3, 256)

        def exits(self, text):
            os._exit(4)

        def exits_politely(self, text):
            sys.exit(5)

        def aborts(self, text):
            os.kill(os.getpid(), signal.SIGSEGV)

        def limits(self, text):
            sys.setrecursionlimit(200)
            return text

        def patches(self, text):
            import json
            json.dumps = json.loads = None
            os.write = lambda *_: 0
            return text
"""
VICTIMS = {
    "celery": "raise SystemExit('celery of the model')",
    "redis": "VERSION = (2, 10)",
    "pydantic": "VERSION = '1.8'",
    "google/protobuf": "__version__ = '3.19'",
    "opentelemetry": "VERSION = 'ancient'",
    "msgspec": "VERSION = 'its own'",
    "yaml": "VERSION = 'its own'",
    "typing_extensions": "VERSION = 'its own'",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("isolation"), PREDICTOR)


@pytest.fixture(params=PYTHONS)
def runner(request: pytest.FixtureRequest, model: Path) -> Iterator[BareRunner]:
    with BareRunner(model, PYTHONS[request.param]) as runner:
        assert runner.load()["type"] == "ready", runner.logs()
        yield runner


def test_what_a_model_does_to_its_streams_is_its_own_affair(runner: BareRunner) -> None:
    assert runner.done({"mode": "replaces_stdout"})["output"] == "x"
    assert runner.done({"mode": "stdout_is_none"})["output"] == "x"
    assert runner.done({"mode": "stdout_breaks"})["error"] == "x"
    assert "ValueError: x" in runner.logs()
    runner.done({"mode": "restores"})
    runner.done({"mode": "echo", "text": "again"})
    assert runner.logs() == "echo again\n"
    assert runner.done({"mode": "closes_stdout"})["output"] == "x"
    assert runner.done({"mode": "stdout_is_none"})["status"] == "succeeded"
    assert runner.done({"mode": "stdout_breaks"})["status"] == "failed"


def test_a_model_that_closes_its_standard_streams_can_still_fail(runner: BareRunner) -> None:
    for _ in range(2):
        done = runner.done({"mode": "closes_both" if _ == 0 else "stdout_breaks"})
        assert (done["status"], done["error"]) == ("failed", "x")


def test_a_model_that_changes_directory_signals_and_limits_goes_on(runner: BareRunner) -> None:
    moved = runner.done({"mode": "changes_directory"})
    assert (moved["output"], moved["files"]) == (["/", None], [{"at": [1], "path": "/tmp/cog-isolation-test"}])
    runner.done({"mode": "changes_directory_back"})
    assert runner.done({"mode": "limits"})["output"] == "x"
    assert runner.done({"mode": "takes_signals"})["output"] == "x"
    runner.begin({"mode": "sleeps"})
    runner.wait_for_log("asleep\n")
    runner.cancel()
    assert runner.until_over()[-1]["status"] == "canceled", "the signal was taken back"


def test_threads_processes_and_forks_do_not_hold_it_up(runner: BareRunner) -> None:
    assert runner.done({"mode": "starts_thread"})["output"] == "x"
    assert runner.done({"mode": "starts_process"})["status"] == "succeeded"
    assert runner.done({"mode": "forks"})["output"] == 7
    messages = runner.predict({"mode": "forks_and_returns_twice"})
    assert [message["type"] for message in messages] == ["accepted", "done"], "the child said nothing in our name"
    assert messages[-1]["output"] is False
    assert runner.done({"mode": "echo"})["output"] == "x"
    # Its threads have some seconds at the end; a slot kills the group.
    runner.close()


def test_a_model_that_patches_what_everybody_uses_goes_on(runner: BareRunner) -> None:
    assert runner.done({"mode": "patches"})["output"] == "x"
    assert runner.done({"mode": "echo"})["output"] == "x"


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [
        ("exits", 4, ""),
        ("exits_politely", 5, ""),
        ("aborts", -signal.SIGSEGV, ""),
        ("closes_all", 1, ""),
        ("closes_ours", 1, "The model has closed the pipes to its worker"),
    ],
)
def test_a_model_that_ends_its_process_is_seen_to_have_ended(model: Path, mode: str, code: int, said: str) -> None:
    with BareRunner(model) as runner:
        runner.load()
        runner.begin({"mode": mode})
        assert runner.receive()["type"] == "accepted"
        with pytest.raises(EOFError):
            runner.receive()
        assert runner.process.wait(10) == code
        assert runner.logs().startswith(said)


@pytest.mark.parametrize("version", PYTHONS)
def test_a_model_brings_whatever_versions_it_likes(version: str, tmp_path: Path) -> None:
    for name, source in VICTIMS.items():
        package = tmp_path / "site" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"{source}\n")
    source = """
        import google.protobuf
        import opentelemetry
        import pydantic
        import redis

        from cog import BasePredictor

        class Predictor(BasePredictor):
            def predict(self) -> list:
                return [redis.VERSION[0], pydantic.VERSION, google.protobuf.__version__, opentelemetry.VERSION]
    """
    model = write_model(tmp_path / "model", source)
    with BareRunner(model, PYTHONS[version], {"PYTHONPATH": str(tmp_path / "site")}) as runner:
        assert runner.load()["type"] == "ready", runner.logs()
        assert runner.done({})["output"] == [2, "1.8", "3.19", "ancient"]
