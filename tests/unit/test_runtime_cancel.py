"""SIGUSR1 at every moment: it ends the prediction that runs, nothing else, and the runner goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.bare_runner import PYTHONS, BareRunner, Message, write_model

PREDICTOR = """
    import asyncio
    import time
    from typing import Any

    from cog import BasePredictor, CancelationException
    from cog.server.exceptions import CancelationException as AsInOldModels

    assert AsInOldModels is CancelationException


    class Predictor(BasePredictor):
        def predict(self, mode: str, seconds: float = 30.0, count: int = 10) -> Any:
            return getattr(self, mode)(seconds, count)

        def echo(self, seconds, count):
            print("begin")
            return "echo"

        def sleeps(self, seconds, count):
            try:
                print("begin")
                time.sleep(seconds)
            except CancelationException:
                print("canceled")
                raise
            finally:
                print("cleaned up")

        def spins(self, seconds, count):
            print("begin")
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass

        def yields(self, seconds, count):
            try:
                print("begin")
                for i in range(count):
                    yield i
                    time.sleep(seconds)
            finally:
                print("cleaned up")

        def yields_fast(self, seconds, count):
            try:
                print("begin")
                i = 0
                while True:
                    yield i
                    i += 1
            finally:
                print("cleaned up")

        def iterates(self, seconds, count):
            print("begin")
            return map(str, iter(lambda: time.sleep(0.001), 1))

        def swallows(self, seconds, count):
            try:
                print("begin")
                time.sleep(seconds)
            except BaseException:
                return "went on"

        def wraps(self, seconds, count):
            try:
                print("begin")
                time.sleep(seconds)
            except BaseException as error:
                raise RuntimeError("wrapped") from error

        async def waits(self, seconds, count):
            try:
                print("begin")
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                print("canceled")
                raise
            finally:
                print("cleaned up")

        async def waits_and_yields(self, seconds, count):
            try:
                print("begin")
                for i in range(count):
                    yield i
                    await asyncio.sleep(seconds)
            finally:
                await asyncio.sleep(0)
                print("cleaned up")

        async def yields_without_waiting(self, seconds, count):
            try:
                print("begin")
                i = 0
                while True:
                    yield i
                    i += 1
            finally:
                print("cleaned up")
"""


@pytest.fixture(scope="module", params=PYTHONS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareRunner]:
    model = write_model(tmp_path_factory.mktemp("cancel"), PREDICTOR)
    with BareRunner(model, PYTHONS[request.param]) as runner:
        assert runner.load()["type"] == "ready"
        yield runner
        assert runner.end() == 0


def canceled_while_running(runner: BareRunner, mode: str) -> tuple[Message, str]:
    """Its last message, and its logs, when it is canceled in the middle."""
    runner.begin({"mode": mode})
    logs = runner.wait_for_log("begin\n")
    runner.cancel()
    done = runner.until_over()[-1]
    assert done["predict_time"] < 5
    return done, logs + runner.logs()


@pytest.mark.parametrize(
    ("mode", "logs"),
    [
        ("sleeps", "begin\ncanceled\ncleaned up\n"),
        ("spins", "begin\n"),
        ("yields", "begin\ncleaned up\n"),
        ("iterates", "begin\n"),
        ("waits", "begin\ncanceled\ncleaned up\n"),
        ("waits_and_yields", "begin\ncleaned up\n"),
    ],
)
def test_a_prediction_is_canceled_and_cleans_up(runner: BareRunner, mode: str, logs: str) -> None:
    done, written = canceled_while_running(runner, mode)
    assert (done["status"], "error" in done) == ("canceled", False)
    assert written == logs
    assert runner.done({"mode": "echo"})["output"] == "echo"
    runner.logs()


@pytest.mark.parametrize("mode", ["yields_fast", "yields_without_waiting"])
def test_a_generator_that_never_waits_is_canceled_between_two_whole_messages(runner: BareRunner, mode: str) -> None:
    for after in (1, 2, 50, 400):
        runner.begin({"mode": mode})
        messages = [runner.receive() for _ in range(after + 1)]
        runner.cancel()
        messages += runner.until_over()
        assert messages[-1]["status"] == "canceled"
        assert [message["value"] for message in messages[1:-1]] == list(range(len(messages) - 2))
        assert runner.wait_for_log("cleaned up\n") == "begin\ncleaned up\n"


def test_a_predictor_that_goes_on_has_succeeded(runner: BareRunner) -> None:
    done, _ = canceled_while_running(runner, "swallows")
    assert (done["status"], done["output"]) == ("succeeded", "went on")


def test_an_error_that_comes_of_the_cancelation_is_a_cancelation(runner: BareRunner) -> None:
    done, logs = canceled_while_running(runner, "wraps")
    assert (done["status"], logs) == ("canceled", "begin\n")


def test_a_signal_while_nothing_runs_hits_nobody(runner: BareRunner) -> None:
    for _ in range(20):
        os.kill(runner.process.pid, signal.SIGUSR1)
        assert runner.done({"mode": "echo"})["status"] == "succeeded"
        os.kill(runner.process.pid, signal.SIGUSR1)
    assert runner.logs() == "begin\n" * 20


def test_a_signal_right_behind_accepted_is_not_lost(runner: BareRunner) -> None:
    for mode in ("sleeps", "waits", "yields") * 5:
        runner.begin({"mode": mode})
        assert runner.receive()["type"] == "accepted"
        runner.cancel()
        done = runner.until_over()[-1]
        assert (done["status"], done["predict_time"] < 5) == ("canceled", True)
    runner.logs()


def test_a_held_prediction_is_canceled_when_go_comes(runner: BareRunner) -> None:
    id = runner.begin({"mode": "sleeps"}, hold=True)
    assert runner.receive()["type"] == "accepted"
    runner.cancel()
    runner.send({"type": "go", "id": id, "paths": []})
    assert runner.receive()["status"] == "canceled"
    assert runner.logs() == "", "predict() was not entered"


def test_signals_at_random_moments_end_one_prediction_each(runner: BareRunner) -> None:
    """Whatever the moment: one answer for each prediction, whole messages, and a runner that goes on."""
    moments = random.Random(7)
    statuses = set()
    for number in range(150):
        mode = ("sleeps", "yields_fast", "spins", "waits", "waits_and_yields", "yields")[number % 6]
        seconds = 0.001 if number % 2 else 30.0
        runner.begin({"mode": mode, "seconds": seconds, "count": 3})
        assert runner.receive()["type"] == "accepted"
        time.sleep(moments.random() * 0.003)
        runner.cancel()
        statuses.add(runner.until_over()[-1]["status"])
    assert statuses <= {"canceled", "succeeded"} and "canceled" in statuses
    assert runner.done({"mode": "echo"})["output"] == "echo"
    runner.logs()
