"""What must hold for any bytes, any JSON and any course of events, tried with many."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.requests import PredictionRequest, Refusal, parse
from cog_celery.delivery.snapshots import dialect
from cog_celery.telemetry.logs import LineSplitter

QUEUE = "q"
LIMIT = 1 << 20

# Bytes in which line ends, split characters and broken ones are common.
TEXT = st.lists(
    st.sampled_from(
        [b"\n", b"\r", b"\r\n", b" ", b"a", "ü".encode(), "😀".encode(), b"\xf0\x9f", b"\xff", "\u2028".encode()]
    )
    | st.binary(max_size=4)
).map(b"".join)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["input", "response_queue", "id", "cancel_key", "traceparent", "webhook", "context", "output_upload_urls"]


def lines(pieces: list[bytes]) -> list[str]:
    splitter = LineSplitter()
    out: list[str] = []
    for piece in pieces:
        out += splitter.feed(piece)
    return out + splitter.finish()


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(position, len(data)) for position in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(TEXT, st.lists(st.integers(0, 60), max_size=8))
@example(b"one\r\ntwo", [4])
@example("😀\n".encode(), [1, 2, 3])
def test_any_split_of_any_bytes_gives_the_same_lines(data: bytes, at: list[int]) -> None:
    assert lines(cut(data, at)) == lines([data])


@given(TEXT)
@example(b"one\n\n  two  \n\r10%\r20%\n")
def test_lines_end_at_each_of_the_three_line_ends_and_nowhere_else(data: bytes) -> None:
    expected = re.split(r"\r\n|\r|\n", data.decode(errors="replace"))
    if not expected[-1]:
        expected.pop()
    assert lines([data]) == expected


@given(TEXT, st.lists(st.integers(0, 60), max_size=8))
def test_a_line_is_out_as_soon_as_its_end_is(data: bytes, at: list[int]) -> None:
    """A progress bar is seen while it goes: nothing but the unfinished line is kept back."""
    splitter = LineSplitter()
    seen: list[str] = []
    for end, piece in enumerate(cut(data, at)):
        seen += splitter.feed(piece)
        text = b"".join(cut(data, at)[: end + 1]).decode(errors="ignore")
        assert len(seen) >= len(re.findall(r"\r\n|\r|\n", text))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_are_refused(value: bytes) -> None:
    try:
        assert isinstance(parse(value, QUEUE, LIMIT), PredictionRequest)
    except Refusal as refusal:
        assert str(refusal)


@given(JSON)
def test_any_json_is_a_request_or_is_refused(value: Any) -> None:
    try:
        assert isinstance(parse(json.dumps(value).encode(), QUEUE, LIMIT), PredictionRequest)
    except Refusal as refusal:
        assert str(refusal)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.text(min_size=1, max_size=20))
@example({"input": float("nan")}, "key")
@example({"id": 2**70}, "key")
def test_any_object_with_a_usable_response_queue_is_served_or_answered_there(message: dict[str, Any], key: str) -> None:
    # A key of a lone surrogate has no bytes, and so is none.
    key = key.encode(errors="replace").decode()
    message["response_queue"] = f"response {key}."  # whose end is not one of Celery's names
    try:
        request = parse(json.dumps(message).encode(), QUEUE, LIMIT)
        assert request.response_queue == message["response_queue"]
        json.loads(bytes(request.input))
    except Refusal as refusal:
        assert refusal.response_queue == message["response_queue"]


@given(st.text(max_size=30), st.sampled_from(["", "-dead", "-run-time", "-setup-time"]))
def test_no_request_may_name_a_key_of_ours(text: str, suffix: str) -> None:
    text = text.encode(errors="replace").decode()
    for key in (f"cog-celery:{text}", QUEUE + suffix):
        for field in ("response_queue", "cancel_key"):
            message = {"input": {}, "response_queue": "good", field: key}
            try:
                parse(json.dumps(message).encode(), QUEUE, LIMIT)
                raise AssertionError(f"{field}={key} was accepted")
            except Refusal as refusal:
                assert refusal.response_queue in (None, "good")


EVENT = st.one_of(
    st.tuples(st.just("log"), st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=3)),
    st.tuples(st.just("stream")),
    st.tuples(
        st.just("add"), JSON.filter(lambda value: "NaN" not in json.dumps(value) and "Inf" not in json.dumps(value))
    ),
    st.tuples(st.just("succeed"), st.none() | st.just({"a": 1})),
    st.tuples(st.just("fail"), st.text(max_size=5)),
    st.tuples(st.just("cancel")),
)


def apply(prediction: Prediction, event: tuple[Any, ...]) -> None:
    match event:
        case ("log", lines):
            prediction.log(lines)
        case ("stream",):
            prediction.stream()
        case ("add", value):
            prediction.add(msgspec.Raw(json.dumps(value).encode()))
        case ("succeed", value):
            prediction.succeed(2.0, None if value is None else msgspec.Raw(json.dumps(value).encode()))
        case ("fail", error):
            prediction.fail(2.0, error, "model")
        case ("cancel",):
            prediction.cancel(2.0)


@given(st.lists(EVENT, max_size=8), st.sampled_from(["cog-0.4", "cog-0.6"]))
def test_after_a_terminal_snapshot_every_snapshot_is_the_same(events: list[tuple[Any, ...]], name: Any) -> None:
    request = b'{"id":"1","input":{},"response_queue":"r","status":"mine"}'
    prediction, form = Prediction(), dialect(name, request)
    prediction.start(1.0)
    end: bytes | None = None
    for event in events:
        apply(prediction, event)
        snapshot = form.render(prediction)
        if end is None:
            value = json.loads(snapshot)
            assert value["status"] in ("processing", "succeeded", "failed", "canceled")
            assert ("error" in value) == (value["status"] == "failed")
        else:
            assert snapshot == end
        if prediction.terminal:
            end = end or snapshot


@given(st.lists(EVENT, max_size=8))
def test_a_cog_04_snapshot_has_exactly_the_documented_keys(events: list[tuple[Any, ...]]) -> None:
    prediction, form = Prediction(), dialect("cog-0.4", None)
    prediction.start(1.0)
    for event in events:
        apply(prediction, event)
        value = json.loads(form.render(prediction))
        expected = {"status", "output", "logs", "x-experimental-timestamps"}
        assert set(value) == expected | ({"error"} if value["status"] == "failed" else set())
        assert isinstance(value["logs"], list)


@given(st.floats(0, 4e9))
def test_a_timestamp_always_has_six_fraction_digits(seconds: float) -> None:
    prediction = Prediction()
    prediction.start(seconds)
    value = json.loads(dialect("cog-0.4", None).render(prediction))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", value["x-experimental-timestamps"]["started_at"])
