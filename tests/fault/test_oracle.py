"""The oracle sees what should not have happened: here, on a real server, scripts without their care make it happen."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from cog_celery.delivery import scripts
from cog_celery.delivery.link import Link
from cog_celery.delivery.scripts import Script
from cog_celery.delivery.stream import TICKET_VERSION, Delivery, Held, Owned, Queue, Ticket
from tests.conftest import FleetFactory, recording
from tests.support import oracle as oracle_module
from tests.support.monitor import Command, Gap, Monitor
from tests.support.oracle import JournalLine, Oracle, Verdict, journal_env
from tests.support.processes import Process
from tests.support.producer import Producer, Request
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

BRIDGE = "b~00000001"
SLOT, OTHER = "w~00000002.0", "w~00000003.0"
PROCESSING, SUCCEEDED, FAILED = (b'{"status": "%s"}' % word for word in (b"processing", b"succeeded", b"failed"))


class Stage:
    """A queue on which a test plays bridge, slots and runners, before an oracle."""

    def __init__(self, server: RedisServer, monitor: Monitor, journal: Path, *, durable: bool = True) -> None:
        self.client = server.client
        self.queue = Queue(f"q-{uuid.uuid4().hex[:8]}")
        self.link = Link(server.url, "stage")
        self.queue.create_group(self.link)
        self.producer = Producer(server.client, self.queue.name)
        self.journal = journal
        self.oracle = Oracle(monitor, journal, self.queue.name, durable=durable)

    def send(self, text: str = "", **fields: Any) -> Request:
        return self.oracle.sent(self.producer.send({"action": "OK", "text": text}, **fields))

    def take(self, slot: str = SLOT) -> Delivery:
        delivery = self.queue.next(self.link, slot, 1, 1)
        assert delivery is not None
        return delivery

    def publish(self, delivery: Delivery, request: Request, owner: str = SLOT) -> str:
        return self.queue.publish(self.link, delivery, owner, request.response_queue, None, "", PROCESSING)

    def commit(self, delivery: Delivery, request: Request, owner: str = SLOT, snapshot: bytes = SUCCEEDED) -> str:
        return self.queue.commit(self.link, delivery, owner, request.response_queue, snapshot)[0]

    def reclaim(self, delivery: Delivery, owner: str = SLOT, heir: str = OTHER) -> Delivery:
        """A bridge takes the entry from its owner, and another slot claims it."""
        owned = Owned(delivery.at, owner, 0, delivery.attempt)
        attempt = self.queue.reclaim(self.link, owned, BRIDGE, 0, counts=True)
        ticket = Ticket(TICKET_VERSION, self.queue.name, delivery.entry, attempt, BRIDGE, heir)
        claimed = self.queue.claim(self.link, ticket.slot, ticket)
        assert claimed is not None
        return claimed

    def writes(self, event: str, request: str = "", *, pid: int = 0, born: str = "1", how: str = "") -> None:
        """A line of a runner's journal; the runner is dead by now, unless it is this process."""
        line = JournalLine(event, pid, born, request, time.time(), how)  # type: ignore[arg-type]
        with self.journal.open("ab") as journal:
            journal.write(msgspec.json.encode(line) + b"\n")

    def violated(self) -> set[str]:
        return {violation.invariant for violation in self.check().violations}

    def check(self) -> Verdict:
        return self.oracle.check(patience=0)

    def careless(self, monkeypatch: pytest.MonkeyPatch, name: str, *changes: tuple[str, str]) -> None:
        """Run a script of this name from now on that lacks some of its care, and that the oracle takes for the real
        one.
        """
        script = Script("")
        script.source = getattr(scripts, name).source
        for old, new in changes:
            assert old in script.source
            script.source = script.source.replace(old, new)
        script.sha = str(self.client.script_load(script.source))
        monkeypatch.setattr(scripts, name, script)
        monkeypatch.setitem(oracle_module.NAMES, script.sha, name)


NO_FENCE = ("return p and p[2] == owner and p[4] == tonumber(attempt)", "return true")
NO_END = (
    "redis.call('XACK', stream, group, ARGV[1])\nredis.call('XDEL', stream, ARGV[1])\n",
    "",
)


@pytest.fixture
def stage(redis_server: RedisServer, monitor: Monitor, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(redis_server, monitor, tmp_path / "journal")
    yield stage
    stage.link.close()


def test_it_knows_every_script() -> None:
    """A new one that acts for an owner belongs into FENCED, with entry, owner and attempt as its first arguments."""
    known = {name for name, value in vars(scripts).items() if isinstance(value, Script)}
    assert known == {*oracle_module.FENCED, *oracle_module.FREE}


def test_what_is_well_is_found_well(stage: Stage) -> None:
    queue, link = stage.queue, stage.link
    stage.writes("setup")

    # From slot to slot, as an entry goes when its first owner is gone, who tries to write all the same.
    moved = stage.send("moved")
    first = stage.take()
    assert stage.publish(first, moved) == "shown"
    stage.writes("start", "moved")
    stage.writes("setup", pid=1)
    second = stage.reclaim(first)
    stage.writes("start", "moved", pid=1)
    assert stage.publish(first, moved) == "lost"
    assert queue.extend(link, [Held(first.at, SLOT, 1), Held(second.at, OTHER, 2)]) == ["lost", "held"]
    stage.writes("end", "moved", pid=1, how="returned")
    assert stage.commit(second, moved, OTHER) == "done"
    assert stage.commit(second, moved, OTHER) == "settled"
    assert stage.commit(first, moved) == "stale"

    # By ticket, released, taken by the next commit, and buried there.
    released, buried = stage.send(), stage.send()
    queue.announce(link, "w~00000002", b"", 60)
    queue.put_credit(link, SLOT)
    answer = queue.take(link, BRIDGE)
    assert answer[0] == "ticket"
    ticket = Ticket(TICKET_VERSION, queue.name, answer[3].entry, 1, BRIDGE, SLOT)
    taken = queue.claim(link, ticket.slot, ticket)
    assert taken is not None and queue.claim(link, ticket.slot, ticket) == taken
    assert queue.release(link, Held(taken.at, SLOT, 1), 1)
    letter = stage.take(OTHER)
    again = queue.recover(link, OTHER, 1)
    assert again == letter
    assert queue.bury(link, letter, OTHER, buried.response_queue, FAILED, "no reason")
    owned = Owned(taken.at, "released", 0, 1)
    assert queue.reclaim(link, owned, BRIDGE, 0, counts=False) == 1
    ticket = Ticket(TICKET_VERSION, queue.name, taken.entry, 1, BRIDGE, OTHER)
    final = queue.claim(link, ticket.slot, ticket)
    assert final is not None and stage.commit(final, released, OTHER) == "done"

    # Nobody would see an answer.
    stage.oracle.sent(Request("", stage.producer.send_raw("nonsense"), "", ""))
    nonsense = stage.take()
    assert queue.bury(link, nonsense, SLOT, None, b"", "nonsense")

    assert stage.oracle.settle(1)
    verdict = stage.check().demand()
    assert (verdict.requests, verdict.runs, verdict.run_twice, verdict.lives) == (4, 2, ["moved"], 2)
    assert verdict.statuses == {"succeeded": 2, "failed": 1}
    assert (verdict.fenced, verdict.reclaimed) == (2, 2)
    assert not verdict.weakened and not verdict.timeline


def test_a_second_terminal_snapshot_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stage.send()
    first = stage.take()
    second = stage.reclaim(first)
    stage.commit(second, request, OTHER)
    stage.careless(monkeypatch, "COMMIT", NO_FENCE)
    assert stage.commit(first, request) == "done"
    assert stage.violated() == {"one terminal", "no stale write"}


def test_a_terminal_snapshot_by_two_steps_is_found_when_the_second_is_missing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that is not atomic, and whose process dies in the middle: the next attempt answers again."""
    request = stage.send()
    first = stage.take()
    stage.careless(monkeypatch, "COMMIT", NO_END)
    stage.commit(first, request)
    assert stage.violated() == {"settled"}
    monkeypatch.undo()
    stage.commit(stage.reclaim(first), request, OTHER)
    assert stage.violated() == {"one terminal"}


def test_a_snapshot_after_the_terminal_one_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stage.send()
    first = stage.take()
    stage.commit(stage.reclaim(first), request, OTHER)
    stage.careless(monkeypatch, "PUBLISH", NO_FENCE)
    stage.publish(first, request)
    assert stage.violated() == {"nothing after it", "no stale write"}


def test_a_write_of_a_stale_owner_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stage.send()
    first = stage.take()
    second = stage.reclaim(first)
    stage.careless(monkeypatch, "PUBLISH", NO_FENCE)
    stage.publish(first, request)
    stage.commit(second, request, OTHER)
    assert stage.violated() == {"no stale write"}


def test_a_write_of_a_stale_attempt_of_the_same_owner_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stage.send()
    first = stage.take()
    second = stage.reclaim(first, heir=SLOT)
    stage.careless(monkeypatch, "PUBLISH", NO_FENCE)
    stage.publish(first, request)
    stage.commit(second, request)
    assert stage.violated() == {"no stale write"}


def test_an_extension_by_a_stale_owner_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stage.send()
    first = stage.take()
    second = stage.reclaim(first)
    stage.careless(monkeypatch, "EXTEND", NO_FENCE)
    stage.queue.extend(stage.link, [Held(first.at, SLOT, 1)])
    stage.queue.extend(stage.link, [Held(second.at, OTHER, 2)])
    stage.commit(second, request, OTHER)
    assert stage.violated() == {"no stale write"}


def test_a_write_past_the_scripts_is_found(stage: Stage) -> None:
    request = stage.send()
    first = stage.take()
    stage.client.set(request.response_queue, PROCESSING)
    stage.commit(first, request)
    assert stage.violated() == {"no stale write"}


def test_what_cogs_own_worker_writes_is_its_own(stage: Stage) -> None:
    request = stage.send()
    stage.client.xreadgroup(stage.queue.name, "consumer-0", {stage.queue.name: ">"})
    for snapshot in (PROCESSING, SUCCEEDED):
        stage.client.set(request.response_queue, snapshot)
    stage.client.xack(stage.queue.name, stage.queue.name, request.entry)
    stage.client.xdel(stage.queue.name, request.entry)
    assert stage.violated() == set()


@pytest.mark.parametrize("how", ["waits", "runs", "is dropped"])
def test_a_request_that_is_never_answered_is_found(stage: Stage, how: str) -> None:
    request = stage.send()
    if how != "waits":
        stage.publish(stage.take(), request)
    if how == "is dropped":
        stage.client.xgroup_delconsumer(stage.queue.name, stage.queue.name, SLOT)
    assert not stage.oracle.settle(0.1)
    assert stage.violated() == {"one terminal", "settled"}


def test_a_message_that_is_acknowledged_and_kept_is_found(stage: Stage) -> None:
    request = stage.send()
    stage.take()
    stage.client.set(request.response_queue, SUCCEEDED)
    stage.client.xack(stage.queue.name, stage.queue.name, request.entry)
    assert "settled" in stage.violated()


def test_an_answer_that_nothing_computed_is_found(stage: Stage) -> None:
    for how in ("returned", "ValueError"):
        request = stage.send(how)
        stage.commit(stage.take(), request)
    stage.writes("setup")
    for how in ("returned", "ValueError"):
        stage.writes("start", how)
        stage.writes("end", how, how=how)
    (violation,) = stage.check().violations
    assert violation.invariant == "runs end" and "ValueError" in violation.what


def runs_on(stage: Stage) -> None:
    me = Process.read(os.getpid())
    assert me is not None
    stage.writes("setup", pid=me.pid, born=me.born)
    stage.writes("start", "x", pid=me.pid, born=me.born)


def begins_another(stage: Stage) -> None:
    stage.writes("setup")
    for mark in ("x", "y"):
        stage.writes("start", mark)


def ends_another(stage: Stage) -> None:
    stage.writes("setup")
    stage.writes("start", "x")
    stage.writes("end", "y", how="returned")


@pytest.mark.parametrize("does", [runs_on, begins_another, ends_another])
def test_a_run_without_an_end_is_found(stage: Stage, does: Callable[[Stage], None]) -> None:
    does(stage)
    assert stage.violated() == {"runs end"}


def test_a_run_whose_runner_died_needs_no_end(stage: Stage) -> None:
    stage.writes("setup")
    stage.writes("start", "x")
    stage.writes("setup", born="2")  # the same process id, of another process
    assert stage.violated() == set()


@pytest.mark.parametrize("events", [["setup", "setup"], ["start", "end", "setup"]])
def test_a_runner_that_is_not_set_up_exactly_once_is_found(stage: Stage, events: list[str]) -> None:
    for event in events:
        stage.writes(event, how="returned" if event == "end" else "")
    assert stage.violated() == {"one setup"}


def test_a_request_that_is_sent_again_with_its_response_key_is_to_be_answered_again(stage: Stage) -> None:
    key = f"response-{uuid.uuid4().hex}"
    for _ in range(2):
        request = stage.send(response_queue=key)
        stage.publish(delivery := stage.take(), request)
        stage.commit(delivery, request)
    assert stage.violated() == set()
    stage.send(response_queue=key)
    stage.queue.bury(stage.link, stage.take(), SLOT, None, b"", "nobody is told")
    assert stage.violated() == {"one terminal"}


def test_a_script_that_is_not_known_is_found(stage: Stage) -> None:
    stage.client.eval("return 1", 1, stage.queue.name)
    assert stage.violated() == {"no stale write"}


def test_an_entry_that_somebody_else_deleted_need_not_be_answered(stage: Stage) -> None:
    removed, _ = stage.send(), stage.send()
    stage.client.xdel(stage.queue.name, removed.entry)
    assert stage.check().unanswered
    stage.client.xtrim(stage.queue.name, maxlen=0)
    verdict = stage.check().demand()
    assert len(verdict.unanswered) == 2
    assert any("deleted" in text for text in verdict.weakened) and any("trimmed" in text for text in verdict.weakened)


def test_a_failure_tells_the_story_of_its_request(stage: Stage) -> None:
    request = stage.send("a mark")
    stage.publish(stage.take(), request)
    stage.writes("setup")
    stage.writes("start", "a mark")
    stage.oracle.note("killed worker 1")
    with pytest.raises(AssertionError) as failure:
        stage.check().demand()
    told = str(failure.value)
    order = (
        "asked for by an XADD",
        "SET processing",
        f"PUBLISH for {request.entry} by {SLOT}",
        "start",
        "killed worker 1",
    )
    places = [told.index(words) for words in order]
    assert places == sorted(places), told


@pytest.mark.parametrize(
    ("undone", "violated"),
    [(60.0, set()), (0.0, {"one terminal", "no stale write"})],
    ids=["just before", "long before"],
)
def test_only_what_was_done_just_before_a_gap_may_have_been_undone(
    own_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undone: float, violated: set[str]
) -> None:
    monkeypatch.setattr(oracle_module, "UNDONE", undone)
    raw = redis.Redis.from_url(own_server.url)
    with recording(own_server) as monitor:
        stage = Stage(own_server, monitor, tmp_path / "journal")
        request = stage.send()
        first = stage.take()
        before = raw.dump(stage.queue.name)
        assert before is not None
        stage.commit(first, request)
        monitor.catch_up()
        own_server.restart(0)
        monitor.catch_up()
        raw.restore(stage.queue.name, 0, before)
        stage.link.close()
        stage.commit(stage.reclaim(first), request, OTHER)
        new = stage.send()
        stage.commit(stage.take(), new)
        verdict = stage.check()
        assert {violation.invariant for violation in verdict.violations} == violated
        assert any("gap" in text for text in verdict.weakened)
        assert verdict.statuses == {"succeeded": 2}
        stage.link.close()
    raw.close()


@pytest.mark.parametrize("durable", [True, False])
def test_requests_that_a_server_lost_are_excused_only_when_it_may_lose_them(
    own_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    monkeypatch.setattr(oracle_module, "UNDONE", 0.0)
    with recording(own_server) as monitor:
        stage = Stage(own_server, monitor, tmp_path / "journal", durable=durable)
        lost = stage.send()
        stage.publish(stage.take(), lost)
        monitor.catch_up()
        own_server.restart(0)
        monitor.catch_up()
        stage.link.close()
        stage.queue.create_group(stage.link)
        new = stage.send()
        stage.commit(stage.take(), new)
        assert stage.oracle.settle(0.2) is not durable
        verdict = stage.check()
        assert verdict.unanswered == [lost]
        assert {violation.invariant for violation in verdict.violations} == ({"one terminal"} if durable else set())
        stage.link.close()


def test_a_recording_loses_nothing_under_load(redis_server: RedisServer) -> None:
    mark = uuid.uuid4().hex
    client = redis_server.client
    text = 'with "quotes", \\ and \n, and as long as a small snapshot is: ' + "." * 200
    heard: list[Command | Gap] = []
    with Monitor(client) as all_of_it, Monitor(client, keep=100) as the_end:
        the_end.listen(heard.append)
        with client.pipeline(transaction=False) as pipe:
            for number in range(10_000):
                pipe.hset(mark, str(number), text)
            pipe.set(mark + "-large", "é" * (2 << 20))
            pipe.delete(mark, mark + "-large")
            pipe.execute()
        kept = the_end.commands()
        for commands in (all_of_it.commands(), [seen for seen in heard if isinstance(seen, Command)]):
            fields = [command.args[2:] for command in commands if command.args[:2] == (b"HSET", mark.encode())]
            assert fields == [(str(number).encode(), text.encode()) for number in range(10_000)]
            (large,) = (one for one in commands if one.args[:2] == (b"SET", f"{mark}-large".encode()))
            assert large.args[2].decode() == "é" * (2 << 20)
        assert len(kept) == 100 and max(command.size for command in kept) < 10_000


ENDS = {
    "succeeded": ["OK", "LOGS", "STREAM", "FILES", "FLOOD", "BIG", "SLEEP"],
    "failed": ["RAISE", "EXIT", "KILL", "SEGV", "OOM"],
    "canceled": ["HANG", "IGNORE_TERM"],
}


def test_whatever_a_predictor_does_each_request_is_answered_once(
    fleet: FleetFactory, monitor: Monitor, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    two = fleet("actions", env=journal_env(journal), slots=2, lease=2, cancel_grace=0.3)
    oracle = Oracle(monitor, journal, two.queue)
    sent: list[tuple[Request, str]] = []
    for number in range(6):
        for status, actions in ENDS.items():
            for action in actions if status == "succeeded" or number < 2 else ():
                request = two.producer.send({"action": action, "n": 2, "seconds": 0.01, "text": f"{action} {number}"})
                sent.append((oracle.sent(request), status))
                if status == "canceled":
                    two.producer.cancel(request)
    for text in ('{"response_queue": "r"', '{"response_queue": 5}', "\xff"):
        oracle.sent(Request("", two.producer.send_raw(text), "", ""))
    assert oracle.settle()
    verdict = oracle.check().demand()
    assert verdict.run_twice == [] and verdict.fenced == 0
    assert [two.producer.wait(request)["status"] for request, _ in sent] == [status for _, status in sent]
