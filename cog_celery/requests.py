"""What a producer asks for: parses the bytes of an entry, or says why they cannot be served.

It must not know how an answer looks, nor do any I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from cog_celery import urls
from cog_celery.errors import BadRequest, UrlError

MAX_KEY_BYTES = 1024
"""The longest response_queue or cancel_key. Redis allows 512 MB; no producer needs more than this."""

OUR_PREFIX = "cog-celery:"
"""Every key of ours in Redis begins so, the broker's too."""


class PredictionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request, names as on the wire; other fields are nobody's business here.

    `input` stays the JSON it came as: the runner reads it.
    """

    input: msgspec.Raw = msgspec.Raw(b"{}")
    response_queue: str | None = None
    id: str | int | None = None
    cancel_key: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    webhook: str | None = None
    webhook_events_filter: list[str] | None = None
    context: dict[str, str] | None = None
    output_upload_urls: list[str] | None = None


class Refusal(BadRequest):
    """A message that cannot be served; `response_queue` is where its producer listens, if that can be told."""

    def __init__(self, reason: str, response_queue: str | None = None) -> None:
        self.response_queue = response_queue
        super().__init__(reason)


_decoder = msgspec.json.Decoder(PredictionRequest)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(value: bytes | None, queue: str, max_bytes: int) -> PredictionRequest:
    """The request in an entry's field `value`.

    Raises Refusal, whose message is for the producer, for anything that cannot be served.
    """
    if value is None:
        raise Refusal("The entry has no field 'value'. Send the request as XADD <queue> * value <json>.")
    if len(value) > max_bytes:
        raise Refusal(
            f"The request has {len(value)} bytes, the limit is {max_bytes}. Send large inputs as URLs.",
            _listener(value, queue) if len(value) <= 4 * max_bytes else None,
        )
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise Refusal(f"The request is not UTF-8: byte {error.start} is not valid.", _listener(value, queue)) from None
    try:
        request = _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise Refusal(f"The request is not valid: {error}.", _listener(value, queue)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(f"The request is not JSON: {error}.", _listener(value, queue)) from None
    if bytes(request.input) == b"null":
        request = msgspec.structs.replace(request, input=msgspec.Raw(b"{}"))
    elif bytes(request.input)[:1] != b"{":
        raise Refusal("The request is not valid: `input` must be an object.", _listener(value, queue))
    if request.response_queue is None:
        raise Refusal("The request names no `response_queue`: nobody would see its prediction.")
    check_key("response_queue", request.response_queue, queue)
    if request.cancel_key is not None:
        try:
            check_key("cancel_key", request.cancel_key, queue)
        except Refusal as error:
            raise Refusal(str(error), request.response_queue) from None
    for url in request.output_upload_urls or ():
        try:
            urls.parse(url)
        except UrlError as error:
            raise Refusal(f"The request is not valid: `output_upload_urls`: {error}.", request.response_queue) from None
    return request


def check_key(field: str, key: str, queue: str) -> None:
    """Raise Refusal unless `key` may be read or written for a producer: a short name that is none of ours."""
    if not isinstance(key, str) or not key:
        raise Refusal(f"The request is not valid: `{field}` must be a name, not empty.")
    if len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise Refusal(f"The request is not valid: `{field}` is longer than {MAX_KEY_BYTES} bytes.")
    ours = key in (queue, f"{queue}-dead", f"{queue}-run-time", f"{queue}-setup-time")
    if ours or key.startswith((OUR_PREFIX, "_kombu.", "unacked")):
        raise Refusal(f"The request is not valid: `{field}` names a key that belongs to the queue itself.")


def fields(value: bytes) -> Mapping[str, msgspec.Raw]:
    """All fields of a request that parse() took, known or not, as JSON; for dialects that echo it."""
    return _fields.decode(value)


def _listener(value: bytes, queue: str) -> str | None:
    """The response_queue of a message that is otherwise unusable, if it can be read and may be written."""
    try:
        # Python's own reader takes what is almost JSON (NaN, lone surrogates, bad UTF-8): good enough to answer.
        key = json.loads(value.decode(errors="replace"))["response_queue"]
        check_key("response_queue", key, queue)
        key.encode()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, Refusal):
        return None
    return str(key)
