"""What a hostile message can do: be refused with a short sentence, at a cost in proportion to its size."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cog_celery.delivery import json_limits
from cog_celery.delivery.json_limits import MAX_DEPTH, MAX_DIGITS
from cog_celery.delivery.requests import PredictionRequest, Refusal, parse
from cog_celery.delivery.snapshots import dialect
from tests.support.fleet import Fleet

ROOT = Path(__file__).parents[2]
LIMIT = 1 << 20
LONGEST_REPETITION = 50
"""Characters of a message that its refusal may repeat."""

# Pieces of which texts are made that are nearly JSON: what splits, nests, escapes and repeats is common in them.
PIECES = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b" ", b"\n", b"\x00", b"\xff", b"\xc3\xbc", b"\xf0\x9f\x98\x80"),
    *(b'"a":', b'"a"', b'"\\u0061":', b'"b" :', b'"":', b'"response_queue":', b'"r"', b'"input":', b'"id":', b"{}"),
    *(b"null", b"true", b"NaN", b"Infinity", b"-1", b"0.5", b"1e999", b"1" * (MAX_DIGITS + 1), b'"deadline":'),
    *(b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\"', b'\\"', b"[" * (MAX_DEPTH + 1), b"]" * (MAX_DEPTH + 1)),
]
NEARLY_JSON = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=30).map(b"".join)


class Pairs(list[tuple[str, Any]]):
    """An object as a list of its pairs, in which a key may come twice."""


NAMES = st.sampled_from(["a", "b", "", "ü", "\x00", '"', "\\", "a\ta", "a" * 30]) | st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=4).map(Pairs),
    max_leaves=12,
)


@st.composite
def texts(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A JSON object, and whether a key comes twice in one of its objects. Keys are spelled in different ways."""
    twice = False

    def write(value: Any) -> str:
        nonlocal twice
        if isinstance(value, Pairs):
            twice |= len({name for name, _ in value}) < len(value)
            return "{" + ",".join(f"{spell(name)} : {write(inner)}" for name, inner in value) + "}"
        if isinstance(value, list):
            return f"[{' , '.join(write(inner) for inner in value)}]"
        return json.dumps(value, ensure_ascii=draw(st.booleans()))

    def spell(name: str) -> str:
        if draw(st.booleans()):
            units = memoryview(name.encode("utf-16-le")).cast("H")
            return '"' + "".join(f"\\u{unit:04X}" for unit in units) + '"'
        return json.dumps(name, ensure_ascii=draw(st.booleans()))

    text = write(draw(st.lists(st.tuples(NAMES, VALUES), max_size=5).map(Pairs)))
    return text.encode(), twice


def judged(value: bytes) -> PredictionRequest | Refusal:
    """What parse() makes of it: nothing else may be raised."""
    try:
        return parse(value, "q", LIMIT)
    except Refusal as refusal:
        return refusal


def strictly(text: bytes) -> Any:
    """Python's own reader, as the runner uses it, but for keys that come twice and numbers that are none."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in found}) == len(found), "a key comes twice"
        return dict(found)

    def constant(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


@settings(max_examples=300)
@given(NEARLY_JSON | st.binary(max_size=100))
@example(b'{"response_queue":"\xff"}')
@example(b'{"response_queue":"r","input":{"\\ud800":1,"\\ud800":2}}')
@example(b'{"response_queue":"r","input":{},"deadline":1e999}')
def test_any_bytes_are_a_request_that_the_runner_can_read_or_are_refused(value: bytes) -> None:
    made = judged(value)
    if isinstance(made, Refusal):
        return
    whole = strictly(value)
    assert strictly(bytes(made.input)) == (whole.get("input") or {})
    for name in ("cog-0.4", "cog-0.6"):
        dialect(name, value)  # it may echo the request


@given(texts())
@example((b'{"a":{"x":1},"b":{"x":1}}', False))
@example((b'{"a":{"x":1,"y":{"x":1}},"x":[{"a":1},{"a":1}]}', False))
@example((b'{"a":1,"\\u0061":1}', True))
def test_keys_that_come_twice_in_one_object_are_found_and_no_others(made: tuple[bytes, bool]) -> None:
    text, twice = made
    fault = json_limits.fault(text)
    assert (fault is not None) == twice, fault


@given(texts(), st.text(max_size=10))
@example((b"{}", False), "\ud800")
def test_whoever_listens_is_found_in_any_object_as_long_as_that_can_be_told(made: tuple[bytes, bool], key: str) -> None:
    text = b'{"response_queue":' + json.dumps(key).encode() + b"," + made[0][1:].lstrip()
    told = json_limits.top_level_string(text, "response_queue")
    assert told == (None if key != key.encode(errors="replace").decode() else key)
    assert json_limits.top_level_string(b'{"response_queue":"other",' + text[1:], "response_queue") is None
    assert json_limits.top_level_string(b'{"inner":' + text + b"}", "response_queue") is None


MARKED = "hunter2" * 8


@given(
    st.sampled_from(["response_queue", "cancel_key", "id", "webhook", "deadline", "traceparent", "key", "value"]),
    VALUES,
)
@example("deadline", None)
def test_a_refusal_repeats_next_to_nothing_of_its_message(field: str, value: Any) -> None:
    """It goes into logs, dead letters and responses; a message may have secrets in it, and megabytes."""
    long = MARKED * 50
    message: dict[str, Any] = {"response_queue": "r", "input": {}, field: [long], long: value, "context": {long: long}}
    for text in (json.dumps(message), json.dumps(message)[:-3], json.dumps(message)[:-1] + f',"{long}":1}}'):
        made = judged(text.encode())
        if isinstance(made, Refusal):
            assert len(str(made)) < 300
            assert long[: LONGEST_REPETITION + 1] not in str(made)


M = 1 << 22
HOSTILE = {
    "arrays": b'{"response_queue":"r","input":{"x":[' + b"[]," * (M // 3 - 30) + b"1]}}",
    "objects": b'{"response_queue":"r","input":{"x":[' + b"{}," * (M // 3 - 30) + b"1]}}",
    "open arrays": b'{"response_queue":"r","input":' + b"[" * (M - 40),
    "keys": b'{"response_queue":"r","input":{' + b'"a":1,' * (M // 6 - 30) + b'"b":1}}',
    "strings": b'{"response_queue":"r","input":{"x":[' + b'"ab",' * (M // 5 - 30) + b"1]}}",
    "urls": b'{"response_queue":"r","output_upload_urls":[' + b'"ab",' * (M // 5 - 30) + b'"ab"]}',
    "urls, cut off": b'{"response_queue":"r","output_upload_urls":[' + b'"ab",' * (M // 5 - 30),
    "context": b'{"response_queue":"r","context":{' + b'"ab":"cd",' * (M // 10 - 30) + b'"x":"y"}}',
    "digits": b'{"response_queue":"r","input":{"x":' + b"1" * (M - 50) + b"}}",
    "escapes, never closed": b'{"response_queue":"r","x":"' + b'\\"' * (M // 2 - 40),
    "quotes": b'{"response_queue":"r","x":' + b'"' * (M - 40),
    "spaces before colons": b'{"response_queue":"r",' + (b'"a"' + b" " * 1000) * (M // 1003 - 1),
    "one large text": b'{"response_queue":"r","input":{"x":"' + b"aGVsbG8=12" * (M // 10 - 30) + b'"}}',
}
MEASURE = """
import resource, sys, time
from cog_celery.delivery.requests import Refusal, parse
value = sys.stdin.buffer.read()
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    key = parse(value, "q", len(value)).response_queue
except Refusal as refusal:
    key = refusal.response_queue
print(key, time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("what", HOSTILE)
def test_a_large_message_of_anything_costs_a_moment_and_little_memory(what: str) -> None:
    value = HOSTILE[what]
    assert M - 3000 < len(value) <= M
    output = subprocess.run(
        [sys.executable, "-c", MEASURE], input=value, cwd=ROOT, capture_output=True, check=True, timeout=60
    ).stdout
    key, took, grew = output.decode().split()
    assert key == "r"
    assert float(took) < 3
    assert int(grew) < 32 << 10  # KiB, of which a copy or two are the message itself


def test_the_limits_cost_a_usual_request_next_to_nothing() -> None:
    input = {"prompt": "a photo of an astronaut riding a horse on mars", "steps": 50, "guidance": 7.5}
    message = {"id": "5f2c6ad1", "input": input, "response_queue": "response-5f2c6ad1", "cancel_key": "cancel-5f2c6ad1"}
    value = json.dumps(message).encode()
    best = min(_timed(lambda: json_limits.fault(value)) for _ in range(20))
    assert best < 50e-6, f"{best * 1e6:.1f} µs"  # 4 µs where it was written


def _timed(call: Any) -> float:
    began = time.perf_counter()
    for _ in range(100):
        call()
    return (time.perf_counter() - began) / 100


BAD = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'{"response_queue":"%b","input":{"x":NaN}}',
    b'{"response_queue":"%b","input":[]}',
    b'{"response_queue":"%b","input":{"action":1,"action":2}}',
    b'{"response_queue":"%b","input":{"x":' + b"[" * 200 + b"]" * 200 + b"}}",
    b'{"response_queue":"%b","input":{"x":' + b"1" * 5000 + b"}}",
    b'{"response_queue":"%b","input":{"x":"\\ud800"}}',
    b'{"response_queue":"%b","input":{"x":"\xff"}}',
    b'{"response_queue":"%b","id":{}}',
    b'{"response_queue":"%b","deadline":"tomorrow"}',
    b'{"response_queue":"%b","cancel_key":"%b"}',
    b'{"response_queue":"%b","input":{"x":"cut off',
]
ODD = [
    b'{"response_queue":"%b","input":{"mode":"hello","\\u0000":"\\u0000","":[]}}',
    b'{"response_queue":"%b","input":{"mode":"hello","text":"\\u0000\x7f"}}',
    b'{"response_queue":"%b","input":{"mode":"hello","seconds":1e999}}',
    b'{"response_queue":"%b","input":{"mode":"hello","count":' + b"9" * MAX_DIGITS + b"}}",
    b'{"response_queue":"%b","input":{"mode":"hello","seconds":' + b"9" * MAX_DIGITS + b"}}",
    b'{"response_queue":"%b","input":{"mode":"hello","x":' + b"[" * 90 + b"]" * 90 + b"}}",
    b'{"response_queue":"%b","input":{"mode":"hello"},"id":"","context":{"":""},"traceparent":"\\r\\n"}',
]
"""Strange, but requests: whether the predictor takes them is its own affair."""


@pytest.mark.ours
def test_bad_and_odd_messages_between_good_ones_are_all_answered_and_stop_nothing(modes: Fleet) -> None:
    producer, client = modes.producer, modes.client
    runners, letters = modes.runners(), client.xlen(f"{modes.queue}-dead")
    keys, good = [], []
    for number, template in enumerate(BAD + ODD):
        key = f"{modes.queue}-bad-{number}"
        producer.send_raw(template.replace(b"%b", key.encode()))
        if b"%b" in template:
            keys.append((key, "failed" if number < len(BAD) else None))
        good.append(producer.send({"mode": "hello"}))
    client.xadd(modes.queue, {"other": "field"})
    good.append(producer.send({"mode": "hello"}))
    for request in good:
        assert producer.wait(request)["output"] == "hello world"
    for key, expected in keys:
        response = producer.wait(key)
        if expected is not None:
            assert response["status"] == expected and "request is not" in response["error"], response
    modes.wait_idle()
    assert client.xlen(f"{modes.queue}-dead") == letters + len(BAD) + 1
    assert modes.runners() == runners
