"""What is a request, and how it is said what is wrong with one."""

from __future__ import annotations

import pytest

from cog_celery.requests import PredictionRequest, Refusal, parse


def read(value: bytes | None, max_bytes: int = 10_000) -> PredictionRequest:
    return parse(value, "q", max_bytes)


def test_missing_and_null_inputs_are_empty_objects() -> None:
    for value in (b'{"response_queue":"r"}', b'{"response_queue":"r","input":null}'):
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
        (b"{", "not JSON", None),
        (b'{"response_queue":"r","input":[1]}', "`input` must be an object", "r"),
        (b'{"response_queue":"r","input":{"x":NaN}}', "not JSON", "r"),
        (b'{"response_queue":"r","id":[]}', "$.id", "r"),
        (b'{"response_queue":"r","context":{"a":1}}', "context", "r"),
        (b'{"response_queue":"r","x":"\xff"}', "not UTF-8", "r"),
        (b'{"input":{}}', "no `response_queue`", None),
        (b'{"response_queue":""}', "response_queue", None),
        (b'{"response_queue":3}', "response_queue", None),
        (b'{"response_queue":"q"}', "belongs to the queue", None),
        (b'{"response_queue":"q-dead"}', "belongs to the queue", None),
        (b'{"response_queue":"cog-celery:q:credits"}', "belongs to the queue", None),
        (b'{"response_queue":"_kombu.binding.x"}', "belongs to the queue", None),
        (b'{"response_queue":"r","cancel_key":"q"}', "cancel_key", "r"),
        (b'{"response_queue":"' + b"r" * 2000 + b'"}', "longer than", None),
        (b'{"response_queue":"r","output_upload_urls":["ftp://x/y"]}', "output_upload_urls", "r"),
        (b'{"response_queue":"r","x":' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON", None),
    ],
)
def test_a_message_that_cannot_be_served_says_why_and_to_whom(
    value: bytes | None, reason: str, listener: str | None
) -> None:
    with pytest.raises(Refusal) as refusal:
        read(value, 100_000)
    assert reason in str(refusal.value)
    assert refusal.value.response_queue == listener


def test_a_message_that_is_too_large_is_not_read_but_answered() -> None:
    value = b'{"response_queue":"r","input":{"x":"' + b"y" * 200 + b'"}}'
    with pytest.raises(Refusal, match="the limit is 100") as refusal:
        read(value, 100)
    assert refusal.value.response_queue == "r"
    with pytest.raises(Refusal) as refusal:
        read(value, 10)  # far too large to look into
    assert refusal.value.response_queue is None
