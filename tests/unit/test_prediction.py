"""A prediction's state and its snapshots, without any server."""

from __future__ import annotations

import json

import msgspec
import pytest

from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.snapshots import Cog04, Cog06, timestamp

NOON = 1663848000.25


def started(max_log_bytes: int = 1000) -> Prediction:
    prediction = Prediction(max_log_bytes)
    prediction.start(NOON)
    return prediction


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
def test_a_terminal_state_cannot_be_left(end: str) -> None:
    prediction = started()
    match end:
        case "succeed":
            prediction.succeed(NOON + 1, msgspec.Raw(b"1"))
        case "fail":
            prediction.fail(NOON + 1, "no luck", "model")
        case _:
            prediction.cancel(NOON + 1)
    before = Cog04().render(prediction)
    prediction.succeed(NOON + 2, msgspec.Raw(b"2"))
    prediction.fail(NOON + 2, "too late", "platform")
    prediction.cancel(NOON + 2)
    prediction.start(NOON + 2)
    prediction.stream()
    assert not prediction.log(["too late"])
    assert not prediction.add(msgspec.Raw(b'"too late"'))
    assert Cog04().render(prediction) == before


def test_a_returned_value_shows_in_the_terminal_snapshot_only() -> None:
    prediction = started()
    prediction.succeed(NOON + 1, msgspec.Raw(b'{"a":1}'))
    assert json.loads(Cog04().render(prediction, processing=True)) == {
        "status": "processing",
        "output": None,
        "logs": [],
        "x-experimental-timestamps": {"started_at": "2022-09-22T12:00:00.250000"},
    }
    assert json.loads(Cog04().render(prediction)) == {
        "status": "succeeded",
        "output": {"a": 1},
        "logs": [],
        "x-experimental-timestamps": {
            "started_at": "2022-09-22T12:00:00.250000",
            "completed_at": "2022-09-22T12:00:01.250000",
        },
    }


def test_what_was_yielded_stays_when_it_fails_or_is_canceled() -> None:
    for end in ("failed", "canceled"):
        prediction = started()
        prediction.add(msgspec.Raw(b"1"))
        prediction.log(["line"])
        if end == "failed":
            prediction.fail(NOON, "no luck", "model")
        else:
            prediction.cancel(NOON)
        snapshot = json.loads(Cog04().render(prediction))
        assert (snapshot["status"], snapshot["output"], snapshot["logs"]) == (end, [1], ["line"])
        assert snapshot.get("error") == ("no luck" if end == "failed" else None)


def test_a_refused_input_has_no_times_and_all_else_has() -> None:
    refused = Prediction()
    refused.fail(NOON, "1 validation error for Input", "input")
    assert set(json.loads(Cog04().render(refused))) == {"status", "output", "logs", "error"}
    died = Prediction()
    died.fail(NOON, "its runner died", "platform")
    assert "completed_at" in json.loads(Cog04().render(died))["x-experimental-timestamps"]


def test_logs_beyond_the_limit_are_counted_in_bytes_and_said() -> None:
    prediction = started(max_log_bytes=10)
    prediction.log(["12345678"])
    prediction.log(["ä" * 5])
    prediction.log(["1", "", "ä"])
    prediction.succeed(NOON, None)
    first, last = prediction.logs
    assert first == "12345678"
    assert "17 bytes" in last


def test_a_prediction_that_yields_nothing_has_an_empty_list() -> None:
    prediction = started()
    prediction.stream()
    prediction.succeed(NOON, None)
    assert json.loads(Cog04().render(prediction))["output"] == []


def test_cog_06_echoes_the_request_but_not_what_is_ours() -> None:
    value = b'{"input":{"x":1},"response_queue":"r","own":[1,2],"status":"forged","error":"forged"}'
    dialect = Cog06(value)
    prediction = started()
    prediction.log([line for line in map(dialect.line, ["  two  ", "", "three"]) if line is not None])
    prediction.metrics = msgspec.Raw(b'{"tokens":3}')
    prediction.predict_time = 0.5
    prediction.succeed(NOON + 1, msgspec.Raw(b"false"))
    assert json.loads(dialect.render(prediction)) == {
        "input": {"x": 1},
        "response_queue": "r",
        "own": [1, 2],
        "status": "succeeded",
        "output": False,
        "logs": "two\nthree\n",
        "started_at": "2022-09-22T12:00:00.250000Z",
        "completed_at": "2022-09-22T12:00:01.250000Z",
        "metrics": {"tokens": 3, "predict_time": 0.5},
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1663848000.0, b"2022-09-22T12:00:00.000000"),
        (1663848000.9999999, b"2022-09-22T12:00:01.000000"),
        (1663848000.000001, b"2022-09-22T12:00:00.000001"),
        (0.0, b"1970-01-01T00:00:00.000000"),
    ],
)
def test_a_timestamp_has_always_six_digits(seconds: float, text: bytes) -> None:
    assert timestamp(seconds) == text


def test_an_error_with_a_lone_surrogate_can_be_shown() -> None:
    prediction = started()
    prediction.fail(NOON, "bad \ud800 text", "model")
    assert json.loads(Cog04().render(prediction))["error"] == "bad ? text"
