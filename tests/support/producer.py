"""Sends requests as any producer does, by XADD, and follows their response keys.

It must not know who consumes the queue.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from tests.support.monitor import Monitor, Snapshot

TERMINAL = ("succeeded", "failed", "canceled")
TIMESTAMPS = "x-experimental-timestamps"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")


@dataclass(frozen=True)
class Request:
    """One request: its prediction id, its entry in the stream, and the keys it names."""

    id: str
    entry: str
    response_queue: str
    cancel_key: str


@dataclass
class Producer:
    """One producer of one queue."""

    client: redis.Redis
    queue: str
    sent: list[Request] = field(default_factory=list)

    def send(self, input: dict[str, Any] | None = None, /, **fields: Any) -> Request:
        """XADD a request. `fields` are added to the message, or replace what it has; None leaves one out."""
        unique = uuid.uuid4().hex
        message: dict[str, Any] = {
            "id": f"prediction-{unique}",
            "input": input or {},
            "response_queue": f"response-{unique}",
            "cancel_key": f"cancel-{unique}",
        }
        message.update(fields)
        message = {name: value for name, value in message.items() if value is not None}
        entry = self.send_raw(json.dumps(message))
        request = Request(
            id=message.get("id", ""),
            entry=entry,
            response_queue=message.get("response_queue", ""),
            cancel_key=message.get("cancel_key", ""),
        )
        self.sent.append(request)
        return request

    def send_raw(self, value: str | bytes) -> str:
        """XADD an entry with `value` as it is."""
        return cast(str, self.client.xadd(self.queue, {"value": value}))

    def cancel(self, request: Request) -> None:
        self.client.set(request.cancel_key, "")

    def get(self, request: Request | str) -> dict[str, Any] | None:
        """The response as it stands, None before the first snapshot."""
        key = request if isinstance(request, str) else request.response_queue
        text = cast("str | None", self.client.get(key))
        return None if text is None else json.loads(text)

    def wait(self, request: Request | str, *, timeout: float = 15.0) -> dict[str, Any]:
        """The terminal snapshot; AssertionError with the last one seen after `timeout` seconds."""
        return self.wait_for(request, lambda response: response["status"] in TERMINAL, timeout=timeout)

    def wait_for(self, request: Request | str, condition: Any, *, timeout: float = 15.0) -> dict[str, Any]:
        """The first snapshot that meets `condition(snapshot)`, woken by the key's notifications."""
        key = request if isinstance(request, str) else request.response_queue
        deadline = time.monotonic() + timeout
        with self.client.pubsub() as notices:
            notices.subscribe(f"__keyspace@0__:{key}")
            while True:
                response = self.get(key)
                if response is not None and condition(response):
                    return response
                left = deadline - time.monotonic()
                assert left > 0, f"no such snapshot at {key} within {timeout:g} s; it holds {response}"
                notices.get_message(timeout=left)

    def predict(
        self, input: dict[str, Any] | None = None, /, *, timeout: float = 15.0, **fields: Any
    ) -> dict[str, Any]:
        """Send one request and return its terminal snapshot, timestamps checked and taken out."""
        return bare(self.wait(self.send(input, **fields), timeout=timeout))

    def history(self, monitor: Monitor, request: Request, *, timeout: float = 15.0) -> list[Snapshot]:
        """Wait for the end, then return every SET of the response key."""
        self.wait(request, timeout=timeout)
        return monitor.sets(request.response_queue)

    def sequence(self, monitor: Monitor, input: dict[str, Any] | None = None, /, **fields: Any) -> list[dict[str, Any]]:
        """Send one request and return the exact sequence of its snapshots, timestamps checked and taken out."""
        history = self.history(monitor, self.send(input, **fields))
        return [bare(snapshot.value) for snapshot in history]


def bare(response: dict[str, Any]) -> dict[str, Any]:
    """A cog-0.4 snapshot without its timestamps, after a check of their form and presence."""
    rest = dict(response)
    times = rest.pop(TIMESTAMPS, None)
    if times is None:
        # A refused input is the one response without.
        assert rest["status"] == "failed", response
        return rest
    terminal = rest["status"] in TERMINAL
    assert set(times) == ({"started_at", "completed_at"} if terminal else {"started_at"}), response
    assert all(_TIME.fullmatch(value) for value in times.values()), response
    if terminal:
        assert times["started_at"] <= times["completed_at"], response
    return rest


def processing(output: Any = None, logs: list[str] | None = None) -> dict[str, Any]:
    return {"status": "processing", "output": output, "logs": logs or []}


def succeeded(output: Any, logs: list[str] | None = None) -> dict[str, Any]:
    return {"status": "succeeded", "output": output, "logs": logs or []}


def failed(error: str, output: Any = None, logs: list[str] | None = None) -> dict[str, Any]:
    return {"status": "failed", "output": output, "logs": logs or [], "error": error}


def canceled(output: Any = None, logs: list[str] | None = None) -> dict[str, Any]:
    return {"status": "canceled", "output": output, "logs": logs or []}
