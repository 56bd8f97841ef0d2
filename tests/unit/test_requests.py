"""What is a request, when it comes too late, and how it is said what is wrong with one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cog_celery.delivery import json_limits
from cog_celery.delivery.requests import PredictionRequest, Refusal, expired, parse


def read(value: bytes | None, max_bytes: int = 10_000, prefix: str = "") -> PredictionRequest:
    return parse(value, "q", max_bytes, prefix)


def message(**fields: Any) -> bytes:
    return json.dumps({"response_queue": "r", **fields}).encode()


def refused(value: bytes | None, max_bytes: int = 10_000, prefix: str = "") -> Refusal:
    with pytest.raises(Refusal) as refusal:
        read(value, max_bytes, prefix)
    return refusal.value


def test_missing_and_null_inputs_are_empty_objects() -> None:
    for value in (b'{"response_queue":"r"}', b'{"response_queue":"r","input": null}'):
        assert bytes(read(value).input) == b"{}"


def test_fields_that_mean_nothing_here_may_be_of_any_type() -> None:
    request = read(b'{"response_queue":"r","version":3,"created_at":[],"whatever":{"x":null},"id":7}')
    assert request.id == 7


@pytest.mark.parametrize(
    ("value", "reason", "listener"),
    [
        (None, "no field 'value'", None),
        (b"", "not JSON", None),
        (b"[]", "not valid", None),
        (b'[{"response_queue":"r"}]', "not valid", None),
        (b"{", "not JSON", None),
        (b'{"response_queue":"r","input":{"x":"cut o', "not JSON", "r"),
        (b'{"response_queue":"r","input":[1]}', "`input` must be an object", "r"),
        (b'{"response_queue":"r","input":{"x":NaN}}', "not JSON", "r"),
        (b'{"response_queue":"r","input":{"x":-Infinity}}', "not JSON", "r"),
        (rb'{"response_queue":"r","input":{"x":"\ud800 half a pair"}}', "not JSON", "r"),
        (rb'{"response_queue":"\ud800 half a pair","input":{}}', "not JSON", None),
        (b'{"response_queue":"r","x":"\xff"}', "not UTF-8", "r"),
        (b'{"response_queue":"\xff"}', "not UTF-8", None),
        (b'\xff\xfe{"response_queue":"r"}', "not UTF-8", "r"),
        (b'{"input":{}}', "no `response_queue`", None),
        (b'{"response_queue":null}', "no `response_queue`", None),
        (b'{"response_queue":""}', "response_queue", None),
        (b'{"response_queue":3}', "$.response_queue", None),
        (b'{"response_queue":"r","cancel_key":""}', "cancel_key", "r"),
        (b'{"response_queue":"r","cancel_key":"r"}', "`cancel_key` is the `response_queue`", "r"),
        (b'{"response_queue":"' + b"r" * 2000 + b'"}', "longer than", None),
        (b'{"response_queue":"r","output_upload_urls":["ftp://x/y"]}', "output_upload_urls", "r"),
        (b'{"response_queue":"r","x":' + b"[" * 5000 + b"]" * 5000 + b"}", "more than 100 levels deep", "r"),
        (b'{"response_queue":"r","x":' + b'{"y":' * 5000 + b"1" + b"}" * 5001, "more than 100 levels deep", "r"),
        (b'{"response_queue":"r","x":' + b"1" * 641 + b"}", "more than 640 digits", "r"),
        (b'{"response_queue":"r","x":[-' + b"1" * 90_000 + b"]}", "more than 640 digits", "r"),
        (b'{"response_queue":"r","id":1.5}', "$.id", "r"),
        (b'{"response_queue":"r","response_queue":"s"}', "'response_queue' comes twice", None),
        (b'{"response_queue":"r","input":{"a":1,"b":2,"a":3}}', "'a' comes twice", "r"),
        (b'{"response_queue":"r","input":{"x":[{"a":{}},{"a":1,"a":1}]}}', "'a' comes twice", "r"),
        (rb'{"response_queue":"r","input":{"a":1,"\u0061":2}}', "'a' comes twice", "r"),
        (rb'{"response_queue":"r","input":{"\/":1,"/":2}}', "'/' comes twice", "r"),
        ('{"response_queue":"r","ü":1,"\\u00fc":2}'.encode(), "'ü' comes twice", "r"),
        (b'{"response_queue":"r","\x1b[2J":1,"\x1b[2J":1}', r"'\x1b[2J' comes twice", "r"),
        (b'{"response_queue":"r","":1,"":1}', "'' comes twice", "r"),
    ],
)
def test_a_message_that_cannot_be_served_says_why_and_to_whom(
    value: bytes | None, reason: str, listener: str | None
) -> None:
    refusal = refused(value, 100_000)
    assert reason in str(refusal)
    assert refusal.response_queue == listener


def test_a_message_of_very_many_keys_arrays_or_urls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_limits, "MAX_KEYS", 10_000)
    monkeypatch.setattr(json_limits, "MAX_CONTAINERS", 100_000)
    keys = refused(b'{"response_queue":"r","input":{%b}}' % b",".join(b'"%d":0' % n for n in range(10_001)), 1 << 24)
    assert "more than 10000 keys" in str(keys) and keys.response_queue == "r"
    arrays = refused(b'{"response_queue":"r","input":{"x":[%b0]}}' % (b"[]," * 100_000), 1 << 24)
    assert "more than 100000 arrays and objects" in str(arrays) and arrays.response_queue == "r"
    urls = refused(message(output_upload_urls=["http://x/"] * 10_001), 1 << 24)
    assert "`output_upload_urls` has more than 10000 entries" in str(urls) and urls.response_queue == "r"


def test_what_is_within_the_limits_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_limits, "MAX_KEYS", 10_000)
    monkeypatch.setattr(json_limits, "MAX_CONTAINERS", 100_000)
    deep = b'{"response_queue":"r","input":{"x":' + b"[" * 98 + b"1" + b"]" * 98 + b"}}"
    wide = b'{"response_queue":"r","input":{%b}}' % b",".join(b'"%d":0' % n for n in range(9_998))
    many = b'{"response_queue":"r","input":{"x":[%b0]}}' % (b'{"a":1},' * 9_990)
    pairs = b'{"response_queue":"r","input":{"x":[%b0]}}' % (b"[1,2]," * 99_990)
    digits = b'{"response_queue":"r","input":{"x":%b,"text":"%b"}}' % (b"9" * 640, b"9" * 5000)
    texts = message(input={"text": '{"a":1,"a":2}' + "[" * 500 + ":" * 20_000, "list": ['"'] * 30_000})
    urls = message(output_upload_urls=["http://x/?,:{}[]"] * 9_990)
    for value in (deep, wide, many, pairs, digits, texts, urls, b'{"response_queue":"r","id":%b}' % (b"9" * 640)):
        assert read(value, 1 << 24).response_queue == "r"


@pytest.mark.parametrize("field", ["id", "cancel_key", "traceparent", "tracestate", "webhook", "deadline"])
@pytest.mark.parametrize("value", [[], {}, True, [1], {"a": "b"}])
def test_a_field_of_a_wrong_type_is_named(field: str, value: Any) -> None:
    refusal = refused(message(**{field: value}))
    assert f"$.{field}" in str(refusal)
    assert refusal.response_queue == "r"


@pytest.mark.parametrize("field", ["webhook_events_filter", "output_upload_urls", "context"])
@pytest.mark.parametrize("value", ["text", 3, [1], {"a": 1}, [None], {"a": None}])
def test_a_list_or_object_of_wrong_things_is_named(field: str, value: Any) -> None:
    refusal = refused(message(**{field: value}))
    assert f"$.{field}" in str(refusal)
    assert refusal.response_queue == "r"


@pytest.mark.parametrize(
    "key",
    [
        *("q", "q-dead", "q-run-time", "q-setup-time", "cog-celery:", "cog-celery:q:credits", "cog-celery:broker:x"),
        *("celery", "celery\x06\x163", "celeryev", "celery-task-meta-1", "_kombu.binding.x", "unacked_index"),
        "worker@host.celery.pidbox",
    ],
)
def test_no_key_of_ours_or_of_celery_may_be_named(key: str) -> None:
    refusal = refused(message(response_queue=key))
    assert "`response_queue` names a key that belongs to" in str(refusal) and refusal.response_queue is None
    refusal = refused(message(cancel_key=key))
    assert "`cancel_key` names a key that belongs to" in str(refusal) and refusal.response_queue == "r"


@pytest.mark.parametrize("key", ["q-response", "queue", "q:1", "celery-results", "Q", "a\x00b", " ", "\n", "ü", "😀"])
def test_any_other_name_is_a_key(key: str) -> None:
    request = read(message(response_queue=key, cancel_key=f"{key}-cancel"))
    assert (request.response_queue, request.cancel_key) == (key, f"{key}-cancel")


def test_with_a_prefix_both_keys_must_begin_with_it() -> None:
    request = read(message(response_queue="mine:r", cancel_key="mine:c"), prefix="mine:")
    assert (request.response_queue, request.cancel_key) == ("mine:r", "mine:c")
    refusal = refused(message(response_queue="other:r"), prefix="mine:")
    assert "`response_queue` must begin with 'mine:'" in str(refusal) and refusal.response_queue is None
    refusal = refused(message(response_queue="mine:r", cancel_key="other:c"), prefix="mine:")
    assert "`cancel_key` must begin with 'mine:'" in str(refusal) and refusal.response_queue == "mine:r"
    # Nor is a message that cannot be served at all answered anywhere else.
    assert refused(message(response_queue="other:r", input=[]), prefix="mine:").response_queue is None
    assert refused(b'{"response_queue":"other:r",', prefix="mine:").response_queue is None
    assert refused(b'{"response_queue":"mine:r",', prefix="mine:").response_queue == "mine:r"
    assert "belongs to the queue" in str(refused(message(response_queue="q"), prefix="q"))


def test_a_message_that_is_too_large_is_not_read_but_answered() -> None:
    value = b'{"response_queue":"r","input":{"x":"' + b"y" * 200 + b'"}}'
    refusal = refused(value, 100)
    assert "the limit is 100" in str(refusal) and refusal.response_queue == "r"
    assert refused(value, 10).response_queue is None  # far too large to look into


@pytest.mark.parametrize("name", ["traceparent", "tracestate"])
def test_a_trace_context_that_is_no_header_is_left_out(name: str) -> None:
    context = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=b"}
    request = read(message(**context))
    assert (request.traceparent, request.tracestate) == tuple(context.values())
    for bad in ("", "a\r\nX-Injected: 1", "ü", "\x00", "x" * 600):
        assert getattr(read(message(**{**context, name: bad})), name) is None


# A request's deadline, and its age


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [
        (1_700_000_000, 1_700_000_000.0),
        (1_700_000_000.25, 1_700_000_000.25),
        (0, 0.0),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T22:13:20.5+00:00", 1_700_000_000.5),
        ("2023-11-14 23:13:20+01:00", 1_700_000_000.0),
        ("9999-12-31T23:59:59Z", 253_402_300_799.0),
        (None, None),
    ],
)
def test_a_deadline_is_a_number_of_seconds_or_a_time_with_its_zone(deadline: Any, seconds: float | None) -> None:
    assert read(message(deadline=deadline)).deadline == seconds


@pytest.mark.parametrize(
    "deadline",
    [
        *("2023-11-14T22:13:20", "2023-11-14", "tomorrow", "", "1700000000", "2023-13-14T22:13:20Z"),
        *(-1, -(10**30), 10**30, 1_700_000_000_000, "0001-01-01T00:00:00Z", True, [], {}),
    ],
)
def test_any_other_deadline_is_refused_with_what_it_should_be(deadline: Any) -> None:
    refusal = refused(message(deadline=deadline))
    assert "deadline" in str(refusal)
    assert "seconds since 1970, or a time with its zone" in str(refusal)
    assert refusal.response_queue == "r"


def test_an_infinite_deadline_is_refused() -> None:
    assert "$.deadline" in str(refused(b'{"response_queue":"r","deadline":1e999}'))


ENTRY = "1700000000000-0"


def test_a_deadline_that_has_passed_is_told_with_how_long_ago() -> None:
    request = read(message(deadline=1_700_000_010))
    assert expired(request, ENTRY, 1_700_000_010.0, None) is None
    assert expired(request, ENTRY, 1_700_000_022.34, None) == (
        "Prediction expired: its deadline 2023-11-14T22:13:30Z passed 12.3 s before its turn came."
    )


def test_a_request_that_waited_longer_than_it_may_is_told_how_long() -> None:
    request = read(message())
    assert expired(request, ENTRY, 1_700_000_060.0, 60.0) is None
    assert expired(request, ENTRY, 1_700_000_061.5, 60.0) == (
        "Prediction expired: it waited 61.5 s in the queue, longer than max_age, which is 60 s."
    )
    assert expired(request, ENTRY, 1_700_000_061.5, None) is None


@pytest.mark.parametrize("entry", ["0-1", "1-0", "99999999999-7", "18446744073709551615-1"])
def test_an_entry_whose_id_tells_no_time_or_one_to_come_has_no_age(entry: str) -> None:
    assert expired(read(message()), entry, 1_700_000_000.0, 1.0) is None


def test_any_deadline_that_is_taken_can_be_told() -> None:
    for deadline in (0, 0.001, 253_402_300_799.9, "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"):
        assert str(expired(read(message(deadline=deadline)), ENTRY, 1e12, None)).startswith("Prediction expired: ")


def test_requests_of_real_models_are_not_too_many() -> None:
    boxes = message(input={"boxes": [{"x": 1, "y": 2, "w": 3, "h": 4}] * 20_000, "points": [[0.5, 0.5]] * 120_000})
    assert read(boxes, 1 << 24).response_queue == "r"


def test_an_empty_id_is_none() -> None:
    assert read(message(id="")).id is None
