"""Liveness: the heartbeat file that a loop touches as it goes, and what `cog-celery health` makes of it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from cog_celery.heartbeat import SILENCE, Heartbeat, look
from cog_celery.worker import probing
from cog_celery.worker.probing import Probe
from tests.conftest import FleetFactory, fleets_on
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.producer import succeeded
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

SLOWEST = 5.0
"""Seconds that a probe may take on a machine that is busy with other tests."""


# The file


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"cog-celery-{os.getuid()}"


def beating(
    file: str | None = None, role: str = "worker", name: str = "w", queues: tuple[str, ...] = ("q",)
) -> Heartbeat:
    return Heartbeat(file, role, queues, name, f"{name}~01234567")


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_heartbeat_is_a_file_of_ours_alone_that_says_who_it_is(temporary: Path) -> None:
    beating().touch("ready")
    [file] = files(temporary)
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    [seen] = look(None, "worker", ["q"], "w")
    assert (seen.role, seen.queues, seen.pid, seen.state) == ("worker", ["q"], os.getpid(), "ready")
    assert 0 <= seen.age < 5 and seen.problem is None and seen.unready is None


def test_a_loop_that_comes_around_often_writes_seldom_and_a_change_of_state_at_once(temporary: Path) -> None:
    one = beating()
    one.touch("starting")
    [file] = files(temporary)
    first = file.stat().st_ino
    for _ in range(100):
        one.touch("starting")
    assert file.stat().st_ino == first
    one.touch("ready")
    assert [seen.state for seen in look(None, None, [], None)] == ["ready"]


def test_the_next_life_takes_the_place_of_the_last_and_is_not_removed_by_it(temporary: Path) -> None:
    last, following = beating(), Heartbeat(None, "worker", ["q"], "w", "w~89abcdef")
    last.touch("draining")
    following.touch("ready")
    last.remove()
    assert [seen.life for seen in look(None, None, [], None)] == ["w~89abcdef"]
    following.remove()
    assert files(temporary) == []


def test_processes_are_found_by_role_queue_and_name(temporary: Path) -> None:
    beating().touch("ready")
    beating(role="bridge", queues=("q", "r")).touch("ready")
    beating(name="other").touch("ready")

    def found(*filters: Any) -> set[tuple[str, str]]:
        return {(one.role, one.name) for one in look(None, *filters)}

    assert found(None, [], None) == {("worker", "w"), ("bridge", "w"), ("worker", "other")}
    assert found("bridge", [], None) == {("bridge", "w")}
    assert found(None, ["r"], None) == {("bridge", "w")}
    assert found(None, ["q"], "other") == {("worker", "other")}
    assert found("worker", ["r"], None) == set()


def test_a_folder_that_others_can_reach_is_neither_written_nor_believed(
    temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    temporary.mkdir()
    temporary.chmod(0o777)
    one = beating()
    for _ in range(3):
        one.touch("starting")
        one.touch("ready")
    assert files(temporary) == []
    assert len(caplog.records) == 1
    with pytest.raises(PermissionError):
        look(None, None, [], None)


def test_links_are_not_followed(temporary: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    temporary.symlink_to(elsewhere)
    beating().touch("ready")
    assert files(elsewhere) == [], "the folder"
    temporary.unlink()
    beating().touch("ready")
    [file] = files(temporary)
    file.unlink()
    file.symlink_to(victim)
    with pytest.raises(OSError):
        look(None, None, [], None)
    beating().touch("ready")
    assert victim.read_text() == "precious"
    assert not file.is_symlink()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"null", b'{"role": 1}', b"x" * 100_000])
def test_a_file_that_is_no_heartbeat_is_none(temporary: Path, content: bytes) -> None:
    beating().touch("ready")
    [file] = files(temporary)
    file.write_bytes(content)
    assert look(None, None, [], None) == []


def test_a_place_of_the_operators_is_used_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    beating(str(file)).touch("ready")
    assert json.loads(file.read_text())["state"] == "ready"
    assert files(tmp_path) == [file]
    assert len(look(str(file), "worker", ["another"], "another")) == 1
    beating(str(tmp_path / "missing" / "alive")).touch("ready")


@pytest.mark.parametrize(
    ("changes", "problem", "unready"),
    [
        ({}, None, None),
        ({"state": "starting"}, None, "still starting"),
        ({"state": "waiting"}, None, "waits for a server"),
        ({"state": "draining"}, None, "about to end"),
        ({"state": "not consuming"}, "does not consume", "does not consume"),
        ({"at": -SILENCE}, "stuck", "stuck"),
        ({"at": 1e12}, "stuck", "stuck"),
        ({"pid": 1 << 22}, "is gone", "is gone"),
    ],
)
def test_what_is_wrong_with_a_process_is_said(
    temporary: Path, changes: dict[str, Any], problem: str | None, unready: str | None
) -> None:
    beating().touch("ready")
    [file] = files(temporary)
    content = json.loads(file.read_text())
    if "at" in changes:
        changes = {"at": time.monotonic() + changes["at"] - 1}
    file.write_text(json.dumps(content | changes))
    [seen] = look(None, None, [], None)
    for text, expected in ((seen.problem, problem), (seen.unready, unready)):
        assert (text is None) if expected is None else expected in (text or ""), text


# The command


def health(fleet: Fleet, *arguments: str) -> tuple[int, str]:
    """Exit status and output of `cog-celery health` with the fleet's variables."""
    command = [sys.executable, "-m", "cog_celery", "health", *arguments]
    done = subprocess.run(
        command, env=fleet.environment({"queue": fleet.queue}), capture_output=True, text=True, timeout=30, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_health_through_the_life_of_a_worker(fleet: FleetFactory, tmp_path: Path) -> None:
    slow = {"ACTIONS_SETUP": "SLOW_SETUP"}
    one = fleet("actions", start=False, env=slow, heartbeat_file=str(tmp_path / "alive"))
    status, said = health(one)
    assert status == 1 and "no heartbeat" in said
    worker = one.start_worker()
    wait_until((tmp_path / "alive").exists, "the heartbeat")
    [runner] = wait_until(one.runners, "the runner")
    os.kill(runner.pid, signal.SIGSTOP)
    status, said = health(one)
    assert status == 0 and said.endswith("is starting\n"), "a setup() takes its time"
    status, said = health(one, "--ready", "--role", "worker")
    assert status == 1 and "still starting" in said
    os.kill(runner.pid, signal.SIGCONT)
    wait_until(lambda: health(one, "--ready")[0] == 0, "the worker to be ready", interval=0.2)
    since = time.monotonic()
    status, said = health(one, "--output", "json")
    assert time.monotonic() - since < SLOWEST
    about = json.loads(said)
    assert status == 0 and about["healthy"] and about["problems"] == []
    [process] = about["processes"]
    assert process["role"] == "worker" and process["pid"] == worker.pid and process["state"] == "ready"
    assert health(one, "--role", "bridge")[0] == 1
    assert health(one, "--role", "nobody")[0] == 2
    worker.kill()
    worker.wait()
    status, said = health(one)
    assert status == 1 and "is gone" in said


def test_a_worker_that_ended_well_leaves_no_heartbeat(fleet: FleetFactory, tmp_path: Path) -> None:
    one = fleet("modes", start=False, heartbeat_file=str(tmp_path / "alive"))
    worker = one.start_worker()
    wait_until(lambda: "is ready" in worker.text(), "the worker to be ready")
    assert (tmp_path / "alive").exists()
    worker.terminate()
    assert worker.wait() == 0
    assert not (tmp_path / "alive").exists()


def test_of_run_the_bridge_and_the_worker_must_both_be_well(fleet: FleetFactory, tmp_path: Path) -> None:
    both = fleet("modes", shape="run", heartbeat_file=str(tmp_path / "alive"))
    wait_until(lambda: health(both, "--ready")[0] == 0, "both to be ready", interval=0.2)
    about = json.loads(health(both, "--output", "json")[1])
    assert {process["role"]: process["state"] for process in about["processes"]} == dict.fromkeys(
        ("bridge", "worker"), "ready"
    )
    bridge = next(process["pid"] for process in about["processes"] if process["role"] == "bridge")
    os.kill(bridge, signal.SIGSTOP)
    try:
        found = look(f"{tmp_path / 'alive'}.bridge", "bridge", [], None)[0]
        wait_until(lambda: look(f"{tmp_path / 'alive'}.bridge", "bridge", [], None)[0].age > found.age + 1.5, "silence")
    finally:
        os.kill(bridge, signal.SIGCONT)


# Tickets that never come


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """A probe that nobody receives."""
    monkeypatch.setattr(probing, "ARRIVAL", 0.2)
    return Probe(Celery("probe", broker="memory://", set_as_current=False), "w~01234567", lambda: True)


def test_a_probe_that_does_not_come_is_a_verdict_until_something_comes(probe: Probe) -> None:
    probe.send()
    wait_until(lambda: not probe.consuming, "the verdict")
    probe.passed()
    assert probe.consuming


def test_a_ticket_that_comes_while_a_probe_is_on_its_way_outweighs_it(probe: Probe) -> None:
    probe.send()
    wait_until(lambda: probe.on_its_way, "the probe")
    probe.passed()
    wait_until(lambda: not probe.on_its_way, "its end")
    assert probe.consuming


def test_a_broker_that_is_out_of_reach_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "ARRIVAL", 0.2)
    probe = Probe(Celery("probe", broker="redis://127.0.0.1:1/0", set_as_current=False), "w~01234567", lambda: True)
    probe.send()
    wait_until(lambda: not probe.on_its_way, "its end")
    assert probe.consuming


def test_a_probe_is_known_by_a_word_that_nobody_can_guess(probe: Probe) -> None:
    assert not probe.is_it({}) and not probe.is_it({probing.HEADER: ""}) and not probe.is_it({probing.HEADER: None})


@contextmanager
def thief(broker: RedisServer, key: str) -> Iterator[None]:
    """Somebody takes what is put on a list: he waits without end, and so longer than whoever else does."""
    stopping = threading.Event()
    waiting: list[int] = []

    def take() -> None:
        with redis.Redis(port=broker.port, single_connection_client=True) as client:
            waiting.append(int(client.client_id()))
            while not stopping.is_set():
                client.brpop([key], timeout=0)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        while any(thread.is_alive() for thread in threads):
            for client_id in waiting:
                broker.client.client_unblock(client_id)
            time.sleep(0.01)


def test_a_worker_that_no_ticket_reaches_is_unhealthy_until_one_does(
    redis_server: RedisServer, own_server: RedisServer, tmp_path: Path
) -> None:
    with fleets_on(redis_server, tmp_path) as make:
        options = {"lease": 0.6, "turn": 0, "broker_url": own_server.url, "heartbeat_file": str(tmp_path / "alive")}
        one = make("modes", start=False, **options)
        one.start_bridge(heartbeat_file=str(tmp_path / "bridge"))
        worker = one.start_worker()
        one.wait_ready()
        [credit] = one.client.lrange(f"cog-celery:{one.queue}:credits", 0, -1)
        with thief(own_server, f"cog-celery:broker:cog-celery.{str(credit).rpartition('.')[0]}"):
            for _ in range(5):  # the worker may have waited longer than the thief, once
                request = one.producer.send({"mode": "hello"})
                try:
                    one.producer.wait(request, timeout=2)
                except AssertionError:
                    break  # the thief has it
            wait_until(lambda: "does not consume" in worker.text(), "it to be found out", timeout=20)
            wait_until(lambda: health(one, "--role", "worker")[0] == 1, "the probe to fail", interval=0.2)
            assert "does not consume" in health(one, "--role", "worker")[1]
        assert one.producer.wait(request, timeout=20)["output"] == "hello world"
        wait_until(lambda: health(one, "--role", "worker", "--ready")[0] == 0, "it to be healthy again", interval=0.2)
        assert worker.text().count("does not consume") == 1
        assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
