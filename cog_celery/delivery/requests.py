"""What a producer asks for: parses the bytes of an entry, or says why they cannot be served.

It must not know how an answer looks, nor do any I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from cog_celery.delivery import json_limits
from cog_celery.errors import BadRequest, UrlError
from cog_celery.files import urls

MAX_KEY_BYTES: Final = 1024
"""The longest response_queue or cancel_key. Redis allows 512 MB; no producer needs more than this."""
MAX_LISTED: Final = 10_000
"""Strings in output_upload_urls and the like: such lists are built here, before anybody knows whose they are."""
MAX_TIME: Final = 253_402_300_800
"""Seconds since 1970 to the year 10,000. A time in milliseconds is later."""
OLDEST_ENTRY: Final = 100_000_000_000
"""Milliseconds since 1970, in 1973. An entry of an older id was given it by its producer, and tells no time."""

OUR_PREFIX = "cog-celery:"
"""Every key of ours in Redis begins so, the broker's too."""
OUR_SUFFIXES: Final = ("", ".high", "-dead", "-run-time", "-setup-time")
CELERYS: Final = ("_kombu.", "celery-task-meta-", "celeryev.", "celeryev/", "celery\x06")
CELERYS_OWN: Final = ("celery", "celeryev", "unacked", "unacked_index", "unacked_mutex")
"""How the keys begin that another Celery keeps on the same server: without a prefix, unless it is told to give one."""

_SAFE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127}")
_TRACE: Final = re.compile(r"[\x20-\x7e]{1,512}")


class PredictionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request, names as on the wire; other fields are nobody's business here.

    `input` stays the JSON it came as: the runner reads it. `due` is the deadline as it was sent. `traceparent` and
    `tracestate` can be sent as headers.
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
    due: Annotated[datetime, msgspec.Meta(tz=True)] | float | None = msgspec.field(default=None, name="deadline")

    @property
    def deadline(self) -> float | None:
        """Seconds since 1970 after which nobody wants the prediction any more."""
        return self.due.timestamp() if isinstance(self.due, datetime) else self.due


class Refusal(BadRequest):
    """A message that cannot be served; `response_queue` is where its producer listens, if that can be told."""

    def __init__(self, reason: str, response_queue: str | None = None) -> None:
        self.response_queue = response_queue
        super().__init__(reason)


_decoder = msgspec.json.Decoder(PredictionRequest)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(value: bytes | None, queue: str, max_bytes: int, prefix: str = "") -> PredictionRequest:
    """The request in an entry's field `value`; with `prefix`, its keys must begin with that.

    Raises Refusal, whose message is for the producer, for anything that cannot be served. What a hostile message costs
    is in proportion to its size: nothing is built of it but the fields that are known, and these are limited.
    """
    if value is None:
        raise Refusal("The entry has no field 'value'. Send the request as XADD <queue> * value <json>.")
    if len(value) > max_bytes:
        raise Refusal(
            f"The request has {len(value)} bytes, the limit is {max_bytes}. Send large inputs as URLs.",
            _listener(value, queue, prefix) if len(value) <= 4 * max_bytes else None,
        )
    try:
        request = _decoded(value)
    except Refusal as error:
        raise Refusal(str(error), _listener(value, queue, prefix)) from None
    if request.response_queue is None:
        raise Refusal("The request names no `response_queue`: nobody would see its prediction.")
    check_key("response_queue", request.response_queue, queue, prefix)
    try:
        return _checked(request, queue, prefix)
    except Refusal as error:
        raise Refusal(str(error), request.response_queue) from None


def _decoded(value: bytes) -> PredictionRequest:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise Refusal(f"The request is not UTF-8: byte {error.start} is not valid.") from None
    fault = json_limits.fault(value)
    if fault is not None:
        raise Refusal(f"The request is not valid: {fault}.")
    try:
        if value.count(b'"') > 2 * MAX_LISTED:
            _refuse_long_lists(value)
        return _decoder.decode(value)
    except msgspec.ValidationError as error:
        raise Refusal(f"The request is not valid: {error}.{_hint(str(error))}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(f"The request is not JSON: {error}.") from None


def _checked(request: PredictionRequest, queue: str, prefix: str) -> PredictionRequest:
    first = memoryview(request.input)[0]
    if first == ord("n"):
        request = msgspec.structs.replace(request, input=msgspec.Raw(b"{}"))
    elif first != ord("{"):
        raise Refusal("The request is not valid: `input` must be an object.")
    if request.cancel_key is not None:
        check_key("cancel_key", request.cancel_key, queue, prefix)
        if request.cancel_key == request.response_queue:
            raise Refusal("The request is not valid: `cancel_key` is the `response_queue`: a response would cancel it.")
    for url in request.output_upload_urls or ():
        try:
            urls.parse(url)
        except UrlError as error:
            raise Refusal(f"The request is not valid: `output_upload_urls`: {error}.") from None
    if request.id == "":
        request = msgspec.structs.replace(request, id=None)  # a producer's zero value: no id at all
    deadline = request.deadline
    if deadline is not None and not 0 <= deadline <= MAX_TIME:
        raise Refusal(f"The request is not valid: `deadline` is out of range.{_hint('$.deadline')}")
    # As the standard has it, a context that cannot be read is left out. It would be a header of an upload.
    if request.traceparent is not None and not _TRACE.fullmatch(request.traceparent):
        request = msgspec.structs.replace(request, traceparent=None, tracestate=None)
    if request.tracestate is not None and not _TRACE.fullmatch(request.tracestate):
        request = msgspec.structs.replace(request, tracestate=None)
    return request


class _Versioned(msgspec.Struct):
    version: msgspec.Raw = msgspec.Raw(b"null")


_versioned = msgspec.json.Decoder(_Versioned)
_version = msgspec.json.Decoder(str | int | None)


def version_of(value: bytes, response_queue: str | None) -> str | None:
    """The model's version that a request names, for queues that look at it; of a request that parse() took.

    Raises Refusal.
    """
    try:
        version = _version.decode(_versioned.decode(value).version)
    except msgspec.DecodeError:
        raise Refusal("The request is not valid: `version` must be a text.", response_queue) from None
    return None if version is None or version == "" else str(version)


def check_key(field: str, key: str, queue: str, prefix: str = "") -> None:
    """Raise Refusal unless `key` may be read or written for a producer: a short name that is nobody else's."""
    if not isinstance(key, str) or not key:
        raise Refusal(f"The request is not valid: `{field}` must be a name, not empty.")
    if len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise Refusal(f"The request is not valid: `{field}` is longer than {MAX_KEY_BYTES} bytes.")
    if key.startswith(OUR_PREFIX) or (key.startswith(queue) and key[len(queue) :] in OUR_SUFFIXES):
        raise Refusal(f"The request is not valid: `{field}` names a key that belongs to the queue itself.")
    if key.startswith(CELERYS) or key in CELERYS_OWN or key.endswith(".pidbox"):
        raise Refusal(f"The request is not valid: `{field}` names a key that belongs to Celery.")
    if not key.startswith(prefix):
        raise Refusal(f"The request is not valid: `{field}` must begin with {prefix!r} on this queue.")


def expired(request: PredictionRequest, entry: str, now: float, max_age: float | None) -> str | None:
    """The public message about a request whose turn comes too late; None if it comes in time.

    `now` is in seconds since 1970, `max_age` in seconds. The request's age is told by its entry's id, which has the
    time in milliseconds by the server's clock.
    """
    deadline = request.deadline
    if deadline is not None and now > deadline:
        at = datetime.fromtimestamp(min(deadline, MAX_TIME - 1), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"Prediction expired: its deadline {at} passed {now - deadline:.1f} s before its turn came."
    if max_age is not None:
        added = int(entry.partition("-")[0])
        age = now - added / 1000
        if added >= OLDEST_ENTRY and age > max_age:
            return (
                f"Prediction expired: it waited {age:.1f} s in the queue, longer than max_age, which is {max_age:g} s."
            )
    return None


def prediction_id(request: PredictionRequest, entry: str) -> str:
    """The producer's id, when it is safe as one, else the entry's."""
    id = request.id
    if isinstance(id, int):
        id = str(id)
    return id if id is not None and _SAFE_ID.fullmatch(id) else entry


def fields(value: bytes) -> Mapping[str, msgspec.Raw]:
    """All fields of a request that parse() took, known or not, as JSON; for dialects that echo it."""
    return _fields.decode(value)


class _Lists(msgspec.Struct):
    """The fields that are lists, as JSON."""

    output_upload_urls: msgspec.Raw = msgspec.Raw()
    webhook_events_filter: msgspec.Raw = msgspec.Raw()


_lists = msgspec.json.Decoder(_Lists)


def _refuse_long_lists(value: bytes) -> None:
    lists = _lists.decode(value)
    for name in _Lists.__struct_fields__:
        if bytes(getattr(lists, name)).count(b'"') > 2 * MAX_LISTED:
            raise Refusal(f"The request is not valid: `{name}` has more than {MAX_LISTED} entries.")


def _hint(error: str) -> str:
    if "$.deadline" not in error:
        return ""
    return " It is a number of seconds since 1970, or a time with its zone like 2026-11-30T12:00:00Z."


def _listener(value: bytes, queue: str, prefix: str) -> str | None:
    """The response_queue of a message that is otherwise unusable, if it can be read and may be written."""
    key = json_limits.top_level_string(value, "response_queue")
    try:
        check_key("response_queue", key or "", queue, prefix)
    except Refusal:
        return None
    return key
