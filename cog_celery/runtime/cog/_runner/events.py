"""The messages from the runner to the slot, as bytes; docs/runner-protocol.md says what they mean.

It must not send them.
"""

from __future__ import annotations

import sys
from typing import Any, Optional

from .outputs import to_json
from .signature import Input

PROTOCOL = 2


def hello() -> bytes:
    return _line({"type": "hello", "protocol": PROTOCOL, "python": sys.version.split()[0]})


def ready(setup_time: float, in_setup: float, inputs: list[Input], concurrency: int, healthcheck: bool) -> bytes:
    described = [{"name": field.name, "type": field.type, "required": field.required} for field in inputs]
    return _line(
        {
            "type": "ready",
            "setup_time": round(setup_time, 6),
            "in_setup": round(in_setup, 6),
            "inputs": described,
            "concurrency": concurrency,
            "healthcheck": healthcheck,
        }
    )


def setup_failed(kind: str, error: str, in_setup: Optional[float]) -> bytes:
    return _line({"type": "setup_failed", "kind": kind, "error": error, "in_setup": in_setup})


def accepted(id: bytes, files: list[str], ignored: list[str]) -> bytes:
    """`id` is JSON already, here and below."""
    if not files and not ignored:
        return b'{"type":"accepted","id":%b,"files":[]}\n' % id
    extra = b',"ignored":' + to_json(ignored) if ignored else b""
    return b'{"type":"accepted","id":%b,"files":%b%b}\n' % (id, to_json(files), extra)


def refused(id: bytes, errors: list[dict[str, Any]]) -> bytes:
    return b'{"type":"refused","id":%b,"errors":%b}\n' % (id, to_json(_finite(errors)))


def log(id: bytes, text: str) -> bytes:
    return b'{"type":"log","id":%b,"text":%b}\n' % (id, to_json(text))


def blocked(id: Optional[bytes], seconds: float, at: str) -> bytes:
    return b'{"type":"blocked","id":%b,"seconds":%.3f,"at":%b}\n' % (id or b"null", seconds, to_json(at))


def health(healthy: bool, error: Optional[str]) -> bytes:
    return _line({"type": "health", "healthy": healthy, "error": error})


def schema(document: dict[str, Any]) -> bytes:
    return _line({"type": "schema", "document": document})


def test_inputs(input: bytes, files: bytes, error: Optional[str]) -> bytes:
    """`input` and `files` are JSON already, `files` empty when there are none."""
    return b'{"type":"test_inputs","input":%b,"files":%b,"error":%b}\n' % (input, files or b"[]", to_json(error))


def output(id: bytes, value: bytes, files: bytes) -> bytes:
    """`value` and `files` are JSON already, `files` empty when there are none."""
    if files:
        return b'{"type":"output","id":%b,"value":%b,"files":%b}\n' % (id, value, files)
    return b'{"type":"output","id":%b,"value":%b}\n' % (id, value)


def done(
    id: bytes,
    status: bytes,
    streamed: bool,
    predict_time: float,
    output: Optional[bytes] = None,
    files: bytes = b"",
    error: Optional[str] = None,
    metrics: bytes = b"",
    platform: bool = False,
) -> bytes:
    """`platform`: the error is not the model's."""
    parts = [b'{"type":"done","id":%b,"status":"%b"' % (id, status)]
    if output is not None:
        parts.append(b',"output":' + output)
    if files:
        parts.append(b',"files":' + files)
    parts.append(b',"streamed":true' if streamed else b',"streamed":false')
    if error is not None:
        parts.append(b',"error":' + to_json(error))
    if platform:
        parts.append(b',"fault":"platform"')
    if metrics:
        parts.append(b',"metrics":' + metrics)
    parts.append(b',"predict_time":%.6f}\n' % predict_time)
    return b"".join(parts)


def _line(message: dict[str, Any]) -> bytes:
    return to_json(message) + b"\n"


def _finite(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A limit that is an infinity has no form in JSON."""
    return [
        {**error, "limit": None}
        if isinstance(error["limit"], float) and error["limit"] - error["limit"] != 0
        else error
        for error in errors
    ]
