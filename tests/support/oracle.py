"""Rebuilds what happened to every request of a queue, from MONITOR and the predictor's journal, and judges it.

It must not know how the fleet works inside, but for the fence that its scripts carry in their arguments: the commands
that a server ran are the truth, and so are the lines that a predictor wrote.

Use: `oracle = Oracle(monitor, journal, fleet.queue)` before the first request, with a fleet of the model `actions` and
`env=journal_env(journal)`; `oracle.sent(request)` for each request; `oracle.settle()` when all faults are over; then
`oracle.check()`, and `demand()` on its verdict if nothing may be wrong. `oracle.note("killed worker 1")` puts a fault
into the timelines.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import redis

from cog_celery.delivery import scripts
from cog_celery.delivery.requests import OUR_PREFIX
from cog_celery.delivery.stream import BRIDGE, HIGH, RELEASED, SLOT
from tests.support.monitor import Command, Gap, Monitor
from tests.support.processes import Process
from tests.support.producer import TERMINAL, Request

UNDONE = 1.0
"""Seconds before a gap of which a server may forget what it had done: its log of changes is synced once a second."""
STORIES = 5
"""How many violations have their stories told."""
LONGEST_STORY = 60
"""How many lines of it are kept of one request."""

Invariant = Literal["one terminal", "nothing after it", "no stale write", "settled", "runs end", "one setup"]

# The arguments of these begin with the entry, owner and attempt that they act for: the fence is about these. EXTEND's
# are many, each with its stream; the others' stream is their second key. The others act for nobody.
FENCED = ("CLAIM", "PUBLISH", "COMMIT", "BURY", "EXTEND", "RELEASE", "RECLAIM", "ENROLL", "MOVE")
FREE = ("TAKE", "RECOVER", "CREDIT", "FORGET", "ANNOUNCE", "RETRY", "DESCRIBE", "OLDEST", "FIND")
NAMES = {getattr(scripts, name).sha: name for name in FENCED + FREE}


def journal_env(path: Path) -> dict[str, str]:
    """The variables of a Fleet whose model `actions` is to write its journal at `path`: `Fleet(env=…)`."""
    return {"ACTIONS_JOURNAL": str(path)}


class JournalLine(msgspec.Struct, frozen=True):
    """One line of a predictor's journal; tests/models/actions says what is in it."""

    event: Literal["setup", "start", "end"]
    runner: int
    born: str
    request: str
    at: float
    how: str = ""

    @property
    def life(self) -> tuple[int, str]:
        return self.runner, self.born

    def __str__(self) -> str:
        return f"{self.at:.6f} runner {self.runner}: {' '.join(word for word in (self.event, self.how) if word)}"


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold: what was seen, and of which request (its response key or its entry)."""

    invariant: Invariant
    what: str
    of: str

    def __str__(self) -> str:
        return f"[{self.invariant}] {self.what}"


@dataclass
class Verdict:
    """What check() found. `demand()` raises AssertionError, with the timelines, unless there are no violations."""

    violations: list[Violation]
    weakened: list[str]
    """What could not be demanded, and why: the recording has a gap, or somebody else deleted entries."""
    requests: int
    statuses: Counter[str]
    """How many requests ended how."""
    unanswered: list[Request]
    """Requests with a response key and no terminal snapshot, excused or not."""
    runs: int
    """Starts in the journal."""
    run_twice: list[str]
    """The marks (inputs `text`) of requests whose run started more than once."""
    lives: int
    """How many runners' lives were set up."""
    fenced: int
    """Writes of a stale owner that the fence kept out."""
    reclaimed: int
    timeline: str

    @property
    def ok(self) -> bool:
        return not self.violations

    def demand(self) -> Verdict:
        if self.violations:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items())) or "none answered"
        lines = [
            f"{self.requests} requests: {statuses}, {len(self.unanswered)} without an answer; {self.runs} runs, "
            f"{len(self.run_twice)} requests run twice or more, {self.lives} runners, {self.reclaimed} reclaimed, "
            f"{self.fenced} stale writes kept out; {len(self.violations)} violations"
        ]
        lines += [f"weakened: {text}" for text in self.weakened]
        lines += [f"violated: {violation}" for violation in self.violations[:50]]
        if self.timeline:
            lines += ["", self.timeline]
        return "\n".join(lines)


@dataclass(frozen=True)
class Remains:
    """What a server holds in the end: the stream's entries, the pending ones, and the statuses of response keys."""

    entries: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()
    statuses: Mapping[str, str] = field(default_factory=dict)


Story = deque[tuple[float, str]]


def _story() -> Story:
    return deque(maxlen=LONGEST_STORY)


@dataclass(slots=True)
class _Entry:
    """An entry's place in the pending list. `owner` and `attempt` None: not known (yet, or since a gap).

    What XREADGROUP gave to whom is in no recording: it is known from the first script that acts on it.
    """

    owner: str | None = None
    attempt: int | None = None
    ended_by: tuple[str, int] | None = None
    acked: float | None = None
    deleted: bool = False
    story: Story = field(default_factory=_story)

    def is_owned_by(self, owner: str, attempt: int) -> bool:
        return self.owner in (None, owner) and self.attempt in (None, attempt)


@dataclass(slots=True)
class _Response:
    """What was written to one response key. A key that is asked for twice is to be answered twice."""

    asked: int = 0
    since: float = 0.0
    mark: str = ""
    ends: list[tuple[float, str]] = field(default_factory=list)
    due: int = 0
    """How many terminal snapshots are still to come."""
    may_repeat: bool = False
    """Whether a gap may have undone the last one."""
    story: Story = field(default_factory=_story)


@dataclass(slots=True)
class _Call:
    """A script that runs: for which entries, and as whom."""

    name: str
    held: dict[str, tuple[str, int]]
    heir: str = ""
    wrote: bool = False


SETTLED = ""
"""The owner of an entry that has left the pending list."""


class _Input(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    response_queue: str | None = None
    input: _Input | None = None


class _Status(msgspec.Struct):
    status: str = ""


_message = msgspec.json.Decoder(_Message)
_status = msgspec.json.Decoder(_Status)
_journal_line = msgspec.json.Decoder(JournalLine)
_LISTENER = re.compile(rb'"response_queue"\s*:\s*"([^"\\]+)"')


class History:
    """take() each thing of a recording in order, then judge(). One pass, and nothing of a request's size is kept."""

    def __init__(self, queue: str, *, durable: bool = True, at_once: int = 1) -> None:
        self._queue = queue.encode()
        self._lanes = {self._queue: "", f"{queue}{HIGH}".encode(): HIGH}
        """What entries of each stream have behind their id here."""
        self.at_once = at_once
        self._dead = f"{queue}-dead".encode()
        self._durable = durable
        self._entries: defaultdict[str, _Entry] = defaultdict(_Entry)
        self._responses: defaultdict[str, _Response] = defaultdict(_Response)
        self._violations: list[Violation] = []
        self._losses: list[tuple[float, float, str]] = []
        """When (first, last) something was lost, and what it was."""
        self._trims: list[float] = []
        self._removed: set[str] = set()
        """Entries that somebody else deleted."""
        self._strangers: set[str] = set()
        self._call: _Call | None = None
        self.fenced = 0
        self.reclaimed = 0
        self._outside: dict[bytes, Callable[[Command], None]] = {
            b"EVALSHA": self._begin,
            b"EVAL": self._begin,
            b"XADD": self._xadd,
            b"XREADGROUP": self._xreadgroup,
            b"SET": self._bare_set,
            b"XACK": self._bare_xack,
            b"XDEL": self._bare_xdel,
            b"XCLAIM": self._bare_xclaim,
            b"XTRIM": self._xtrim,
            b"DEL": self._dropped,
            b"UNLINK": self._dropped,
            b"FLUSHALL": self._dropped,
            b"FLUSHDB": self._dropped,
            b"XGROUP": self._xgroup,
        }
        self._inside: dict[bytes, Callable[[Command, _Call], None]] = {
            b"SET": self._set,
            b"XACK": self._xack,
            b"XDEL": self._xdel,
            b"XCLAIM": self._xclaim,
            b"XADD": self._added,
        }

    def awaited(self, requests: Iterable[Request]) -> list[str]:
        """The response keys, of these, that are to get a terminal snapshot and have got none yet."""
        keys = []
        for request in requests:
            response = self._responses[request.response_queue] if request.response_queue else None
            if response and not response.ends and not self._excuse(response, request.entry):
                keys.append(request.response_queue)
        return keys

    # -- what a server ran

    def take(self, seen: Command | Gap) -> None:
        if isinstance(seen, Gap):
            self._close_call()
            self._lose(seen.time, seen.until, "the recording has a gap", UNDONE if self._durable else float("inf"))
            return
        name = seen.args[0].upper()
        if seen.client == "lua":
            inside = self._inside.get(name)
            if inside is not None and self._call is not None:
                inside(seen, self._call)
            elif name == b"XADD":
                self._xadd(seen)  # from another queue
            return
        self._close_call()
        outside = self._outside.get(name)
        if outside is not None:
            outside(seen)

    def _begin(self, seen: Command) -> None:
        how, script, count, *rest = seen.args
        keys = int(count)
        if not keys or rest[0] != self._queue:
            return
        sha = script.decode() if how.upper() == b"EVALSHA" else hashlib.sha1(script, usedforsecurity=False).hexdigest()
        name = NAMES.get(sha)
        if name is None:
            self._violate("no stale write", f"a script that the oracle does not know ran on the queue: {seen}", "")
            return
        owned = rest[keys:] if name == "EXTEND" else [rest[1], *rest[keys : keys + 3]] if name in FENCED else []
        held = {
            self._entry(stream, entry): (owner.decode(errors="replace"), int(attempt))
            for stream, entry, owner, attempt in zip(owned[::4], owned[1::4], owned[2::4], owned[3::4], strict=True)
        }
        heir = rest[keys + 3].decode() if name == "CLAIM" else ""
        self._call = _Call(name, held, heir)

    def _close_call(self) -> None:
        call, self._call = self._call, None
        if call is not None and not call.wrote and call.name in ("PUBLISH", "COMMIT", "BURY"):
            ((entry, by),) = call.held.items()
            place = self._entries[entry]
            self.fenced += not place.is_owned_by(*by) and place.ended_by != by

    def _entry(self, stream: bytes, id: bytes) -> str:
        return id.decode(errors="replace") + self._lanes[stream]

    # Inside a script

    def _fence(self, call: _Call, entry: str, what: str) -> _Entry:
        """The entry, after a look whether the script's caller may do this to it."""
        owner, attempt = call.held[entry]
        place = self._entries[entry]
        fits = place.is_owned_by(owner, attempt) or (call.heir and place.is_owned_by(call.heir, attempt))
        if not fits:
            now = f"owned by {place.owner} at attempt {place.attempt}" if place.owner else "settled"
            self._violate(
                "no stale write", f"{call.name} of {owner} at attempt {attempt}: {what}, but {entry} was {now}", entry
            )
        if place.owner is None:
            place.owner = owner
        if place.attempt is None:
            place.attempt = attempt
        call.wrote = True
        return place

    def _set(self, seen: Command, call: _Call) -> None:
        key = seen.args[1].decode(errors="replace")
        if key.startswith(OUR_PREFIX):
            return
        status = _status_of(seen.args[2])
        if len(call.held) != 1:
            self._violate("no stale write", f"{call.name}: SET {key} {status}, for no owner", key)
            return
        ((entry, (owner, attempt)),) = call.held.items()
        self._fence(call, entry, f"SET {key} {status}")
        self._show(seen, key, status, f"{call.name} for {entry} by {owner} at attempt {attempt}")

    def _show(self, seen: Command, key: str, status: str, who: str) -> None:
        response = self._responses[key]
        if not response.asked:
            response.asked = response.due = 1
            response.since = seen.time
        response.story.append((seen.time, f"SET {status} ({len(seen.args[2])} bytes): {who}"))
        if not response.due and not response.may_repeat:
            last = response.ends[-1]
            again: Invariant = "one terminal" if status in TERMINAL else "nothing after it"
            self._violate(again, f"{key}: {status} at {seen.time:.6f} after {last[1]} at {last[0]:.6f}, {who}", key)
        if status in TERMINAL:
            response.ends.append((seen.time, status))
            response.due = max(0, response.due - 1)
            response.may_repeat = False

    def _xclaim(self, seen: Command, call: _Call) -> None:
        if seen.args[1] not in self._lanes:
            return
        consumer, entry = seen.args[3].decode(errors="replace"), self._entry(seen.args[1], seen.args[5])
        place = self._entries[entry]
        if entry in call.held:
            self._fence(call, entry, f"XCLAIM for {consumer}")
        elif place.owner not in (None, RELEASED):
            self._violate("no stale write", f"{call.name} took {entry} for {consumer} from {place.owner}", entry)
        if call.name == "EXTEND" and place.owner != consumer:
            self._violate("no stale write", f"EXTEND gave {entry} of {place.owner} to {consumer}", entry)
        if call.name == "RECLAIM":
            self.reclaimed += 1
        self._own(seen, place, consumer, call.name)

    def _own(self, seen: Command, place: _Entry, consumer: str, by: str) -> None:
        options = [option.upper() for option in seen.args[6:]]
        if b"RETRYCOUNT" in options:
            place.attempt = int(seen.args[6 + options.index(b"RETRYCOUNT") + 1])
        elif b"JUSTID" not in options and place.attempt is not None:
            place.attempt += 1
        if place.owner != consumer or by != "EXTEND":
            place.story.append((seen.time, f"{by}: owned by {consumer} at attempt {place.attempt}"))
        place.owner = consumer

    def _xack(self, seen: Command, call: _Call) -> None:
        if seen.args[1] not in self._lanes:
            return
        entry = self._entry(seen.args[1], seen.args[3])
        place = self._fence(call, entry, "XACK") if entry in call.held else self._entries[entry]
        place.owner, place.acked, place.ended_by = SETTLED, seen.time, call.held.get(entry)
        place.story.append((seen.time, f"{call.name}: acknowledged"))

    def _xdel(self, seen: Command, call: _Call) -> None:
        if seen.args[1] in self._lanes:
            self._entries[self._entry(seen.args[1], seen.args[2])].deleted = True

    def _added(self, seen: Command, call: _Call) -> None:
        self._xadd(seen)
        if seen.args[1] == self._dead:
            for entry in call.held:
                self._fence(call, entry, "buried").story.append((seen.time, "buried"))

    # Outside of scripts: producers, people, Cog's own worker, and whoever forgets the fence

    def _xadd(self, seen: Command) -> None:
        if seen.args[1] not in self._lanes:
            return
        if b"MAXLEN" in seen.args[2:6] or b"MINID" in seen.args[2:6]:
            self._trims.append(seen.time)
        try:
            value = seen.args[seen.args.index(b"value", 2) + 1]
        except (ValueError, IndexError):
            return
        key, mark = _asked_for(value)
        if key:
            response = self._responses[key]
            response.asked += 1
            response.due += 1
            response.since = seen.time
            response.mark = mark
            response.story.append((seen.time, f"asked for by an XADD, marked {mark!r}"))

    def _xreadgroup(self, seen: Command) -> None:
        if not self._lanes.keys().isdisjoint(seen.args):
            consumer = seen.args[3].decode(errors="replace")
            if not (BRIDGE.fullmatch(consumer) or SLOT.fullmatch(consumer)):
                self._strangers.add(consumer)

    def _bare_set(self, seen: Command) -> None:
        key = seen.args[1].decode(errors="replace")
        if key not in self._responses:
            return
        status = _status_of(seen.args[2])
        if not self._strangers:
            self._violate("no stale write", f"SET {key} {status} past the fence, by {seen.client}", key)
        self._show(seen, key, status, f"by {seen.client}, with no fence")

    def _bare_xack(self, seen: Command) -> None:
        if seen.args[1] not in self._lanes:
            return
        for entry in (self._entry(seen.args[1], word) for word in seen.args[3:]):
            place = self._entries[entry]
            place.story.append((seen.time, f"acknowledged by {seen.client}, with no fence"))
            if not self._strangers:
                self._violate("no stale write", f"XACK of {entry} past the fence", entry)
            place.owner, place.acked = SETTLED, seen.time

    def _bare_xdel(self, seen: Command) -> None:
        if seen.args[1] not in self._lanes:
            return
        for entry in (self._entry(seen.args[1], word) for word in seen.args[2:]):
            place = self._entries[entry]
            place.deleted = True
            place.story.append((seen.time, f"deleted by {seen.client}"))
            if place.acked is None:
                self._removed.add(entry)

    def _bare_xclaim(self, seen: Command) -> None:
        if seen.args[1] in self._lanes:
            place = self._entries[self._entry(seen.args[1], seen.args[5])]
            self._own(seen, place, seen.args[3].decode(errors="replace"), seen.client)

    def _xtrim(self, seen: Command) -> None:
        if seen.args[1] in self._lanes:
            self._trims.append(seen.time)

    def _dropped(self, seen: Command) -> None:
        if not self._lanes.keys().isdisjoint(seen.args[1:]) or seen.name.startswith("FLUSH"):
            self._lose(seen.time, seen.time, f"{seen.name} of the queue", float("inf"))

    def _xgroup(self, seen: Command) -> None:
        if seen.args[1].upper() in (b"DESTROY", b"SETID") and seen.args[2] in self._lanes:
            self._lose(seen.time, seen.time, f"XGROUP {seen.args[1].decode()}", 0.0)

    def _lose(self, since: float, until: float, what: str, undone: float) -> None:
        """Nobody's ownership is known any more; what was done in the last `undone` seconds may not have been."""
        self._losses.append((since - undone, until, what))
        # Lists: the test's own thread may look for a request meanwhile, which makes its place.
        for place in list(self._entries.values()):
            if place.acked is None or place.acked >= since - undone:
                place.owner = place.attempt = None
        for response in list(self._responses.values()):
            response.may_repeat = bool(response.ends) and response.ends[-1][0] >= since - undone

    def _violate(self, invariant: Invariant, what: str, of: str) -> None:
        self._violations.append(Violation(invariant, what, of))

    # -- the end

    def judge(
        self,
        sent: Sequence[Request],
        journal: Iterable[JournalLine],
        remains: Remains | None = None,
        notes: Iterable[tuple[float, str]] = (),
        is_alive: Callable[[int, str], bool] = lambda pid, born: False,
    ) -> Verdict:
        """What held, and what did not. Without `remains` the recording alone says what became of the entries."""
        runs = _Runs(journal, is_alive, self.at_once)
        end = remains or Remains()
        violations = self._violations + runs.violations
        weakened = [f"{what} at {until:.6f}" for _, until, what in self._losses]
        statuses: Counter[str] = Counter()
        unanswered: list[Request] = []
        excused: Counter[str] = Counter()
        for request in sent:
            key, entry = request.response_queue, request.entry
            place, response = self._entries[entry], self._responses[key] if key else None
            if response is not None:
                status = response.ends[-1][1] if response.ends else end.statuses.get(key, "")
                if status not in TERMINAL:
                    unanswered.append(request)
                    excuse = self._excuse(response, entry)
                    if excuse:
                        excused[f"unanswered: {excuse}"] += 1
                    else:
                        violations.append(Violation("one terminal", f"{key} ({entry}) was never answered", key))
                else:
                    statuses[status] += 1
                    if response.due and not self._losses:
                        what = f"{key} was asked for {response.asked} times, and answered {len(response.ends)} times"
                        violations.append(Violation("one terminal", what, key))
                    if status == "succeeded" and response.mark and runs.known and not runs.ended_well(response.mark):
                        what = f"{key} succeeded, and no run of {response.mark!r} ended well"
                        violations.append(Violation("runs end", what, key))
            if entry in end.pending or entry in end.entries:
                where = "in the pending list" if entry in end.pending else "in the stream"
                violations.append(Violation("settled", f"{entry} is still {where}", entry))
            elif place.acked is None or not place.deleted:
                excuse = self._excuse(response, entry) or self._lost_since(entry)
                if excuse:
                    excused[f"not seen settled: {excuse}"] += 1
                elif not (entry in self._removed and place.acked is not None):
                    how = "deleted, and never acknowledged" if place.deleted else "never acknowledged and deleted"
                    violations.append(Violation("settled", f"{entry} was {how}", entry))
        unknown = (end.entries | end.pending) - {request.entry for request in sent}
        if unknown:
            violations.append(Violation("settled", f"entries that nobody noted are left: {sorted(unknown)[:5]}", ""))
        weakened += [f"{count} requests {what}" for what, count in excused.items()]
        return Verdict(
            violations=violations,
            weakened=weakened,
            requests=len(sent),
            statuses=statuses,
            unanswered=unanswered,
            runs=runs.starts,
            run_twice=runs.twice,
            lives=runs.lives,
            fenced=self.fenced,
            reclaimed=self.reclaimed,
            timeline=self._tell(violations, sent, runs, list(notes)),
        )

    def _excuse(self, response: _Response | None, entry: str) -> str:
        """Why a request may be without an answer."""
        if entry in self._removed:
            return "somebody else deleted the entry"
        since = response.since if response else _entry_time(entry)
        if any(since <= trim for trim in self._trims):
            return "somebody trimmed the stream"
        return next((what for lost, until, what in self._losses if lost <= since <= until), "")

    def _lost_since(self, entry: str) -> str:
        """What may have kept the recording from showing how an entry was settled that is gone by now."""
        since = _entry_time(entry)
        return next((what for _, until, what in self._losses if since <= until), "")

    def _tell(
        self, violations: list[Violation], sent: Sequence[Request], runs: _Runs, notes: list[tuple[float, str]]
    ) -> str:
        by_key = {request.response_queue: request for request in sent}
        by_entry = {request.entry: request for request in sent}
        by_mark = {self._responses[key].mark: request for key, request in by_key.items() if key}
        stories = []
        for of in dict.fromkeys(violation.of for violation in violations if violation.of):
            request = by_key.get(of) or by_entry.get(of) or by_mark.get(of)
            key, entry = (request.response_queue, request.entry) if request else (of, of)
            lines = list(notes)
            if key in self._responses:
                lines += self._responses[key].story
                lines += [(line.at, str(line)) for line in runs.of(self._responses[key].mark)]
            if entry in self._entries:
                lines += self._entries[entry].story
            told = [text if text.startswith(f"{at:.6f}") else f"{at:.6f} {text}" for at, text in sorted(lines)]
            stories.append("\n".join([f"--- {key} ({entry})", *told]))
            if len(stories) == STORIES:
                break
        return "\n".join(stories)


class _Runs:
    """What the predictors wrote: the lives of runners, and the runs in them."""

    def __init__(self, journal: Iterable[JournalLine], is_alive: Callable[[int, str], bool], at_once: int = 1) -> None:
        self.violations: list[Violation] = []
        self.known = False
        setups: Counter[tuple[int, str]] = Counter()
        running: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        started: Counter[str] = Counter()
        self._lines: defaultdict[str, list[JournalLine]] = defaultdict(list)
        self._well: set[str] = set()
        self.starts = 0
        for line in journal:
            self.known = True
            if line.event == "setup":
                setups[line.life] += 1
                if setups[line.life] > 1:
                    self._violate("one setup", f"runner {line.runner} was set up {setups[line.life]} times", "")
                continue
            self._lines[line.request].append(line)
            if line.event == "start":
                self.starts += 1
                started[line.request] += 1
                if line.life not in setups:
                    self._violate("one setup", f"runner {line.runner} ran before it was set up", line.request)
                run = running[line.life]
                if len(run) >= at_once:
                    what = f"runner {line.runner} started {line.request!r} while {run.pop(0)!r} had no end"
                    self._violate("runs end", what, line.request)
                run.append(line.request)
            else:
                if line.request not in running[line.life]:
                    self._violate(
                        "runs end", f"runner {line.runner} ended {line.request!r} without a start", line.request
                    )
                else:
                    running[line.life].remove(line.request)
                if line.how == "returned":
                    self._well.add(line.request)
        for (pid, born), marks in running.items():
            for mark in marks:
                if is_alive(pid, born):
                    self._violate("runs end", f"runner {pid} still runs {mark!r}", mark)
        self.lives = len(setups)
        self.twice = [mark for mark, count in started.items() if count > 1 and mark]

    def ended_well(self, mark: str) -> bool:
        return mark in self._well

    def of(self, mark: str) -> list[JournalLine]:
        return self._lines.get(mark, []) if mark else []

    def _violate(self, invariant: Invariant, what: str, of: str) -> None:
        self.violations.append(Violation(invariant, what, of))


class Oracle:
    """Watches one queue of a live server from now on.

    `durable`: whether the server is to keep what it had done more than UNDONE before it went away; False for one that
    comes back empty.
    """

    def __init__(self, monitor: Monitor, journal: Path, queue: str, *, durable: bool = True, at_once: int = 1) -> None:
        self._monitor = monitor
        self._journal = journal
        self._queue = queue
        self._streams = {queue: "", f"{queue}{HIGH}": HIGH}
        self._history = History(queue, durable=durable, at_once=at_once)
        self._sent: list[Request] = []
        self._notes: list[tuple[float, str]] = []
        monitor.listen(self._history.take)

    def sent(self, request: Request, *, lane: bool = False) -> Request:
        """Note a request that is to be answered and settled; without a `response_queue`, only settled. Gives it back.

        `lane`: it is in the queue's lane. Its mark, which the journal knows it by, is its input's `text`: make it
        unique. The message itself is seen in the recording.
        """
        self._sent.append(replace(request, entry=f"{request.entry}{HIGH}") if lane else request)
        return request

    def note(self, what: str) -> None:
        """Put a line of the test's own into the timelines: a fault, say."""
        self._notes.append((time.time(), f"*** {what}"))

    def settle(self, timeout: float = 30.0) -> bool:
        """Wait until every request is answered and nothing is left in the stream; whether it came to that."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            left = any(map(self._monitor.client.xlen, self._streams)) or self._pending()
            if not left and all(status in TERMINAL for status in self._held().values()):
                return True
            time.sleep(0.05)
        return False

    def check(self, *, patience: float = 5.0) -> Verdict:
        """What held, and what did not, from the beginning up to now. The queue is to be settled by now.

        Runs that were given up have `patience` seconds to end.
        """
        self._monitor.catch_up()
        deadline = time.monotonic() + patience
        while True:
            journal = read_journal(self._journal)
            still = _Runs(journal, _is_alive, self._history.at_once).violations
            if time.monotonic() > deadline or not any("still runs" in violation.what for violation in still):
                break
            time.sleep(0.05)
        return self._history.judge(self._sent, journal, self._remains(), self._notes, _is_alive)

    def _pending(self) -> set[str]:
        pending: set[str] = set()
        for stream, suffix in self._streams.items():
            try:
                lines = self._monitor.client.xpending_range(stream, self._queue, "-", "+", 1000)
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                continue
            pending |= {line["message_id"] + suffix for line in cast(list[dict[str, Any]], lines)}
        return pending

    def _held(self) -> dict[str, str]:
        """The statuses that the server holds of responses whose end the recording has not shown."""
        held: dict[str, str] = {}
        for key in self._history.awaited(self._sent):
            text = cast("str | None", self._monitor.client.get(key))
            held[key] = "" if text is None else _status_of(text.encode())
        return held

    def _remains(self) -> Remains:
        entries = {
            entry + suffix
            for stream, suffix in self._streams.items()
            for entry, _ in cast(list[tuple[str, Any]], self._monitor.client.xrange(stream, count=100))
        }
        return Remains(frozenset(entries), frozenset(self._pending()), self._held())


def read_journal(path: Path) -> list[JournalLine]:
    """The lines of a journal; none when there is no such file."""
    if not path.exists():
        return []
    with path.open("rb") as lines:
        return [_journal_line.decode(line) for line in lines]


def _is_alive(pid: int, born: str) -> bool:
    process = Process.read(pid)
    return process is not None and process.born == born


def _status_of(snapshot: bytes) -> str:
    try:
        return _status.decode(snapshot).status
    except msgspec.MsgspecError:
        return ""


def _asked_for(value: bytes) -> tuple[str, str]:
    """The response key and the mark of a message, as far as they can be told."""
    try:
        message = _message.decode(value)
        return message.response_queue or "", message.input.text if message.input else ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = _LISTENER.search(value)
        return found[1].decode(errors="replace") if found else "", ""


def _entry_time(entry: str) -> float:
    return int(entry.partition("-")[0]) / 1000
