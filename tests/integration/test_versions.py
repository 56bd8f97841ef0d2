"""A fleet file with real bridges and workers: lanes, and queues whose requests go to the queue of a version."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from cog_celery.delivery import servers
from cog_celery.delivery.link import Link
from cog_celery.delivery.presence import noted
from cog_celery.delivery.stream import Queue
from cog_celery.delivery.whereabouts import Sighting, _newer, find
from cog_celery.producer import places
from cog_celery.producer.sending import Sent, cancel, still_there
from tests.conftest import FleetFactory, fleets_on, recording
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.oracle import Oracle, journal_env, read_journal
from tests.support.processes import Child, wait_until
from tests.support.producer import Producer, Request, bare, succeeded
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

MODELS = Path(__file__).parents[1] / "models"


class TwoVersions:
    """`front`, whose requests go to two queues: v1 has slots of the model `modes`, v2 of `actions`."""

    def __init__(self, fleet: FleetFactory, folder: Path, **more: str) -> None:
        self.front = f"q-{uuid.uuid4().hex[:8]}"
        self.v1, self.v2 = f"{self.front}-v1", f"{self.front}-v2"
        settings = "".join(f", {name}: {value}" for name, value in more.items())
        self.file = folder / "fleet.yaml"
        self.file.write_text(
            textwrap.dedent(
                f"""
                defaults: {{lease: 2{settings}}}
                queues:
                  {self.front}: {{versions: {{v1: {self.v1}, v2: {self.v2}}}, default: v1}}
                  {self.v1}: {{model: {MODELS / "modes"}}}
                  {self.v2}: {{model: {MODELS / "actions"}, slots: 2}}
                """
            )
        )
        self.fleet: Fleet = fleet("modes", start=False, queue=self.v1, fleet=str(self.file))
        self.client = self.fleet.client
        self.producer = Producer(self.client, self.front)

    def start_bridge(self, **options: Any) -> Child:
        child = self.fleet.start_command("bridge", "bridge", **options)
        self.fleet.bridges.append(child)
        return child

    def start_worker(self, queue: str, **options: Any) -> Child:
        name = f"w{len(self.fleet.workers)}-{queue}"
        child = self.fleet.start_command("worker", "worker", "--queue", queue, name=name, **options)
        self.fleet.workers.append(child)
        return child

    def ready(self, **slots: int) -> None:
        wait_until(
            lambda: all(
                self.client.llen(f"cog-celery:{getattr(self, name)}:credits") >= count for name, count in slots.items()
            ),
            "idle slots",
            timeout=30,
        )

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = self.fleet.environment({})
        words = [sys.executable, "-m", "cog_celery", command, *arguments]
        return subprocess.run(words, env=env, text=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def module_fleets(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetFactory]:
    with fleets_on(redis_server, tmp_path_factory.mktemp("fleets")) as factory:
        yield factory


@pytest.fixture(scope="module")
def two(module_fleets: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> TwoVersions:
    two = TwoVersions(module_fleets, tmp_path_factory.mktemp("fleet"), priority="true")
    two.start_bridge()
    two.start_worker(two.v1)
    two.start_worker(two.v2)
    two.ready(v1=1, v2=2)
    return two


def test_a_request_goes_to_the_slots_of_the_version_that_it_names(two: TwoVersions) -> None:
    first = two.producer.send({"mode": "hello", "text": "a"}, version="v1")
    second = two.producer.send({"action": "OK", "text": "b"}, version="v2")
    unnamed = [two.producer.send({"mode": "hello", "text": "c"}, version=version) for version in (None, "")]
    assert bare(two.producer.wait(first)) == succeeded("hello a")
    assert bare(two.producer.wait(second)) == succeeded("b")
    assert [two.producer.wait(request)["output"] for request in unnamed] == ["hello c", "hello c"]
    wait_until(lambda: not two.client.xlen(two.v1) + two.client.xlen(two.v2), "both to be empty")
    assert two.client.xlen(two.front) == 0
    assert two.client.xpending(two.front, two.front)["pending"] == 0


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("v3", r"^The `version` 'v3' is none that this queue has: v1, v2; did you mean v[12]\?\.$"),
        (7, r"^The `version` '7' is none that this queue has: v1, v2\.$"),
        (["v1"], r"^The request is not valid: `version` must be a text\.$"),
        ({"v1": 1}, r"`version` must be a text"),
        ("v1\n\x1b[31m", r"is none that this queue has"),
        ("\x01" * 300_000, r"^The `version` '(\\x01){200}…' is none that this queue has: v1, v2\.$"),
    ],
)
def test_a_version_that_is_not_there_is_refused_and_kept(two: TwoVersions, version: object, error: str) -> None:
    before = two.client.xlen(f"{two.front}-dead")
    request = two.producer.send({"mode": "hello"}, version=version)
    response = two.producer.wait(request)
    assert response["status"] == "failed" and re.search(error, response["error"]), response
    assert two.client.xlen(f"{two.front}-dead") == before + 1
    [(_, letter)] = cast(Any, two.client.xrevrange(f"{two.front}-dead", count=1))
    assert letter["reason"].startswith(response["error"]) and len(letter["reason"]) < 2000, (
        "a thousand of them are kept"
    )
    assert two.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_messages_that_are_no_requests_are_refused_where_they_come_in(two: TwoVersions) -> None:
    before = two.client.xlen(f"{two.front}-dead")
    two.producer.send_raw("nonsense")
    two.client.xadd(two.front, {"other": "x"})
    request = two.producer.send({"mode": "hello"}, response_queue=f"{two.front}.high")
    wait_until(lambda: two.client.xlen(f"{two.front}-dead") == before + 3, "three dead letters")
    assert two.client.type(request.response_queue) == "stream", "the lane is nobody's response key"
    assert two.producer.predict({"mode": "hello"}) == succeeded("hello world")


def test_the_lane_of_a_front_leads_to_the_lane_of_the_version(two: TwoVersions, monitor: Monitor) -> None:
    lane = Producer(two.client, f"{two.front}.high")
    request = lane.send({"mode": "hello"}, version="v1")
    assert bare(lane.wait(request)) == succeeded("hello world")
    added = [command.args[1].decode() for command in monitor.commands() if command.name == "XADD"]
    assert f"{two.v1}.high" in added


def test_send_names_a_version_and_a_lane_and_follows_the_request_through_both_queues(two: TwoVersions) -> None:
    sent = two.run(
        *("send", "--queue", two.front, "--version", "v2", "--priority", "-i", "action=SLEEP"),
        *("-i", "seconds=4", "-i", "text=done", "--output", "text"),
    )
    assert sent.returncode == 0, sent.stderr
    assert "done" in sent.stdout and "gone" not in sent.stderr


def test_where_a_request_was_moved_is_known_for_a_while_and_then_it_is_not_taken_for_lost(two: TwoVersions) -> None:
    client = redis.Redis.from_url(two.fleet.server.url)
    twin, lane = f"{int(time.time() * 1000) + 5}-0", f"{two.front}.high"
    sent: dict[str, Sent] = {}
    for stream in (two.front, lane):
        key = f"{two.front}-twin-{len(sent)}"
        request = {"input": {"mode": "hello"}, "response_queue": key}
        client.xadd(stream, {"value": json.dumps(request)}, id=twin)
        sent[stream] = Sent("id", stream, twin, key, "")
    for one in sent.values():
        two.producer.wait(one.response_queue)
    assert {stream: (places.moved(client, stream, twin) or ("",))[0] for stream in sent} == {
        two.front: two.v1,
        lane: f"{two.v1}.high",
    }
    gone = cast(bytes, client.xadd(two.front, {"value": "{}"})).decode()
    wait_until(lambda: not client.xlen(two.front), "it to be refused")
    never_there = Sent("id", two.front, gone, "", "")
    assert still_there(client, never_there) is None

    with client.pipeline() as pipe:
        for _ in range(1100):
            pipe.xadd(
                two.front, {"value": json.dumps({"input": {"mode": "hello"}, "response_queue": f"{two.front}-r"})}
            )
        pipe.execute()
    wait_until(lambda: not client.xlen(two.front), "all of them to be moved", timeout=30)
    first = sent[two.front]
    assert places.moved(client, first.queue, twin) == (first.queue, twin), "nobody knows"
    assert still_there(client, first) == first
    wait_until(lambda: not client.xlen(two.v1), "all of them to be answered", timeout=30)


def test_a_file_of_requests_may_name_versions_line_by_line(two: TwoVersions, tmp_path: Path) -> None:
    lines = [{"input": {"mode": "hello"}, "version": "v1"}, {"input": {"action": "OK", "text": "b"}}]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sent = two.run("send", "--queue", two.front, "--version", "v2", "--file", str(file), "--output", "json")
    assert sent.returncode == 0, sent.stderr
    answers = sorted((json.loads(line) for line in sent.stdout.splitlines()), key=lambda answer: answer["line"])
    assert [answer["output"] for answer in answers] == ["hello world", "b"]


@pytest.mark.parametrize("by", ["id", "entry"])
@pytest.mark.parametrize("lane", [False, True])
def test_a_request_that_was_moved_is_canceled_by_its_name_in_the_front_queue(
    two: TwoVersions, by: str, lane: bool
) -> None:
    producer = Producer(two.client, f"{two.front}.high") if lane else two.producer
    request = producer.send({"mode": "sleeps", "seconds": 60}, version="v1")
    producer.wait_for(request, lambda response: True)
    name = f"{request.entry}.high" if lane and by == "entry" else getattr(request, by)
    done = two.run("cancel", name, "--queue", two.front)
    assert done.returncode == 0, done.stderr
    assert producer.wait(request)["status"] == "canceled"
    done = two.run("cancel", name, "--queue", two.front)
    lane_name = f"{two.v1}.high" if lane else two.v1
    assert done.returncode == 1 and f"went from {two.front} to {lane_name}, as " in done.stderr, done.stderr
    assert "has ended there" in done.stderr


def test_status_shows_fronts_and_lanes_without_false_alarms_and_finds_what_was_moved(two: TwoVersions) -> None:
    request = two.producer.send({"mode": "hello"}, version="v1")
    two.producer.wait(request)
    told = two.run("status", "--queue", two.front, "--queue", two.v1, "--output", "json")
    assert told.returncode == 0, told.stderr
    front, v1 = json.loads(told.stdout)["queues"]
    assert front["settings"]["front"] and not front["troubles"] and v1["settings"]["priority"]
    shown = two.run("status", "--queue", two.front, "--queue", two.v1, "--output", "text").stdout
    assert "in .high" in shown and "0/0" not in shown, shown
    where = two.run("status", request.id, "--queue", two.front, "--queue", two.v1, "--output", "json")
    assert where.returncode == 0, where.stderr
    newest, oldest = json.loads(where.stdout)["predictions"]
    assert (newest["queue"], newest["status"]) == (two.v1, "succeeded")
    assert (oldest["queue"], oldest["status"]) == (two.front, "moved")
    assert any(f"as {two.v1}/{newest['entry']}" in event["what"] for event in oldest["history"])


def test_what_a_request_became_is_newer_than_its_move_within_the_same_millisecond() -> None:
    def seen(queue: str, entry: str, status: str | None) -> Sighting:
        return Sighting(queue=queue, entry=entry, id="a", state="ended", status=status)

    moved, became = seen("front", "5-7", "moved"), seen("v1", "5-0", "succeeded")
    for found in ([moved, became], [became, moved]):
        assert sorted(found, key=_newer, reverse=True) == [became, moved]


def test_a_worker_for_a_queue_without_slots_says_so_and_ends(two: TwoVersions) -> None:
    worker = two.run("worker", str(MODELS / "modes"), "--queue", two.front)
    assert worker.returncode == 2 and "has versions and no slots" in worker.stderr, worker.stderr
    env = two.fleet.environment({})
    del env["COG_CELERY_FLEET"]
    words = [sys.executable, "-m", "cog_celery", "worker", str(MODELS / "modes"), "--queue", two.front]
    alone = subprocess.run(words, env=env, text=True, capture_output=True, timeout=60)
    assert alone.returncode == 1 and "has no slots" in alone.stderr, alone.stderr


@pytest.mark.parametrize("place", ["bridge.taken=kill", "bridge.moved=kill", "bridge.moved#20=kill"])
def test_a_bridge_that_dies_between_two_queues_loses_nothing_and_moves_nothing_twice(
    fleet: FleetFactory, redis_server: RedisServer, tmp_path: Path, place: str
) -> None:
    journal = tmp_path / "journal"
    two = TwoVersions(fleet, tmp_path)
    two.start_bridge(env={"COGCELERY_FAILPOINT": place})
    two.fleet.env |= journal_env(journal)
    two.start_worker(two.v2)
    two.ready(v2=2)
    with recording(redis_server) as monitor:
        oracle = Oracle(monitor, journal, two.v2)
        sent = [two.producer.send({"action": "OK", "text": f"mark {i}"}, version="v2") for i in range(40)]
        two.fleet.bridges[0].wait(10)
        two.start_bridge()
        for request in sent:
            two.producer.wait(request)
        moved = entries_by_id(two, sent)
        assert len(moved) == len(sent)
        for request in sent:
            oracle.sent(dataclasses.replace(request, entry=moved[request.id]))
        assert oracle.settle()
        verdict = oracle.check().demand()
        assert verdict.runs == len(sent), "each ran once"
    assert two.client.xlen(two.front) == 0


def entries_by_id(two: TwoVersions, sent: list[Request]) -> dict[str, str]:
    """The entries that requests had in the queue of their version, as bridges noted it."""
    notes = cast(list[tuple[str, dict[str, str]]], two.client.xrange(f"cog-celery:{two.front}:recent"))
    found: dict[str, str] = {}
    for _, note in notes:
        if note["what"] == "moved":
            id = json.loads(note["about"])["id"]
            assert id not in found, "moved twice"
            found[id] = note["owner"].rpartition("/")[2]
    return found


def test_a_version_whose_stream_is_something_else_holds_up_no_other(fleet: FleetFactory, tmp_path: Path) -> None:
    two = TwoVersions(fleet, tmp_path)
    two.start_bridge(queue=f"{two.front},{two.v1}")
    two.start_worker(two.v1)
    two.ready(v1=1)
    two.client.set(two.v2, "no stream")
    stuck = [two.producer.send({"action": "OK", "text": "late"}, version="v2") for _ in range(30)]
    for _ in range(5):
        assert two.producer.predict({"mode": "hello"}) == succeeded("hello world")
    two.client.delete(two.v2)
    two.start_bridge(queue=two.v2)
    two.start_worker(two.v2)
    assert [two.producer.wait(request)["output"] for request in stuck] == ["late"] * 30
    assert two.fleet.log().count(f"what goes to {two.v2} waits: ") == 1


def test_two_versions_side_by_side_while_one_is_rolled_out(fleet: FleetFactory, tmp_path: Path) -> None:
    two = TwoVersions(fleet, tmp_path)
    bridge = two.start_bridge()
    old = two.start_worker(two.v1)
    two.start_worker(two.v2)
    two.ready(v1=1, v2=2)
    running = two.producer.send({"mode": "sleeps", "seconds": 1, "text": "old"})
    two.producer.wait_for(running, lambda response: True)
    # The other one becomes the default: a second bridge comes with the changed file, the first one goes.
    two.file.write_text(two.file.read_text().replace("default: v1", "default: v2"))
    two.start_bridge()
    bridge.terminate()
    assert bridge.wait(20) == 0
    sent = [two.producer.send({"action": "OK", "text": str(i)}) for i in range(10)]
    assert [two.producer.wait(request)["output"] for request in sent] == [str(i) for i in range(10)]
    old.terminate()
    assert two.producer.wait(running)["output"] == "old"
    assert old.wait(20) == 0


def test_high_requests_go_first_and_low_ones_do_not_starve(
    fleet: FleetFactory, monitor: Monitor, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    one = fleet("actions", priority=True, env=journal_env(journal))
    lane = Producer(one.client, f"{one.queue}.high")
    oracle = Oracle(monitor, journal, one.queue)
    blocker = oracle.sent(one.producer.send({"action": "SLEEP", "seconds": 3, "text": "blocker"}))
    one.producer.wait_for(blocker, lambda response: True)
    low = [oracle.sent(one.producer.send({"action": "OK", "text": f"low {i}"})) for i in range(5)]
    for i in range(25):
        oracle.sent(lane.send({"action": "OK", "text": f"high {i}"}), lane=True)
    for request in low:
        one.producer.wait(request)
    assert oracle.settle()
    verdict = oracle.check().demand()
    assert verdict.runs == 31
    starts = [json.loads(line) for line in journal.read_text().splitlines()]
    order = [line["request"].split()[0] for line in starts if line["event"] == "start"][1:]
    assert order[:3] == ["high"] * 3 or order[:4].count("high") == 3, order
    assert 2 <= order[:25].count("low") <= 3, "every tenth time it is the other's turn"
    assert [line["request"] for line in starts if line["event"] == "start" and "high" in line["request"]] == [
        f"high {i}" for i in range(25)
    ]


def test_a_worker_that_dies_with_entries_of_both_streams_costs_an_attempt_of_each(
    fleet: FleetFactory, monitor: Monitor, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    two = fleet("actions", slots=2, priority=True, lease=1, env=journal_env(journal))
    lane = Producer(two.client, f"{two.queue}.high")
    oracle = Oracle(monitor, journal, two.queue)
    high = oracle.sent(lane.send({"action": "SLEEP", "seconds": 1, "text": "high"}), lane=True)
    low = oracle.sent(two.producer.send({"action": "SLEEP", "seconds": 1, "text": "low"}))
    for request in (high, low):
        two.producer.wait_for(request, lambda response: True)
    wait_until(lambda: [line.event for line in read_journal(journal)].count("start") == 2, "both to be in predict()")
    two.workers[0].kill()
    two.workers[0].wait()
    two.start_worker()
    assert [two.producer.wait(request)["output"] for request in (high, low)] == ["high", "low"]
    assert oracle.settle()
    verdict = oracle.check().demand()
    assert (verdict.reclaimed, sorted(verdict.run_twice)) == (2, ["high", "low"])


def test_a_slot_in_its_turn_waits_for_both_streams(fleet: FleetFactory) -> None:
    one = fleet("modes", priority=True, turn=5)
    lane = Producer(one.client, f"{one.queue}.high")
    assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
    for producer in (lane, one.producer, lane):
        began = time.monotonic()
        assert producer.predict({"mode": "hello"}) == succeeded("hello world")
        assert time.monotonic() - began < 2
    assert one.credits() == 0, "all of it within one turn"


def test_what_is_left_in_a_lane_that_is_none_any_more_is_said(fleet: FleetFactory) -> None:
    one = fleet("modes", start=False)
    one.client.xgroup_create(f"{one.queue}.high", one.queue, id="0", mkstream=True)
    Producer(one.client, f"{one.queue}.high").send({"mode": "hello"})
    one.start_bridge()
    said = f"nobody takes what is left in {one.queue}.high (1): start it with --priority"
    wait_until(lambda: said in one.log(), "that to be said")
    one.client.delete(f"{one.queue}.high")


def test_a_lane_is_canceled_in_and_can_only_be_sent_to_where_there_is_one(fleet: FleetFactory) -> None:
    one, plain = fleet("modes", priority=True), fleet("modes", start=False)
    lane = Producer(one.client, f"{one.queue}.high")
    request = lane.send({"mode": "sleeps", "seconds": 60})
    lane.wait_for(request, lambda response: True)
    words = [sys.executable, "-m", "cog_celery"]
    env = one.environment({})
    canceled = subprocess.run(
        [*words, "cancel", request.id, "--queue", one.queue], env=env, text=True, capture_output=True, timeout=30
    )
    assert canceled.returncode == 0, canceled.stderr
    assert lane.wait(request)["status"] == "canceled"
    plain.start_bridge()
    wait_until(lambda: plain.client.exists(f"cog-celery:{plain.queue}:settings"), "the settings")
    refused = subprocess.run(
        [*words, "send", "--queue", plain.queue, "--priority", "-i", "mode=hello"],
        env=plain.environment({}),
        text=True,
        capture_output=True,
        timeout=30,
    )
    assert refused.returncode == 2 and "has no lane" in refused.stderr


def test_entries_of_the_same_id_in_both_streams_are_told_apart_by_who_looks_and_who_cancels(
    redis_server: RedisServer,
) -> None:
    client, link = redis.Redis.from_url(redis_server.url), Link(redis_server.url, "test")
    queue = Queue(f"q-{uuid.uuid4().hex[:8]}")
    queue.agree(link, None, None, None, priority=True)
    queue.create_group(link)
    for stream, id in zip(queue.streams, ("first", "second"), strict=True):
        request = {"id": id, "response_queue": f"{queue.name}-{id}", "cancel_key": f"{queue.name}-cancel-{id}"}
        client.xadd(stream, {"value": json.dumps(request)}, id="7-7")
    first, second = queue.read_next(link, "w~00000001.0", 1)

    def seen(id: str) -> list[tuple[Any, ...]]:
        found = find(servers.client(redis_server.url), [queue.name], id)
        return [(one.id, one.state, one.response and one.response.key) for one in found.sightings]

    assert seen("first") == [("first", "running", f"{queue.name}-first")]
    assert seen("second") == [("second", "running", f"{queue.name}-second")]
    cancel(client, queue.name, "7-7.high")
    assert client.exists(f"{queue.name}-cancel-first") and not client.exists(f"{queue.name}-cancel-second")
    about = noted("first", "succeeded", response=f"{queue.name}-first")
    queue.commit(link, first, "w~00000001.0", f"{queue.name}-first", b"{}", about=about)
    assert seen("first") == [("first", "ended", f"{queue.name}-first")]
    assert seen("second") == [("second", "running", f"{queue.name}-second")]
    about = noted("second", "succeeded", response=f"{queue.name}-second")
    queue.commit(link, second, "w~00000001.0", f"{queue.name}-second", b"{}", about=about)
    assert [seen(id) for id in ("first", "second")] == [
        [(id, "ended", f"{queue.name}-{id}")] for id in ("first", "second")
    ]
    link.close()
