"""Lines of the log: one for each event, for people and for machines; and what models write, tagged and never parsed."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cog_celery.delivery.finished import Finished, Upload
from cog_celery.telemetry import logs
from cog_celery.telemetry.telling import Telling
from cog_celery.telemetry.traces import NO_TRACE
from tests.support.web import closed_port

ABOUT = logs.About("an-id", "q", "1795369588622-0", 2, 0, "1" * 32)
HOSTILE = "2026-01-01T00:00:00.000Z INFO cog_celery.worker.node: all is well\r\n\x1b[2J \x9b2J \u202e \u2028 \ud800 ü"


def written(formatter: logging.Formatter, write: Callable[[logging.Logger], object]) -> list[str]:
    """The lines that come of it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("cog_celery.model")
    logger.addHandler(handler)
    level, logger.propagate = logger.level, False
    logger.setLevel(logging.INFO)
    try:
        with logs.about(lambda: ABOUT):
            write(logger)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True
    return stream.getvalue().split("\n")[:-1]


def test_a_line_for_people_has_all_that_is_known() -> None:
    [line] = written(logs.TextLines(), lambda log: log.info("prediction %s runs", "an-id"))
    time, rest = line.split(" ", 1)
    assert len(time) == len("2026-11-22T17:46:28.588Z")
    assert rest == (
        "INFO cog_celery.model: prediction an-id runs "
        f"[queue=q entry=1795369588622-0 attempt=2 slot=0 trace_id={'1' * 32}]"
    )


def test_a_line_for_machines_is_an_object_with_all_that_is_known() -> None:
    [line] = written(logs.JsonLines(), lambda log: log.warning("it runs", extra={"event": "running"}))
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "warning",
        "logger": "cog_celery.model",
        "event": "running",
        "message": "it runs",
        "prediction_id": "an-id",
        "queue": "q",
        "entry": "1795369588622-0",
        "attempt": 2,
        "slot": 0,
        "trace_id": "1" * 32,
    }


@given(st.text(alphabet=st.characters(), max_size=60))
@example(HOSTILE)
def test_whatever_a_message_has_in_it_it_is_one_line(text: str) -> None:
    [line] = written(logs.TextLines(), lambda log: log.info("%s", text))
    assert line.isprintable() or "\t" in text
    [line] = written(logs.JsonLines(), lambda log: log.info("%s", text))
    assert line.isprintable() or line.isascii()
    assert json.loads(line)["message"].encode(errors="replace") == text.encode(errors="replace")


def test_the_model_s_lines_are_tagged_and_never_parsed() -> None:
    lines = [HOSTILE, '{"level": "error", "prediction_id": "another"}', "", "%s"]
    told = written(logs.TextLines(), lambda log: logs.model_lines(lines))
    assert len(told) == len(lines)
    assert all("INFO cog_celery.model: [an-id] " in line for line in told)
    objects = [json.loads(line) for line in written(logs.JsonLines(), lambda log: logs.model_lines(lines))]
    assert [one["message"] for one in objects[1:]] == lines[1:]
    assert {(one["event"], one["prediction_id"], one["level"]) for one in objects} == {("model", "an-id", "info")}
    [setup] = written(logs.TextLines(), lambda log: logs.model_lines(["x"], "setup"))
    assert "cog_celery.model: [setup] x" in setup


def test_an_exception_is_part_of_its_event() -> None:
    def fail(log: logging.Logger) -> None:
        try:
            raise ValueError("on\ntwo lines")
        except ValueError:
            log.exception("a bug")

    [line] = written(logs.JsonLines(), fail)
    assert json.loads(line)["exception"].endswith("ValueError: on\ntwo lines")
    assert written(logs.TextLines(), fail)[-1] == "two lines"


def finished(**more: Any) -> Finished:
    at = 1795369590.0
    told: dict[str, Any] = {
        "received": at,
        "ended": at + 0.25,
        "predicting": (at, at + 0.2),
        "predict_time": 0.2,
        **more,
    }
    return Finished(queue="q", slot=0, id="an-id", entry="1795369588000-0", attempt=2, **told)


def test_the_last_line_of_a_prediction_tells_its_outcome_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    at = 1795369590.0
    uploads = [Upload(at + 0.1, at + 0.22, 10, True), Upload(at + 0.12, at + 0.24, 10, True)]
    done = finished(outcome="succeeded", uploads=uploads, bytes_in=5, bytes_out=21)
    failed = finished(outcome="failed", fault="platform")
    monkeypatch.setattr("cog_celery.telemetry.telling.log", logging.getLogger("cog_celery.model"))

    def tell(log: logging.Logger) -> None:
        telling = Telling()
        telling.add(done, NO_TRACE)
        telling.add(failed, NO_TRACE)
        telling.start()
        telling.close()

    warning, told = map(json.loads, written(logs.JsonLines(), tell))
    assert (warning["level"], warning["outcome"], warning["fault"]) == ("warning", "failed", "platform")
    assert told["time"].endswith(":30.250Z"), "when it ended, not when it was written"
    assert (
        told
        | {
            "level": "info",
            "event": "finished",
            "prediction_id": "an-id",
            "attempt": 2,
            "outcome": "succeeded",
            "duration": 0.25,
            "time_in_queue": 2.0,
            "predict_time": 0.2,
            "files_out": 2,
            "upload_time": 0.14,
            "bytes_in": 5,
            "bytes_out": 21,
        }
        == told
    )
    lines = written(logs.TextLines(), tell)
    assert [line.count("prediction an-id") for line in lines] == [1, 1]
    assert "PlatformError" in lines[0]


def test_what_is_neither_the_model_s_nor_a_file_s_is_overhead() -> None:
    at = 1795369590.0
    beside = [Upload(at + 0.1, at + 0.19, 10, True)]
    behind = [Upload(at + 0.19, at + 0.24, 10, True)]
    assert round(finished(outcome="succeeded").overhead, 3) == 0.05
    assert round(finished(outcome="succeeded", uploads=beside).overhead, 3) == 0.05
    assert round(finished(outcome="succeeded", uploads=behind).overhead, 3) == 0.01
    assert finished(outcome="failed", predicting=None, predict_time=None).overhead == 0.25
    assert finished(outcome="failed", received=at + 1).duration == 0.0, "a clock may be set back"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("format", "stream", "is_json"),
    [
        ("auto", Terminal(), False),
        ("auto", io.StringIO(), True),
        ("json", Terminal(), True),
        ("text", io.StringIO(), False),
    ],
)
def test_whoever_logs_already_writes_our_lines(
    format: str, stream: io.StringIO, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(stream)])
    before = logging.logThreads, logging._srcfile
    try:
        logs.take_over(format)
        logging.getLogger("cog_celery.x").warning("it runs")
    finally:
        logging.logThreads, logging._srcfile = before
        logging.logProcesses = logging.logMultiprocessing = True
    assert stream.getvalue().startswith("{") is is_json and stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(("level", "lines"), [("debug", 3), ("info", 3), ("warning", 1), ("error", 0)])
def test_the_level_decides_which_ends_of_predictions_are_told(level: str, lines: int) -> None:
    stream, heeded = io.StringIO(), list[Finished]()
    logger = logging.getLogger("cog_celery.predictions")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        telling = Telling(heeded.append)
        for more in ({"outcome": "succeeded"}, {"outcome": "failed", "fault": "model"}, PLATFORM, {"outcome": "stale"}):
            telling.add(finished(**more), NO_TRACE)
        telling.start()
        telling.close()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert stream.getvalue().count("\n") == lines
    assert len(heeded) == 4, "metrics are not a matter of levels"


PLATFORM = {"outcome": "failed", "fault": "platform"}


@pytest.mark.parametrize(("format", "is_json"), [("auto", True), ("json", True), ("text", False)])
def test_the_form_of_the_lines_is_a_setting_and_json_where_there_is_no_terminal(format: str, is_json: bool) -> None:
    address = f"redis://:canary@{closed_port()}"
    command = [sys.executable, "-m", "cog_celery", "bridge", "--queue", "q", "--redis-url", address]
    with subprocess.Popen([*command, "--log-format", format], stderr=subprocess.PIPE, text=True) as bridge:
        assert bridge.stderr is not None
        lines = [bridge.stderr.readline() for _ in range(2)]
        bridge.terminate()
        rest = bridge.stderr.read()
    assert all(line.startswith("{") is is_json for line in lines)
    if is_json:
        assert {json.loads(line)["logger"] for line in lines} >= {"cog_celery.bridge.process"}
    assert "canary" not in "".join(lines) + rest
