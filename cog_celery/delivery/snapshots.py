"""The response in each dialect: a prediction as the JSON that its producer reads.

It must not know where snapshots go, nor change a prediction.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, Protocol

import msgspec

from cog_celery.delivery import requests
from cog_celery.delivery.prediction import Prediction

DialectName = Literal["cog-0.4", "cog-0.6"]

_encode = msgspec.json.encode


class Dialect(Protocol):
    """How snapshots of one prediction look. One is made for each request."""

    def line(self, line: str) -> str | None:
        """A log line as this dialect shows it; None leaves it out."""
        ...

    def render(self, prediction: Prediction, processing: bool = False) -> bytes:
        """The complete snapshot; with `processing`, as it stood just before it became terminal."""
        ...


def dialect(name: DialectName, value: bytes | None) -> Dialect:
    """The dialect of that name for the request whose JSON is `value` (None: a message that is no request)."""
    if name == "cog-0.6":
        return Cog06(value)
    return Cog04()


def output(prediction: Prediction, processing: bool) -> bytes:
    """The output so far, as JSON. A value that was returned shows in the terminal snapshot only."""
    if prediction.items is not None:
        return b"[" + b",".join(prediction.items) + b"]"
    return b"null" if processing else bytes(prediction.single)


class Cog04:
    """Exactly the keys status, output, logs, error (failed only), x-experimental-timestamps (unless refused)."""

    __slots__ = ()

    def line(self, line: str) -> str | None:
        return line.rstrip()

    def render(self, prediction: Prediction, processing: bool = False) -> bytes:
        processing = processing or not prediction.terminal
        parts = [
            b'{"status":"',
            b"processing" if processing else prediction.status.encode(),
            b'","output":',
            output(prediction, processing),
            b',"logs":',
            _encode(prediction.logs) if prediction.logs else b"[]",
        ]
        if prediction.started_at is not None:
            parts += (b',"x-experimental-timestamps":{"started_at":"', timestamp(prediction.started_at), b'"')
            if not processing and prediction.completed_at is not None:
                parts += (b',"completed_at":"', timestamp(prediction.completed_at), b'"')
            parts.append(b"}")
        if prediction.error is not None and not processing:
            parts += (b',"error":', text(prediction.error))
        parts.append(b"}")
        return b"".join(parts)


class Cog06:
    """The request echoed, with status, output, logs (one string), times with Z, metrics, error."""

    OURS = frozenset({"status", "output", "logs", "error", "started_at", "completed_at", "metrics"})

    def __init__(self, value: bytes | None) -> None:
        echoed = b""
        if value is not None:
            for name, raw in requests.fields(value).items():
                if name == "input" and bytes(raw) == b"null":
                    raw = msgspec.Raw(b"{}")
                if name not in self.OURS:
                    echoed += _encode(name) + b":" + bytes(raw) + b","
        self._head = b"{" + echoed + b'"status":"'

    def line(self, line: str) -> str | None:
        return line.strip() or None

    def render(self, prediction: Prediction, processing: bool = False) -> bytes:
        processing = processing or not prediction.terminal
        logs = "\n".join(prediction.logs) + "\n" if prediction.logs else ""
        parts = [
            self._head,
            b"processing" if processing else prediction.status.encode(),
            b'","output":',
            output(prediction, processing),
            b',"logs":',
            text(logs),
        ]
        if prediction.started_at is not None:
            parts += (b',"started_at":"', timestamp(prediction.started_at), b'Z"')
            if not processing and prediction.completed_at is not None:
                parts += (b',"completed_at":"', timestamp(prediction.completed_at), b'Z"')
        if not processing:
            if prediction.status == "succeeded":
                parts += (b',"metrics":', self._metrics(prediction))
            if prediction.error is not None:
                parts += (b',"error":', text(prediction.error))
        parts.append(b"}")
        return b"".join(parts)

    @staticmethod
    def _metrics(prediction: Prediction) -> bytes:
        metrics: dict[str, object] = {}
        if prediction.metrics is not None:
            metrics.update(msgspec.json.decode(prediction.metrics, type=dict[str, object]))
        metrics["predict_time"] = prediction.predict_time or 0.0
        return _encode(metrics)


_second: tuple[int, str] = (0, "1970-01-01T00:00:00")


def timestamp(seconds: float) -> bytes:
    """`2022-09-22T14:31:17.000000`: UTC, always six fraction digits, no suffix."""
    global _second
    whole, fraction = divmod(round(seconds * 1e6), 1_000_000)
    second = _second
    if second[0] != whole:  # written once a second; the rest is what costs
        second = _second = (whole, datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return b"%b.%06d" % (second[1].encode(), fraction)


def text(value: str) -> bytes:
    """A string as JSON. A lone surrogate, which a model may put into an exception, becomes a question mark."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(value.encode("utf-8", "replace").decode())
