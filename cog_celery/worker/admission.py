"""What a worker lets in from the broker: tickets for itself, rebuilt from their fields alone; all else is refused.

It must not know where messages come from, nor what becomes of a ticket. Whoever reaches the broker can send anything.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import msgspec
from kombu import compression
from kombu.utils.uuid import uuid

from cog_celery.celery import TURN
from cog_celery.delivery.stream import TICKET_VERSION, Ticket, slot_life

LARGEST = 1 << 14
"""Bytes of a ticket's body; names are of at most 200 bytes."""
PAUSE = 5.0
"""Seconds between two lines in the log about what was refused."""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Entry = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}-[0-9]{1,20}\Z")]
_Attempt = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
# The body of a Celery message: arguments, named arguments, and what else is to be done, which is not read.
_BODY = msgspec.json.Decoder(
    tuple[tuple[int, _Name, _Entry, _Attempt, _Name, _Name], msgspec.Raw, msgspec.Raw],
)
_TRACE = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[\x20-\x7e]{1,512}"),
}

log = logging.getLogger(__name__)


class Refused(Exception):
    """A message is not let in; the text says why and holds nothing of the message."""


class Refusals:
    """Counts what was refused, by its reason, and says so in the log, seldom: a flood must not become one of lines."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._quiet_until = 0.0

    def add(self, reason: str) -> None:
        """For the thread of the event loop alone."""
        self.counts[reason] += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + PAUSE
            log.warning("a message from the broker was refused: %s (%d refused so far)", reason, self.counts.total())


def admit(message: Any, streams: Sequence[str], life: str) -> None:
    """Leave nothing in the kombu message but its ticket, and the trace it belongs to. Raises Refused.

    Gone is all by which a sender could have Celery do more than start the turn: eta, expires, time limits, callbacks,
    chains, chords, groups, stamps, a reply queue, a name or arguments for logs and events.
    """
    ticket = _ticket(message, streams, life)
    trace = {
        name: value
        for name, form in _TRACE.items()
        if isinstance(value := message.headers.get(name), str) and form.fullmatch(value)
    }
    message.headers = {
        **trace,
        "lang": "py",
        "task": TURN,
        "id": uuid(),
        "argsrepr": f"({ticket.stream}, {ticket.entry})",
        "kwargsrepr": "{}",
        "ignore_result": True,
    }
    message.properties = {}
    message.content_type, message.content_encoding = "application/json", "utf-8"
    message.body = msgspec.json.encode(([*msgspec.structs.astuple(ticket)], {}, {}))
    message._decoded_cache = None


def _ticket(message: Any, streams: Sequence[str], life: str) -> Ticket:
    headers, body = message.headers, message.body
    if message.errors:
        raise Refused("it cannot be decoded")
    if not isinstance(headers, dict) or headers.get("task") != TURN:
        raise Refused("it is for a task that is not ours")
    if message.content_type != "application/json":
        raise Refused("it is not JSON")
    if not isinstance(body, (bytes, str, memoryview)) or len(body) > LARGEST:
        raise Refused("it is too large for a ticket")
    try:
        fields, _, _ = _BODY.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors, as is wrong UTF-8
        raise Refused("its arguments are not those of a ticket") from None
    ticket = Ticket(*fields)
    if not 1 <= ticket.version <= TICKET_VERSION:
        raise Refused(f"it is a ticket of version {ticket.version}, and this release reads 1 to {TICKET_VERSION}")
    if ticket.stream not in streams:
        raise Refused("it is a ticket for another queue")
    if slot_life(ticket.slot) != life:
        raise Refused("it is a ticket for another worker")
    return ticket


def refuse_compression() -> None:
    """Have this process decompress no message: a small one may be one of gigabytes. Nothing of ours is compressed."""

    def refuse(data: Any) -> NoReturn:
        raise Refused("it is compressed")

    for content_type in compression.encoders():
        compression.register(refuse, refuse, content_type)
