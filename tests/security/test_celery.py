"""What whoever reaches the broker can do to a worker: be refused and counted, in one line that repeats nothing."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from celery import Celery
from kombu.message import Message
from kombu.serialization import loads

from cog_celery.celery import TURN
from cog_celery.delivery.presence import About, Running, SlotSeen
from cog_celery.worker.admission import LARGEST, Refusals, Refused, admit
from cog_celery.worker.remote import Commands
from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.producer import succeeded

pytestmark = pytest.mark.ours

PREFIX = "cog-celery:broker:"
LIFE = "w~01234567"
TICKET: list[Any] = [1, "q", "1663857077000-0", 1, "b~89abcdef", f"{LIFE}.0"]
SECRET = "do-not-repeat-me"
CLAIMS: dict[str, Any] = {
    "eta": "2999-01-01T00:00:00",
    "expires": "1999-01-01T00:00:00",
    "retries": 9,
    "timelimit": [0.001, 0.001],
    "stamped_headers": ["a"],
    "stamps": {"a": "b"},
    "replaced_task_nesting": 5,
    "ignore_result": False,
}
"""What headers may ask of Celery."""


def message(body: Any = None, **changes: Any) -> Message:
    """A kombu message with this body, a good ticket's by default; `changes` to its attributes."""
    if not isinstance(body, bytes):
        body = json.dumps([TICKET, {}, {}] if body is None else body).encode()
    fields: dict[str, Any] = {"content_type": "application/json", "content_encoding": "utf-8"}
    given = Message(body, delivery_tag="t", **fields)
    for name, value in ({"headers": {"task": TURN, "id": "x"}} | changes).items():
        setattr(given, name, value)
    return given


# One message


def test_a_ticket_is_let_in_with_nothing_else_of_its_message() -> None:
    headers = {
        "task": TURN,
        "id": SECRET,
        **dict.fromkeys(("shadow", "argsrepr", "group", "root_id", "parent_id", "origin"), SECRET),
        **CLAIMS,
    }
    embed = {"callbacks": [{"task": SECRET}], "errbacks": [{"task": SECRET}], "chain": [{"task": SECRET}], "chord": {}}
    given = message([TICKET, {"name": SECRET}, embed], headers=headers, properties={"reply_to": SECRET})
    admit(given, ("q",), LIFE)
    assert set(given.headers) == {"lang", "task", "id", "argsrepr", "kwargsrepr", "ignore_result"}
    assert SECRET not in json.dumps(given.headers)
    assert given.properties == {}
    body = loads(given.body, given.content_type, given.content_encoding, accept={"application/json"})
    assert body == [TICKET, {}, {}]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (message(headers={"task": "celery.backend_cleanup", "id": SECRET}), "task that is not ours"),
        (message(headers={"task": [TURN]}), "task that is not ours"),
        (message(headers={}), "task that is not ours"),
        (message(headers=[TURN]), "task that is not ours"),
        (message(pickle.dumps(TICKET), content_type="application/x-python-serialize"), "not JSON"),
        (message(content_type=None), "not JSON"),
        (message(b"[" * (LARGEST + 1)), "too large"),
        (message(b"[" * LARGEST), "not those of a ticket"),
        (message(SECRET.encode()), "not those of a ticket"),
        (message(b"\xff\xfe[]"), "not those of a ticket"),
        (message(b""), "not those of a ticket"),
        (message(["x"]), "not those of a ticket"),
        (message([TICKET, {}]), "not those of a ticket"),
        (message([TICKET[:-1], {}, {}]), "not those of a ticket"),
        (message([[*TICKET, 1], {}, {}]), "not those of a ticket"),
        (message([{"version": 1}, {}, {}]), "not those of a ticket"),
        *(
            (message([[*TICKET[:at], wrong, *TICKET[at + 1 :]], {}, {}]), "not those of a ticket")
            for at, wrongs in (
                (0, ("1", None, 1.5)),
                (1, (1, "", "q" * 300)),
                (2, ("*", "1-1\n", "-", "1" * 21 + "-0", "\u0661-\u0661")),
                (3, (0, -1, 10**30, 1 << 40, "1", True)),
                (4, ("", None, "b" * 300)),
                (5, (["w"], "")),
            )
            for wrong in wrongs
        ),
        (message(b'[[1,"q","1-1",1,"\\ud800","w~01234567.0"],{},{}]'), "not those of a ticket"),
        (message([[2, *TICKET[1:]], {}, {}]), "this release reads 1 to 1"),
        (message([[10**18, *TICKET[1:]], {}, {}]), "this release reads 1 to 1"),
        (message([[1, "other", *TICKET[2:]], {}, {}]), "another queue"),
        (message([[*TICKET[:5], "w~00000000.0"], {}, {}]), "another worker"),
        (message([[*TICKET[:5], "nobody"], {}, {}]), "another worker"),
    ],
)
def test_what_is_no_ticket_of_this_worker_is_refused_with_a_reason_that_repeats_nothing(
    given: Message, reason: str
) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        admit(given, ("q",), LIFE)
    assert SECRET not in str(refused.value)


def test_a_flood_of_refusals_is_counted_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for _ in range(1000):
        refusals.add("it is not JSON")
    assert refusals.counts == {"it is not JSON": 1000}
    assert [record.message for record in caplog.records] == [
        "a message from the broker was refused: it is not JSON (1 refused so far)"
    ]


# Remote control


class Node:
    """Notes what commands ask of it."""

    def __init__(self) -> None:
        self.canceled: list[str] = []
        self.stopping = False
        self.refused = Refusals()
        self.begun = 3

    def about(self) -> About:
        running = (Running("a", "1-1", 2, 30.0), Running("b", "1-2", 1, 60.0, uploading=True))
        return About(
            role="worker", name="w", version="1", model="hello", slots=(SlotSeen(), SlotSeen("busy", "7", running))
        )

    def cancel(self, id: str) -> bool:
        self.canceled.append(id)
        return True

    def stop_soon(self) -> None:
        self.stopping = True


@pytest.mark.parametrize(
    "name",
    [
        *("pool_grow", "pool_shrink", "pool_restart", "autoscale", "add_consumer", "cancel_consumer", "rate_limit"),
        *("time_limit", "election", "hello", "revoke_by_stamped_headers", "objgraph", "memdump", "report", "nonsense"),
    ],
)
def test_a_command_that_could_change_the_worker_is_refused_with_an_answer(name: str) -> None:
    node = Node()
    answer = Commands(node)[name](None, n=1, state="x", self="y")
    assert answer == {"error": "this worker does not heed this command"}
    assert node.refused.counts.total() == 1


@pytest.mark.parametrize("name", ["revoke", "terminate"])
@pytest.mark.parametrize(
    ("ids", "canceled"), [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, None, "c" * 300, "d"], ["d"]), ({}, []), (5, [])]
)
def test_revoke_takes_ids_and_nothing_else(name: str, ids: Any, canceled: list[str]) -> None:
    node = Node()
    Commands(node)[name](None, task_id=ids, signal="KILL", terminate=True, self=1, state=2)
    assert node.canceled == canceled


@pytest.mark.parametrize(
    ("name", "arguments"), [("conf", {"state": 1}), ("reserved", {"self": 2}), ("registered", {"taskinfoitems": {}})]
)
def test_a_look_that_fails_is_answered(name: str, arguments: dict[str, Any]) -> None:
    assert "error" in Commands(Node())[name](None, **arguments)


def test_tasks_are_the_predictions_in_the_slots() -> None:
    commands = Commands(Node())
    first, second = commands["active"](None, self=2, safe={})
    assert time.time() - first.pop("time_start") == pytest.approx(30, abs=1)
    assert first == {
        "id": "a",
        "name": "hello",
        "args": [],
        "kwargs": {"slot": 1, "attempt": 2, "gpu": "7"},
        "acknowledged": True,
        "worker_pid": os.getpid(),
    }
    assert second["id"] == "b"
    assert {id: state for id, (state, _) in commands["query_task"](None, ids=["b", "c"]).items()} == {"b": "active"}
    assert commands["query_task"](None, ids="a").keys() == {"a"}


@pytest.mark.parametrize("ids", [[[]], [{}], None, 5, {}])
def test_ids_that_are_none_are_found_nowhere(ids: Any) -> None:
    assert Commands(Node())["query_task"](None, ids=ids) == {}


def test_a_look_shows_no_secret_of_a_url() -> None:
    urls = {"broker_url": f"redis://user:{SECRET}@host/0?password={SECRET}", "more": [f"amqp://u:{SECRET}@h;amqp://h"]}
    state = SimpleNamespace(app=SimpleNamespace(conf=SimpleNamespace(table=lambda with_defaults: urls)))
    shown = Commands(Node())["conf"](state)
    assert shown == {"broker_url": "redis://***@host/0?***", "more": ["amqp://***@h;amqp://h"]}


# A worker


@pytest.fixture(scope="module")
def target(shared_fleet: FleetFactory) -> Fleet:
    """A worker that the tests of this module send things to."""
    return shared_fleet("modes", lease=3, turn=0)


def life(fleet: Fleet) -> str:
    [credit] = wait_until(
        lambda: fleet.client.lrange(f"cog-celery:{fleet.queue}:credits", 0, -1), "the worker's slot to be idle"
    )
    return str(credit).rpartition(".")[0]


def envelope(body: bytes, changes: dict[str, Any] | None = None, **more: Any) -> str:
    """A message as kombu keeps it in Redis; `changes` to its fields, `more` headers and properties."""
    tag = str(uuid.uuid4())
    properties = {"delivery_tag": tag, "delivery_info": {"exchange": "", "routing_key": "x"}}
    fields: dict[str, Any] = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": TURN, "id": tag, **more.get("headers", {})},
        "properties": {**properties, "body_encoding": "base64", **more.get("properties", {})},
    }
    return json.dumps(fields | (changes or {}))


@contextmanager
def unharmed(fleet: Fleet) -> Iterator[None]:
    """Whatever happens inside, the same process serves afterwards, and has said little, and no secret."""
    [worker] = fleet.workers
    before = len(worker.text())
    yield
    for _ in range(2):
        assert fleet.producer.predict({"mode": "hello"}, timeout=5) == succeeded("hello world")
    worker.check_running()
    said = worker.text()[before:]
    assert SECRET not in said and "Traceback" not in said and "a bug of ours" not in said
    assert len([line for line in said.splitlines() if " cog_celery.predictions: " not in line]) <= 5, said


def observer(fleet: Fleet) -> Celery:
    app = Celery("observer", broker=fleet.server.url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": PREFIX}
    return app


def refused(fleet: Fleet) -> int:
    """How many messages the worker has refused."""
    node = f"{fleet.queue}@w0-{fleet.queue}"
    with observer(fleet) as app:
        [reply] = app.control.broadcast("stats", destination=[node], reply=True, timeout=3, limit=1)
    return sum(reply[node]["refused"].values())


# Not what kombu calls a message, and messages that it cannot read.
RUBBISH: list[str | bytes] = [
    *(b"", b"\xff\xfe\x00", SECRET.encode(), b"[]", b"{}", b"null", b"1", b'"x"', b"[" * 100_000, b"9" * 10_000),
    *(b'{"properties": {}}', b'{"properties": {"delivery_tag": []}}', b'{"properties": 5, "body": "x"}'),
    *(b'{"__type__": "uuid", "__value__": {}}', b'{"__type__": "x", "__value__": 1}'),
    envelope(b"x", properties={"body_encoding": "unknown"}),
    envelope(b"x", properties={"body_encoding": []}),
    envelope(b"x", {"body": "not base64!"}),
    envelope(b"x", {"body": 5}),
    envelope(b"x", headers={"compression": "nothing"}),
    envelope(b"x", headers={"compression": []}),
    envelope(zlib.compress(bytes(1 << 20)), headers={"compression": "application/x-gzip"}),
    envelope(zlib.compress(bytes(1 << 20)), headers={"compression": "zlib"}),
    envelope(b"x", {"content-encoding": "nothing", "content-type": 7}),
    envelope(pickle.dumps(SECRET), {"content-type": "application/x-python-serialize", "content-encoding": "binary"}),
    envelope(b'[[1, "a"], {}, {}]', headers={"task": SECRET}),
    envelope(json.dumps({"task": TURN, "id": SECRET, "args": TICKET, "kwargs": {}}).encode(), headers={"task": None}),
    envelope(SECRET.encode() * 300_000),
    json.dumps({"body": "x", "headers": None, "properties": {"delivery_tag": "t"}}),
    json.dumps({"headers": 5, "properties": {"delivery_tag": "t", "delivery_info": 5}}),
]


def test_rubbish_on_a_workers_queue_is_counted_and_costs_nothing(target: Fleet) -> None:
    key = f"{PREFIX}cog-celery.{life(target)}"
    before = refused(target)
    with unharmed(target):
        for value in RUBBISH:
            target.client.lpush(key, value)
        wait_until(lambda: target.client.llen(key) == 0, "all to be taken")
    assert refused(target) - before == len(RUBBISH)


def test_rubbish_on_the_channel_of_remote_control_costs_nothing(target: Fleet) -> None:
    channel = f"{PREFIX}/0.celery.pidbox"
    commands: list[Any] = [
        *(None, 5, [], {}, {"method": None}, {"method": SECRET}, {"method": "ping", "arguments": [1]}),
        {"method": "ping", "arguments": {"state": 1, "self": 2}},
        {"method": "ping", "reply_to": "x"},
        {"method": "ping", "reply_to": {"exchange": "celery", "routing_key": SECRET}},
        {"method": "ping", "reply_to": {"routing_key": 5}},
        {"method": "ping", "pattern": "(a+)+$", "matcher": "pcre"},
        {"method": "ping", "destination": 5},
        {"method": "query_task", "arguments": {"ids": {}}},
        {"method": "add_consumer", "arguments": {"queue": SECRET}},
        {"method": "pool_shrink", "arguments": {"n": 1}},
        {"method": "pool_restart"},
        {"method": "cancel_consumer", "arguments": {"queue": f"cog-celery.{life(target)}"}},
    ]
    with unharmed(target):
        for command in commands:
            value = envelope(json.dumps(command).encode(), headers={"clock": "x"})
            target.client.publish(channel, value)
        for rubbish in RUBBISH:
            target.client.publish(channel, rubbish)


def test_a_ticket_with_all_that_celery_can_do_only_starts_its_turn(target: Fleet) -> None:
    key = f"{PREFIX}cog-celery.{life(target)}"
    ticket = [1, target.queue, "1-1", 1, "b~89abcdef", f"{life(target)}.0"]
    evil = {"task": "evil", "args": [], "kwargs": {}, "options": {"queue": f"evil-{target.queue}"}}
    embed = {"callbacks": [evil], "errbacks": [evil], "chain": [evil], "chord": evil}
    headers = {
        "shadow": SECRET,
        "group": "g",
        **CLAIMS,
    }
    body = msgspec.json.encode([ticket, {"more": 1}, embed])
    void = re.compile("ticket for 1-1 is void")
    seen = len(void.findall(target.workers[0].text()))
    with unharmed(target):
        target.client.lpush(key, envelope(body, headers=headers, properties={"reply_to": f"evil-{target.queue}"}))
        wait_until(lambda: len(void.findall(target.workers[0].text())) > seen, "the turn, at once")
    assert not list(target.client.scan_iter(f"*evil-{target.queue}*"))


def test_remote_control_looks_and_refuses_what_would_break_the_worker(target: Fleet) -> None:
    with observer(target) as app, unharmed(target):
        node = f"{target.queue}@w0-{target.queue}"
        assert app.control.ping([node], timeout=5) == [{node: {"ok": "pong"}}]
        inspect = app.control.inspect([node], timeout=5)
        assert inspect.stats()[node]["pool"]["max-concurrency"] == 1
        assert inspect.active_queues()[node][0]["name"] == f"cog-celery.{life(target)}"
        assert inspect.conf()[node]["accept_content"] == ["json"]
        [reply] = app.control.broadcast("pool_grow", {"n": 5}, [node], reply=True, timeout=2)
        assert reply == {node: {"error": "this worker does not heed this command"}}
        assert inspect.stats()[node]["pool"]["max-concurrency"] == 1


def test_a_remote_shutdown_drains_and_without_remote_control_nobody_listens(fleet: FleetFactory) -> None:
    deaf = fleet("modes", start=False, remote_control=False)
    both = fleet("modes", start=False)
    for one in (deaf, both):
        one.start()
    running = [one.producer.send({"mode": "sleeps", "seconds": 1, "text": "done"}) for one in (deaf, both)]
    for one, request in zip((deaf, both), running, strict=True):
        one.producer.wait_for(request, lambda response: True)
    nodes = [f"{one.queue}@w0-{one.queue}" for one in (deaf, both)]
    with observer(both) as app:
        app.control.broadcast("shutdown", destination=nodes)
        assert both.workers[0].wait() == 0
    for one, request in zip((deaf, both), running, strict=True):
        assert one.producer.wait(request)["output"] == "done"
    deaf.workers[0].check_running()


def test_many_void_tickets_hold_up_no_request(fleet: FleetFactory) -> None:
    """As after an outage, or from somebody with access to the broker: they go in milliseconds each, not in turns."""
    one = fleet("modes", slots=2, lease=2, turn=1)
    key = f"{PREFIX}cog-celery.{life_of(one)}"
    for number in range(60):
        ticket = [1, one.queue, f"1-{number}", 1, "b~89abcdef", f"{life_of(one)}.{number % 2}"]
        one.client.lpush(key, envelope(msgspec.json.encode([ticket, {}, {}])))
    since = time.monotonic()
    requests = [one.producer.send({"mode": "hello"}) for _ in range(20)]
    assert [one.producer.wait(request)["output"] for request in requests] == ["hello world"] * 20
    assert time.monotonic() - since < 5


def life_of(fleet: Fleet) -> str:
    """The life of the one worker of a fleet."""
    [key] = fleet.client.scan_iter(f"cog-celery:{fleet.queue}:worker:*", count=1000)
    return str(key).rpartition(":")[2]
