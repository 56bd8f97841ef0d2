"""Where one prediction is, and what has happened to it, as far as Redis knows: it works when no worker does.

It must not know how it is shown, and changes nothing. Redis itself looks through requests that wait, which may have
megabytes, a few milliseconds at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import redis

from cog_celery.delivery import json_limits, scripts
from cog_celery.delivery.presence import Noted
from cog_celery.delivery.status import (
    Look,
    ProcessSeen,
    QueueSeen,
    age_of,
    milliseconds,
    order_of,
    pairs,
    read_held,
    read_note,
    seconds_of,
    sent_at,
    short,
    text,
)
from cog_celery.delivery.stream import BRIDGE, HIGH, RELEASED, SLOT, Queue, slot_life

PAGE: Final = 1000
PAGE_BYTES: Final = 1 << 20
"""Entries and bytes that Redis looks through in one go, which takes it a few milliseconds."""
MOST_SEARCHED: Final = 100_000
"""Entries that are looked through in all."""
MOST_SIGHTINGS: Final = 5
"""Requests of one id that are told of."""
LARGEST_RESPONSE: Final = 8 << 20
"""Bytes of a response that is read."""
MOST_TEXT: Final = 2000
"""Characters of an error that are kept."""

_ENTRY: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a request, by the server's clock."""

    at: float
    what: str


class Response(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is at a response key; without its output. `note`: why nothing is known of it."""

    key: str
    size: int = 0
    status: str = ""
    error: str | None = None
    logs: int = 0
    note: str = ""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `state`: waiting, dispatched, running, ended, or dead: a dead letter, whose id is `letter`.

    `place`: how many are before it in the stream, if they were counted; `seconds`: how long it has been in its slot, or
    was; `status`: what it ended as.
    """

    queue: str
    entry: str
    id: str | None
    state: Literal["waiting", "dispatched", "running", "ended", "dead"]
    sent: float | None = None
    age: float | None = None
    place: int | None = None
    owner: str | None = None
    worker: ProcessSeen | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    seconds: float | None = None
    status: str | None = None
    fault: str | None = None
    letter: str | None = None
    reason: str | None = None
    size: int | None = None
    response: Response | None = None
    history: tuple[Event, ...] = ()


class Search(msgspec.Struct, frozen=True):
    """What was found of an id, and how many requests were looked through for it; `bounded`: there were more."""

    sightings: tuple[Sighting, ...]
    searched: int
    bounded: bool


def find(client: redis.Redis, names: Sequence[str], id: str) -> Search:
    """The requests with this id, the producer's or the stream's, in these queues, the newest first.

    Raises redis.RedisError.
    """
    found: list[Sighting] = []
    searched, bounded = 0, False
    for seen in Look(client).queues(names, notes=False):
        if not seen.exists:
            continue
        search = _Search(client, seen, id)
        found += search.run()
        searched, bounded = searched + search.searched, bounded or search.bounded
    found.sort(key=_newer, reverse=True)
    return Search(tuple(found[:MOST_SIGHTINGS]), searched, bounded)


def _newer(one: Sighting) -> tuple[int, bool, int]:
    """A request that was moved is older than what it became, as a rule within the same millisecond."""
    at, number = order_of(one.entry)
    return at, one.status != "moved", number


class _Search:
    """All that can be known of one id in one queue."""

    def __init__(self, client: redis.Redis, seen: QueueSeen, id: str) -> None:
        self._client = client
        self._seen = seen
        self._queue = Queue(seen.name, priority=bool(seen.settings and seen.settings.priority))
        self._id = id
        self._notes: dict[str, list[tuple[float, str, str, str, Noted | None]]] = {}
        self._letters: list[str] = []
        self._now = 0.0
        self.searched = 0
        self.bounded = False

    def run(self) -> list[Sighting]:
        queue, pipe = self._queue, self._client.pipeline(transaction=False)
        pipe.execute_command("TIME")
        pipe.execute_command("SCRIPT LOAD", scripts.FIND.source)
        pipe.execute_command("XREVRANGE", queue.recent, "+", "-")
        pipe.execute_command("HMGET", queue.record(self._id), "entry")
        when, _, notes, record = pipe.execute(raise_on_error=False)
        self._now = seconds_of(when)
        entries = set(self._noted(notes if isinstance(notes, list) else []))
        if isinstance(record, list) and record[0]:
            entries.add(text(record[0]))
        if _ENTRY.fullmatch(self._id):
            entries.add(self._id)
        running = [one for process in self._seen.processes for slot in process.slots for one in slot.running]
        entries |= {one.entry for one in running if self._id in (one.id, one.entry)}
        newest = sorted(filter(_ENTRY.fullmatch, entries), key=order_of, reverse=True)[:MOST_SIGHTINGS]
        sightings = [sighting for entry in newest if (sighting := self._sighting(entry)) is not None]
        if not any(one.state != "ended" for one in sightings):
            taken = self._seen.running or 0  # these come first
            waiting = [
                self._sighting(entry, max(0, before - taken))
                for stream in queue.streams
                for entry, before in self._look_through(stream)
            ]
            sightings += [one for one in waiting if one is not None and one.id == self._id]
        if not sightings:
            sightings = [one for letter, _ in self._look_through(queue.dead) if (one := self._dead(letter)) is not None]
        return sightings

    def _noted(self, notes: list[Any]) -> Iterator[str]:
        """Sort what was noted by entry, oldest first; the entries that are meant."""
        for note_id, fields in reversed(notes):
            what, entry, owner, attempt, about = read_note(fields)
            self._notes.setdefault(entry, []).append((milliseconds(note_id) / 1000, what, owner, attempt, about))
            if self._id == entry or (about is not None and about.id == self._id):
                yield entry

    def _look_through(self, stream: str, entry: str = "") -> Iterator[tuple[str, int]]:
        """The entries of a stream that may be meant, and how many are before them; Redis reads, and sends ids alone."""
        plain = json.dumps(self._id)[1:-1]
        # A pattern of Lua's: the producer's id, as a text or a number. What else looks like it is parted from it later.
        pattern = '"id"%s*:%s*"?' + re.sub(r"(\W)", r"%\1", plain) + '["%s,}]'
        start, before = "-", 0
        while start and before < MOST_SEARCHED:
            keys = (2, self._queue.name, stream)
            answer: Any = self._client.execute_command(
                *("EVALSHA", scripts.FIND.sha, *keys, pattern, start, PAGE, PAGE_BYTES, entry or self._id)
            )
            following, looked, found = answer
            for one, number in found:
                yield text(one), before + int(number) - 1
            start, before = text(following), before + looked
        self.searched += before
        self.bounded = self.bounded or bool(start)

    def _sighting(self, entry: str, place: int | None = None) -> Sighting | None:
        """What can be known of an entry; None when nothing is."""
        queue, seen = self._queue, self._seen
        pipe = self._client.pipeline(transaction=False)
        for stream in queue.streams:
            pipe.execute_command("XRANGE", stream, entry, entry)
            pipe.execute_command("XPENDING", stream, queue.name, entry, entry, 1)
        replies = pipe.execute(raise_on_error=False)
        found, lines = self._meant(entry, replies)
        notes = self._notes.get(entry, [])
        if any(about is not None and about.id == self._id for *_, about in notes):
            notes = [note for note in notes if note[4] is None or note[4].id == self._id]
        history = [Event(at, _told(what, owner, attempt, about)) for at, what, owner, attempt, about in notes]
        sent = sent_at(entry)
        if sent is not None:
            history.insert(0, Event(sent, "sent"))
        common: dict[str, Any] = {
            "queue": queue.name,
            "entry": entry,
            "sent": sent,
            "max_attempts": seen.settings.max_attempts if seen.settings else None,
        }
        if not isinstance(found, list) or not found:
            return self._over(entry, notes, history, common)
        value = _value(found[0][1])
        request = _request(value)
        id = request.get("id")
        held = read_held(lines[0]) if isinstance(lines, list) and lines else None
        common |= {
            "id": str(id) if isinstance(id, str | int) else entry,
            "size": len(value),
            "age": age_of(entry, self._now),
            "response": self._response(request.get("response_queue")),
        }
        if held is None or held.owner == RELEASED:
            return Sighting(
                state="waiting", place=place, attempt=held.attempt if held else None, history=tuple(history), **common
            )
        common |= {"owner": held.owner, "attempt": held.attempt}
        life = slot_life(held.owner) if SLOT.fullmatch(held.owner) else held.owner
        worker = next((one for one in seen.processes if one.life == life), None)
        if BRIDGE.fullmatch(held.owner):
            return Sighting(state="dispatched", seconds=held.idle, worker=worker, history=tuple(history), **common)
        seconds = next(
            (
                one.seconds
                for slot in (worker.slots if worker else ())
                for one in slot.running
                if one.entry == entry and one.attempt == held.attempt
            ),
            held.idle,
        )
        history.append(Event(self._now - seconds, f"taken by {held.owner}: attempt {held.attempt}"))
        history.sort(key=lambda event: event.at)
        return Sighting(state="running", seconds=seconds, worker=worker, history=tuple(history), **common)

    def _meant(self, entry: str, replies: Sequence[Any]) -> tuple[Any, Any]:
        """The entry and its line in the pending list: both streams may have one of this id."""
        for stream, found, lines in zip(self._queue.streams, replies[::2], replies[1::2], strict=True):
            if isinstance(found, list) and found:
                name = f"{entry}{HIGH}" if stream == self._queue.high else entry
                if self._id in (entry, name, str(_request(_value(found[0][1])).get("id"))):
                    return found, lines
        return None, None

    def _over(self, entry: str, notes: list[Any], history: list[Event], common: dict[str, Any]) -> Sighting | None:
        """An entry that is not in the stream any more."""
        end = next((note for note in reversed(notes) if note[1] in ("ended", "buried", "followed", "moved")), None)
        if end is None or end[1] == "buried":
            for letter, _ in self._look_through(self._queue.dead, entry):
                dead = self._dead(letter, history)
                if dead is not None and dead.entry == entry:
                    return dead
        if end is None:
            return None
        _, what, owner, attempt, about = end
        return Sighting(
            id=about.id if about else entry,
            state="ended",
            owner=owner,
            attempt=int(attempt) if attempt.isdigit() else None,
            seconds=about.ran if about else None,
            status=about.status if about else "followed" if what == "followed" else "failed",
            fault=about.fault if about else None,
            response=self._response(about.response) if about else None,
            history=tuple(history),
            **common,
        )

    def _dead(self, letter: str, history: Sequence[Event] = ()) -> Sighting | None:
        """A dead letter, if it is of this id."""
        found: Any = self._client.execute_command("XRANGE", self._queue.dead, letter, letter)
        fields = found[0][1] if found else []
        if [bytes(name) for name in fields[:8:2]] != [b"reason", b"entry", b"attempts", b"owner"]:
            return None
        reason, name, attempts, owner = (text(value) for value in fields[1:8:2])
        entry = name.removesuffix(HIGH)
        value = _value(fields[8:])
        request = _request(value)
        id = request.get("id")
        if self._id not in (str(id), name, entry) and not self._notes.get(entry):
            return None
        buried = Event(milliseconds(letter.encode()) / 1000, f"buried: {short(reason, 200)}")
        sent = sent_at(entry)
        known = [event for event in history if not event.what.startswith("buried")]
        if sent is not None and not known:
            known = [Event(sent, "sent")]
        return Sighting(
            queue=self._queue.name,
            entry=entry,
            id=str(id) if isinstance(id, str | int) else entry,
            state="dead",
            sent=sent,
            owner=owner,
            attempt=int(attempts) if attempts.isdigit() else None,
            status="failed",
            letter=letter,
            reason=short(reason, MOST_TEXT),
            size=len(value),
            response=self._response(request.get("response_queue")),
            history=(*known, buried),
        )

    def _response(self, key: object) -> Response | None:
        """What stands at a response key, if there is anything to be said of it."""
        if not isinstance(key, str) or not key or "\0" in key:
            return None
        try:
            size: Any = self._client.execute_command("STRLEN", key)
            if not size:
                return Response(key, note="nothing there: no snapshot yet, or it has expired")
            if size > LARGEST_RESPONSE:
                return Response(key, size, note="too large to be looked at")
            content: Any = self._client.execute_command("GET", key)
        except redis.ResponseError as error:
            return Response(key, note=short(str(error), 200))
        snapshot = _request(content or b"")
        logs = snapshot.get("logs")
        error_text = snapshot.get("error")
        return Response(
            key,
            size,
            short(str(snapshot.get("status", "")), 40),
            None if error_text is None else short(str(error_text), MOST_TEXT),
            len(logs) if isinstance(logs, list) else logs.count("\n") if isinstance(logs, str) else 0,
            note="" if snapshot else "it is no response",
        )


_TOLD: Final[Mapping[str, str]] = {
    "released": "given back by {owner}",
    "reclaimed": "reclaimed from {owner}: attempt {attempt}",
    "moved": "moved to the queue of its version, as {owner}",
    "followed": "not run: another request with its id is answered for it",
    "buried": "buried, {attempt} runs",
}


def _told(what: str, owner: str, attempt: str, about: Noted | None) -> str:
    if what == "ended":
        outcome = f"{about.status}{f' ({about.fault})' if about.fault else ''}" if about else "ended"
        return f"{outcome} in {owner}: attempt {attempt}"
    return _TOLD.get(what, what).format(owner=owner, attempt=attempt)


def _request(value: bytes) -> Mapping[str, Any]:
    """A JSON object, or nothing when it is none, or would cost too much."""
    if json_limits.fault(value) is not None:
        return {}
    try:
        request = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


def _value(fields: Sequence[bytes]) -> bytes:
    return next((bytes(value) for name, value in pairs(fields) if name == b"value"), b"")
