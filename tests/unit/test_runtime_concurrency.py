"""Several predictions at once in one runner: started together, kept apart, canceled one by one; and its healthcheck."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cog_celery.runtime.cog._runner import health
from cog_celery.runtime.cog._runner.health import Health
from cog_celery.runtime.cog._runner.loop import Loop
from tests.support.bare_runner import PYTHONS, BareRunner, Message, write_model

PREDICTOR = """
    import asyncio
    import contextvars
    import io
    import logging
    import multiprocessing
    import os
    import sys
    import threading
    import time
    from typing import Any, List, Optional

    from cog import BasePredictor, CancelationException, Path, current_scope

    handler = logging.StreamHandler(sys.stderr)
    log = logging.getLogger("model")
    log.addHandler(handler)


    class Predictor(BasePredictor):
        async def setup(self) -> None:
            print("setup")
            self.arrived = 0
            self.all_here = asyncio.Event()
            self.turns = 0
            self.background = asyncio.get_running_loop().create_task(self.turn())

        async def turn(self):
            while True:
                self.turns += 1
                await asyncio.sleep(0.01)

        async def predict(self, mode: str, text: str = "", count: int = 0, images: List[Path] = []) -> Any:
            return await getattr(self, mode)(text, count, images)

        async def echo(self, text, count, images):
            return text

        async def meet(self, text, count, images):
            self.arrived += 1
            if self.arrived == count:
                self.all_here.set()
            await self.all_here.wait()
            return text

        async def wait(self, text, count, images):
            print("waiting", text)
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaned up", text)

        async def says(self, text, count, images):
            print("printed", text)
            await asyncio.sleep(0)
            print("on stderr", text, file=sys.stderr)
            log.warning("logged %s", text)
            await asyncio.to_thread(print, "from a thread", text)
            await asyncio.get_running_loop().create_task(self.say_later(text))
            print("50%\\r100%", end="")
            sys.stdout.flush()
            print("no end", end="")

        async def say_later(self, text):
            await asyncio.sleep(0)
            print("from a task", text)

        async def orphan(self, text, count, images):
            threading.Thread(target=print, args=("from a bare thread",)).start()
            os.write(1, b"below Python\\n")

        async def child(self, text, count, images):
            def work():
                print("in the child", flush=True)
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            await asyncio.to_thread(process.join)
            return process.exitcode

        async def measure(self, text, count, images):
            scope = current_scope()
            for _ in range(count):
                scope.record_metric("steps", 1, mode="incr")
                await asyncio.sleep(0)
            await asyncio.to_thread(self.measure_in_thread, text)
            return dict(scope.context)

        def measure_in_thread(self, text):
            current_scope().record_metric("name", text)

        async def fail(self, text, count, images):
            await asyncio.sleep(0)
            raise ValueError(text)

        async def read(self, text, count, images):
            return [image.read_text() for image in images]

        async def file(self, text, count, images):
            named = io.BytesIO(text.encode())
            named.name = "out.txt"
            return named

        async def block(self, text, count, images):
            await asyncio.sleep(0)
            time.sleep(count / 10)

        async def turned(self, text, count, images):
            return self.turns

        async def exit(self, text, count, images):
            sys.exit(3)

        def healthcheck(self):
            return True


    async def streams(text: str, count: int = 3, pause: float = 0.0) -> "AsyncIterator[str]":
        try:
            for i in range(count):
                print("step", i)
                yield text + str(i)
                if pause:
                    await asyncio.sleep(pause)
        finally:
            print("closed")


    async def swallows() -> str:
        try:
            print("in")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "went on"
"""
SLOTS = 4


def started(model: Path, python: str, predict: str | None = None) -> BareRunner:
    runner = BareRunner(model, python)
    ready = runner.load(predict, concurrency=SLOTS)
    assert ready["type"] == "ready", (ready, runner.logs())
    assert ready["concurrency"] == SLOTS
    return runner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = 'predict: "predict.py:Predictor"\nconcurrency:\n  max: 8\n'
    return write_model(tmp_path_factory.mktemp("concurrency"), PREDICTOR, config)


@pytest.fixture(scope="module", params=PYTHONS)
def runner(request: pytest.FixtureRequest, model: Path) -> Iterator[BareRunner]:
    with started(model, PYTHONS[request.param]) as runner:
        assert runner.logs() == "setup\n"
        yield runner
        assert runner.end() == 0
        assert runner.logs() == ""


@pytest.fixture
def any_runner(model: Path) -> Iterator[BareRunner]:
    """Of one interpreter, for a test that ends it."""
    with started(model, next(iter(PYTHONS.values()))) as runner:
        runner.logs()
        yield runner


def begin(runner: BareRunner, slot: int, mode: str, **fields: Any) -> str:
    return runner.begin({"mode": mode, "text": f"t{slot}", **fields}, slot=slot)


def log_of(messages: list[Message]) -> str:
    return "".join(message["text"] for message in messages if message["type"] == "log")


def test_as_many_as_there_are_slots_run_at_once(runner: BareRunner) -> None:
    ids = [begin(runner, slot, "meet", count=SLOTS) for slot in range(SLOTS)]
    over = runner.until_all_over(*ids)
    assert [over[id][-1]["output"] for id in ids] == ["t0", "t1", "t2", "t3"]


def test_what_each_prints_is_its_own(runner: BareRunner) -> None:
    ids = [begin(runner, slot, "says") for slot in range(SLOTS)]
    over = runner.until_all_over(*ids)
    for slot, id in enumerate(ids):
        name = f"t{slot}"
        assert log_of(over[id]) == (
            f"printed {name}\non stderr {name}\nlogged {name}\nfrom a thread {name}\nfrom a task {name}\n"
            "50%\r100%no end"
        )
    assert runner.logs() == ""


def test_a_log_message_has_this_form_and_comes_before_done(runner: BareRunner) -> None:
    id = begin(runner, 2, "wait")
    assert runner.receive()["type"] == "accepted"
    assert runner.receive_line() == b'{"type":"log","id":"%b","text":"waiting t2\\n"}' % id.encode()
    runner.send({"type": "cancel", "id": id})
    log, done = runner.until_over()
    assert (log["type"], log["text"], done["status"]) == ("log", "cleaned up t2\n", "canceled")


def test_what_has_no_prediction_is_in_the_runners_log(runner: BareRunner) -> None:
    messages = runner.until_all_over(begin(runner, 0, "orphan"))
    assert runner.wait_for_log("from a bare thread\n").count("below Python\n") == 1
    assert not any(log_of(each) for each in messages.values())


def test_a_child_process_prints_to_the_runners_log(runner: BareRunner) -> None:
    (messages,) = runner.until_all_over(begin(runner, 0, "child")).values()
    assert messages[-1]["output"] == 0
    assert runner.wait_for_log("in the child\n")
    assert log_of(messages) == ""


def test_metrics_and_context_are_each_ones_own(runner: BareRunner) -> None:
    ids = [
        runner.begin({"mode": "measure", "text": f"t{slot}", "count": slot + 1}, slot=slot, context={"slot": str(slot)})
        for slot in range(SLOTS)
    ]
    over = runner.until_all_over(*ids)
    for slot, id in enumerate(ids):
        assert over[id][-1]["metrics"] == {"steps": slot + 1, "name": f"t{slot}"}
        assert over[id][-1]["output"] == {"slot": str(slot)}


def test_one_that_fails_leaves_the_others_alone(runner: BareRunner) -> None:
    waits, fails = begin(runner, 0, "wait"), begin(runner, 1, "fail")
    messages = collect(runner, fails)
    done = messages[fails][-1]
    assert (done["status"], done["error"]) == ("failed", "t1")
    title, first, *_, last = log_of(messages[fails]).splitlines()
    assert (title, last) == ("Traceback (most recent call last):", "ValueError: t1")
    assert "predict.py" in first
    assert "done" not in {message["type"] for message in messages.get(waits, [])}
    runner.send({"type": "cancel", "id": waits})
    assert collect(runner, waits)[waits][-1]["status"] == "canceled"
    assert runner.logs() == ""


def collect(runner: BareRunner, until: str) -> dict[str, list[Message]]:
    """The messages of all predictions, until that one is over."""
    messages: dict[str, list[Message]] = {}
    while True:
        message = runner.receive()
        messages.setdefault(message["id"], []).append(message)
        if message["id"] == until and message["type"] in ("done", "refused"):
            return messages


def test_one_is_canceled_by_name_and_the_others_go_on(runner: BareRunner) -> None:
    ids = [begin(runner, slot, "wait") for slot in range(SLOTS)]
    for id in (ids[2], ids[0]):
        runner.send({"type": "cancel", "id": id})
        messages = collect(runner, id)
        assert messages[id][-1]["status"] == "canceled"
        assert sum(message["type"] == "done" for each in messages.values() for message in each) == 1
    again = begin(runner, 2, "echo")
    assert collect(runner, again)[again][-1]["output"] == "t2"
    for id in (ids[1], ids[3]):
        runner.send({"type": "cancel", "id": id})
    assert {each[-1]["status"] for each in runner.until_all_over(ids[1], ids[3]).values()} == {"canceled"}


def test_one_that_is_canceled_before_it_began_is_answered(runner: BareRunner) -> None:
    lines = [
        {"type": "predict", "id": "early", "input": {"mode": "wait"}, "slot": 1},
        {"type": "cancel", "id": "early"},
    ]
    runner.send_line(b"\n".join(json.dumps(line).encode() for line in lines))
    *_, done = runner.until_over()
    assert done["status"] == "canceled" and done["predict_time"] < 1
    assert runner.logs() == ""


def test_one_that_is_held_is_canceled_when_go_comes(runner: BareRunner) -> None:
    id = runner.begin({"mode": "wait"}, slot=3, hold=True)
    runner.send({"type": "cancel", "id": id})
    runner.send({"type": "go", "id": id, "paths": []})
    assert [message["type"] for message in runner.until_over()] == ["accepted", "done"]
    held = runner.begin({"mode": "wait"}, slot=3, hold=True)
    runner.send({"type": "drop", "id": held})
    accepted, done = runner.until_over()
    assert (accepted["type"], done["status"]) == ("accepted", "canceled")


def test_messages_for_one_that_is_over_are_passed_over(runner: BareRunner) -> None:
    for kind in ("cancel", "go", "drop"):
        runner.send({"type": kind, "id": "unknown"})
    assert runner.done({"mode": "echo", "text": "x"})["output"] == "x"


def test_files_come_and_go_in_each_slot(runner: BareRunner, tmp_path: Path) -> None:
    ids = []
    for slot in (0, 1):
        ids.append(begin(runner, slot, "read", images=[f"https://h/{slot}"]))
        assert runner.receive()["files"] == [f"https://h/{slot}"]
    for slot in (1, 0):
        (tmp_path / str(slot)).write_text(f"content {slot}")
        runner.send({"type": "go", "id": ids[slot], "paths": [str(tmp_path / str(slot))]})
    over = runner.until_all_over(*ids)
    assert [over[id][-1]["output"] for id in ids] == [["content 0"], ["content 1"]]

    made = {slot: runner.until_all_over(begin(runner, slot, "file")) for slot in (0, 1)}
    paths = [Path(messages[-1]["files"][0]["path"]) for each in made.values() for messages in each.values()]
    assert [path.read_text() for path in paths] == ["t0", "t1"]
    runner.until_all_over(begin(runner, 0, "echo"))
    assert [path.exists() for path in paths] == [False, True], "only the slot's own next prediction removes them"


def test_a_blocked_loop_is_told_with_its_prediction_and_place(model: Path) -> None:
    """Under the oldest and the newest interpreter, at the same time."""
    with contextlib.ExitStack() as stack:
        ends = list(PYTHONS.values())[:: len(PYTHONS) - 1 or 1]
        runners = [stack.enter_context(started(model, python)) for python in ends]
        ids = [begin(runner, 1, "block", count=17) for runner in runners]
        for id, runner in zip(ids, runners, strict=True):
            assert runner.receive()["type"] == "accepted"
            message = runner.receive_line()
            form = rb'\{"type":"blocked","id":"%b","seconds":(\d\.\d{3}),"at":"predict\.py:(\d+)"\}'
            blocked = re.fullmatch(form % id.encode(), message)
            assert blocked is not None, message
            assert 1.0 <= float(blocked[1]) < 3.0
            assert [message["status"] for message in runner.until_over()] == ["succeeded"]
            line = (model / "predict.py").read_text().splitlines()[int(blocked[2]) - 1]
            assert line.strip() == "time.sleep(count / 10)"


def test_a_refused_input_leaves_its_slot_free(runner: BareRunner) -> None:
    for _ in range(2):
        assert runner.predict({"text": "no mode"}, slot=1)[-1]["type"] == "refused"
    assert runner.done({"mode": "echo"}, slot=1)["status"] == "succeeded"


def test_health_is_told_while_others_run(runner: BareRunner) -> None:
    id = begin(runner, 0, "wait")
    assert {runner.receive()["type"], runner.receive()["type"]} == {"accepted", "log"}
    runner.send({"type": "healthcheck"})
    assert runner.receive_line() == b'{"type":"health","healthy":true,"error":null}'
    runner.send({"type": "cancel", "id": id})
    runner.until_over()


def test_the_loop_turns_between_predictions_too(runner: BareRunner) -> None:
    before = runner.done({"mode": "turned"})["output"]
    time.sleep(0.5)  # fifty turns where nothing else runs
    assert runner.done({"mode": "turned"})["output"] > before + 3


@pytest.mark.parametrize("slot", [0, 4, -1, "0"])
def test_a_slot_that_is_not_free_is_an_error(any_runner: BareRunner, slot: Any) -> None:
    begin(any_runner, 0, "wait")
    assert any_runner.receive()["type"] == "accepted"
    any_runner.begin({"mode": "echo"}, slot=slot)
    assert any_runner.process.wait(10) == 1
    assert f"p2 came for slot {slot!r}, which is not free" in any_runner.logs()


def test_the_end_of_the_workers_pipe_ends_it_whatever_runs(any_runner: BareRunner) -> None:
    begin(any_runner, 0, "wait")
    assert any_runner.receive()["type"] == "accepted"
    assert any_runner.end() == 0


def test_a_model_that_exits_ends_the_runner(any_runner: BareRunner) -> None:
    begin(any_runner, 0, "exit")
    assert any_runner.process.wait(10) == 3


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("slots", [1, SLOTS])
def test_async_generators_send_what_they_yield_at_once_and_are_closed(version: str, slots: int, model: Path) -> None:
    with BareRunner(model, PYTHONS[version]) as runner:
        assert runner.load("predict.py:streams", concurrency=slots)["concurrency"] == 1
    with BareRunner(model, PYTHONS[version], environment={"COG_MAX_CONCURRENCY": "8"}) as runner:
        assert runner.load("predict.py:streams", concurrency=slots)["concurrency"] == slots
        messages = runner.predict({"text": "a"})
        assert [message["value"] for message in messages if message["type"] == "output"] == ["a0", "a1", "a2"]
        assert messages[-1]["streamed"]
        logs = "step 0\nstep 1\nstep 2\nclosed\n"
        assert (log_of(messages), runner.logs()) == (("", logs) if slots == 1 else (logs, ""))
        id = runner.begin({"text": "b", "count": 2, "pause": 60})
        types = [runner.receive()["type"] for _ in range(2 if slots == 1 else 3)]
        assert types[-1] == "output"
        if slots == 1:
            runner.cancel()
        else:
            runner.send({"type": "cancel", "id": id})
        assert runner.until_over()[-1]["status"] == "canceled"


def test_a_generator_that_never_waits_lets_others_in(model: Path) -> None:
    python = next(iter(PYTHONS.values()))
    with BareRunner(model, python, environment={"COG_MAX_CONCURRENCY": "2"}) as runner:
        runner.load("predict.py:streams", concurrency=2)
        endless = runner.begin({"text": "e", "count": 10**9}, slot=0)
        short = runner.begin({"text": "s", "count": 1}, slot=1)
        assert collect(runner, short)[short][-1]["status"] == "succeeded"
        runner.send({"type": "cancel", "id": endless})
        assert collect(runner, endless)[endless][-1]["status"] == "canceled"


def test_one_that_swallows_its_cancelation_has_succeeded(model: Path) -> None:
    python = next(iter(PYTHONS.values()))
    with BareRunner(model, python, environment={"COG_MAX_CONCURRENCY": "2"}) as runner:
        runner.load("predict.py:swallows", concurrency=2)
        id = runner.begin({})
        assert runner.receive()["type"] == "accepted"
        assert runner.receive()["type"] == "log"
        runner.send({"type": "cancel", "id": id})
        done = runner.until_over()[-1]
        assert (done["status"], done.get("output")) == ("succeeded", "went on")


# -- healthcheck

LIMIT = 0.05


def answer(healthcheck: Any, in_loop: bool) -> tuple[bool, str | None]:
    loop = Loop()
    loop.start()
    checked = Health(healthcheck, loop)
    try:
        return loop.run(checked.check_in_loop()) if in_loop else checked.check()
    finally:
        loop.close()


@pytest.mark.parametrize("in_loop", [False, True])
def test_health_is_what_the_model_says_of_itself(in_loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def well() -> bool:
        return True

    async def late() -> bool:
        await asyncio.sleep(60)
        return True

    def broken() -> bool:
        raise OSError("the GPU is gone")

    ended = threading.Event()
    assert answer(None, in_loop) == (True, None)
    assert answer(lambda: True, in_loop) == (True, None)
    assert answer(well, in_loop) == (True, None)
    assert answer(lambda: False, in_loop) == (False, "healthcheck() returned False")
    assert answer(broken, in_loop) == (False, "the GPU is gone")
    monkeypatch.setattr(health, "LIMIT", LIMIT)
    assert answer(late, in_loop) == health.LATE
    assert answer(lambda: ended.wait(10), in_loop) == health.LATE
    ended.set()


def test_a_healthcheck_that_hangs_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LIMIT", LIMIT)
    ended = threading.Event()
    asked = []

    def hang() -> bool:
        asked.append(1)
        return ended.wait(10)

    checked = Health(hang, Loop())
    assert [checked.check(), checked.check()] == [health.LATE] * 2
    assert asked == [1]
    ended.set()
    until = time.monotonic() + 5
    while checked.check() != (True, None):
        assert time.monotonic() < until
    assert len(asked) >= 2


def test_health_is_told_between_predictions(tmp_path: Path) -> None:
    source = """
        from cog import BasePredictor

        class Predictor(BasePredictor):
            def healthcheck(self):
                return not hasattr(self, "broken")

            def predict(self) -> str:
                self.broken = True
                return ""
    """
    with BareRunner(write_model(tmp_path, source)) as runner:
        assert runner.load()["healthcheck"] is True
        runner.send({"type": "healthcheck"})
        assert runner.receive() == {"type": "health", "healthy": True, "error": None}
        runner.done({})
        runner.send({"type": "healthcheck"})
        assert runner.receive_line() == b'{"type":"health","healthy":false,"error":"healthcheck() returned False"}'
