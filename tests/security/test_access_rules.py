"""The users of deploy/redis/users.acl: what each of them may do, and what none of them may."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
import redis
from click.testing import CliRunner

from cog_celery.cli import main as cli
from cog_celery.delivery.link import Link
from cog_celery.delivery.scripts import SCRIPTS, TAKE
from cog_celery.errors import Forbidden
from cog_celery.producer.sending import FIRST_DOUBT
from tests.conftest import missing
from tests.support.fleet import Fleet, Option
from tests.support.processes import Child, wait_until
from tests.support.producer import Producer, bare, succeeded
from tests.support.servers import KINDS, PASSWORD, ROLES, START, binary, free_port, role_variables

pytestmark = pytest.mark.ours

QUEUE, OTHER = "mine", "another"


class Guarded:
    """A server that start.sh has started for the queues `mine` and `mine-…`; its responses are `response:…`."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.port = free_port()
        variables = role_variables(f"{QUEUE} {QUEUE}-*", "response:* *-response-* *-cancel-*", "setup-log")
        variables |= {"REDIS_PORT": str(self.port), "REDIS_SERVER": str(binary(kind))}
        command = ["sh", str(START), "--dir", str(folder)]
        self.child = Child("start.sh", command, log=folder / "log", env={**os.environ, **variables})
        self.clients = {role: redis.Redis.from_url(self.at(role), decode_responses=True, protocol=2) for role in ROLES}
        self.client = self.clients["admin"]
        self.url = self.at("admin")
        wait_until(self._answers, "the server to answer")

    def at(self, role: str) -> str:
        return f"redis://{role}:{PASSWORD}@127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        self.child.check_running()
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        for client in self.clients.values():
            client.close()
        self.child.discard()


@pytest.fixture(scope="module", params=KINDS)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    if binary(request.param) is None:
        missing(f"a {request.param}-server on PATH")
    guarded = Guarded(request.param, tmp_path_factory.mktemp("guarded"))
    yield guarded
    guarded.stop()


MAY = {
    "producer": [
        f"XADD {QUEUE} * value x",
        f"XADD {QUEUE}-2 * value x",
        f"XADD {QUEUE}.high * value x",
        f"XLEN {QUEUE}",
        "GET response:1",
        "DEL response:1",
        "SET response:cancel 1 EX 60",
        "SUBSCRIBE __keyspace@0__:response:1",
        "PSUBSCRIBE __keyspace@0__:response:*",
    ],
    "bridge": [
        f"XREADGROUP GROUP {QUEUE} b COUNT 1 STREAMS {QUEUE} >",
        f"XREADGROUP GROUP {QUEUE} b COUNT 1 STREAMS {QUEUE}.high >",
        f"XGROUP CREATE {QUEUE}.high {QUEUE} 0 MKSTREAM",
        f"BLMOVE cog-celery:{QUEUE}:credits cog-celery:{QUEUE}:credits LEFT LEFT 1",
        "SET response:1 x",
        f"EVALSHA {TAKE.sha} 3 {QUEUE} response:1 {QUEUE}-dead",
        "LPUSH cog-celery:broker:cog-celery.w~1 x",
        "PUBLISH cog-celery:broker:/0.celeryev/task.received x",
        "ROLE",
        "CLIENT UNBLOCK 1",
    ],
    "worker": [
        f"XREADGROUP GROUP {QUEUE} w COUNT 1 STREAMS {QUEUE} >",
        f"XACK {QUEUE} {QUEUE} 1-1",
        "SET response:1 x",
        "EXISTS response:cancel",
        f"XADD {QUEUE}-run-time * x y",
        "RPUSH setup-log x",
        "BRPOP cog-celery:broker:cog-celery.w~1 1",
        "PSUBSCRIBE cog-celery:broker:/0.celery.pidbox",
    ],
    "monitor": [
        f"XLEN {QUEUE}",
        f"XRANGE {QUEUE} - +",
        f"XINFO GROUPS {QUEUE}",
        f"HGETALL cog-celery:{QUEUE}:processes",
        "GET response:1",
        "INFO",
        "CONFIG GET maxmemory",
        "PUBLISH cog-celery:broker:/0.celery.pidbox x",
    ],
}
MAY_NOT = {
    "producer": [
        f"XRANGE {QUEUE} - +",
        f"XREAD STREAMS {QUEUE} 0",
        f"XREADGROUP GROUP {QUEUE} p STREAMS {QUEUE} >",
        f"XDEL {QUEUE} 1-1",
        f"XTRIM {QUEUE} MAXLEN 0",
        f"DEL {QUEUE}",
        f"XGROUP DESTROY {QUEUE} {QUEUE}",
        f"XADD {OTHER} * value x",
        f"XADD {QUEUE}x * value x",
        "GET something",
        f"GET cog-celery:{QUEUE}:credits",
        "LPUSH cog-celery:broker:cog-celery.w~1 x",
        "PUBLISH cog-celery:broker:/0.celery.pidbox x",
        "PUBLISH __keyspace@0__:response:1 set",
        "SUBSCRIBE cog-celery:broker:/0.celeryev/task.received",
        "EVAL return 0",
    ],
    "bridge": [
        "GET response:1",
        "DEL response:1",
        "SET something x",
        f"XRANGE {OTHER} - +",
        f"SET {OTHER}-response x",
        "BRPOP cog-celery:broker:cog-celery.w~1 1",
        "PUBLISH cog-celery:broker:/0.celery.pidbox x",
    ],
    "worker": [
        f"XRANGE {OTHER} - +",
        f"XREADGROUP GROUP {OTHER} w STREAMS {OTHER} >",
        f"XADD {OTHER} * value x",
        f"DEL {OTHER}",
        "SET something x",
        "GET something",
        f"XGROUP DESTROY {QUEUE} {QUEUE}",
        f"XGROUP SETID {QUEUE} {QUEUE} 0",
        f"XTRIM {QUEUE} MAXLEN 0",
    ],
    "monitor": [
        f"XADD {QUEUE} * value x",
        f"XDEL {QUEUE} 1-1",
        f"XREADGROUP GROUP {QUEUE} m STREAMS {QUEUE} >",
        f"XACK {QUEUE} {QUEUE} 1-1",
        "SET response:1 x",
        "DEL response:1",
        f"DEL {QUEUE}",
        f"LPUSH cog-celery:{QUEUE}:credits x",
        f"XRANGE {OTHER} - +",
        "CONFIG SET maxmemory 1",
        "SUBSCRIBE __keyspace@0__:response:1",
    ],
}
NOBODY = [
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "CONFIG SET appendonly no",
    "CONFIG REWRITE",
    "ACL LIST",
    "ACL SETUSER x on",
    "DEBUG SLEEP 1",
    "SHUTDOWN",
    "MONITOR",
    "REPLICAOF 127.0.0.1 1",
    "CLIENT KILL TYPE normal",
    "CLIENT LIST",
    "SCRIPT FLUSH",
    "FUNCTION LOAD x",
    "EVAL return 0",
    "SAVE",
    "MIGRATE 127.0.0.1 1 x 0 1",
    "RESTORE x 0 y",
    f"RENAME {QUEUE} x",
    f"COPY {QUEUE} x",
    "SWAPDB 0 1",
]
"""Not even of these four."""


def allowed(guarded: Guarded, role: str, line: str) -> bool:
    words = line.split() if not line.startswith("EVAL ") else ["EVAL", "return 0", "0"]
    answer = guarded.client.execute_command("ACL", "DRYRUN", role, *words)
    return answer in ("OK", True, b"OK")


@pytest.mark.parametrize("role", MAY)
def test_a_user_may_do_what_its_part_of_the_fleet_does(guarded: Guarded, role: str) -> None:
    assert [line for line in MAY[role] if not allowed(guarded, role, line)] == []


@pytest.mark.parametrize("role", MAY_NOT)
def test_a_user_may_do_no_other_part_s_work_and_harm_nobody(guarded: Guarded, role: str) -> None:
    assert [line for line in (*MAY_NOT[role], *NOBODY) if allowed(guarded, role, line)] == []


def test_without_a_user_nobody_is_let_in(guarded: Guarded) -> None:
    with redis.Redis(port=guarded.port, protocol=2) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_a_script_reaches_no_further_than_its_caller(guarded: Guarded) -> None:
    """Keys that a script is called with are checked, and each of its commands once more."""
    client = guarded.clients["worker"]
    for script in SCRIPTS:
        client.script_load(script.source)
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.evalsha(TAKE.sha, 2, OTHER, f"cog-celery:{OTHER}:credits", "b~1", "x")
    sha = client.script_load("return redis.call('GET', 'something')")
    with pytest.raises(redis.ResponseError, match=r"(?i)no permissions|can't access|NOPERM"):
        client.evalsha(sha, 1, QUEUE)


def test_what_a_link_may_not_do_it_says_in_one_sentence(guarded: Guarded) -> None:
    with closing(Link(guarded.at("worker"), "test")) as link, pytest.raises(Forbidden) as caught:
        link.call("XLEN", OTHER)
    assert str(caught.value).startswith("Redis forbids us a command or a key: ")
    assert PASSWORD not in str(caught.value)


def test_a_fleet_of_these_users_does_all_that_a_fleet_does(guarded: Guarded, tmp_path: Path) -> None:
    options: dict[str, Option] = {"lease": 1, "turn": 0.3, "idempotent_ids": True, "priority": True}
    with Fleet(guarded, tmp_path, "modes", queue=QUEUE, log_queue="setup-log", **options) as one:  # type: ignore[arg-type]
        for role, start in (("bridge", one.start_bridge), ("worker", one.start_worker)):
            start(env={"REDIS_URL": guarded.at(role)})
        one.wait_ready(1)
        producer = Producer(guarded.clients["producer"], QUEUE)
        keys = {"response_queue": "response:1", "cancel_key": "response:cancel-1"}
        assert bare(producer.wait(producer.send({"mode": "hello"}, **keys))) == succeeded("hello world")
        producer.send({"mode": "hello"}, id="again", response_queue="response:2", cancel_key=None)
        producer.send({"mode": "hello"}, id="again", response_queue="response:3", cancel_key=None)
        for key in ("response:2", "response:3"):
            assert bare(producer.wait(key)) == succeeded("hello world")
        lane = Producer(guarded.clients["producer"], f"{QUEUE}.high")
        lane.send({"mode": "hello"}, response_queue="response:high", cancel_key=None)
        assert bare(lane.wait("response:high")) == succeeded("hello world")
        running = producer.send({"mode": "sleeps", "seconds": 60}, response_queue="response:4", cancel_key="response:c")
        producer.wait_for(running, lambda response: True)
        producer.cancel(running)
        assert producer.wait(running)["status"] == "canceled"
        producer.send_raw("nonsense")
        wait_until(lambda: guarded.client.xlen(f"{QUEUE}-dead") == 1, "a dead letter")

        def run(role: str, *words: str) -> str:
            result = CliRunner().invoke(cli.cli, list(words), env={"REDIS_URL": guarded.at(role)})
            assert result.exit_code == 0, result.output
            return result.stdout

        sent = run("producer", "send", "--queue", QUEUE, "-i", "mode=hello", "--output", "json")
        assert json.loads(sent)["output"] == "hello world"
        for child in one.bridges:
            child.check_running()
        assert QUEUE in run("monitor", "status", "--queue", QUEUE)
        assert "not JSON" in run("monitor", "dead", "list", "--queue", QUEUE, "--output", "json")
        run("admin", "dead", "drop", "--all", "--yes", "--queue", QUEUE)
        running = producer.send(
            {"mode": "sleeps", "seconds": 1, "text": "slept"}, response_queue="response:5", cancel_key=None
        )
        producer.wait_for(running, lambda response: True)
        one.workers[0].kill()
        one.workers[0].wait()
        one.start_worker(env={"REDIS_URL": guarded.at("worker")})
        assert producer.wait(running)["output"] == "slept"
        log = one.log()
        assert "forbids" not in log and "NOPERM" not in log and "Traceback" not in log and "broker" not in log


def test_start_sh_says_what_is_missing_and_writes_no_password(tmp_path: Path) -> None:
    whole = role_variables(QUEUE, "response:*")

    def run(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
        path = {"PATH": os.environ["PATH"]}
        return subprocess.run(["sh", str(START), *words], env=path | env, text=True, capture_output=True, check=False)

    printed = run(whole, "--print-users")
    assert printed.returncode == 0 and printed.stderr == ""
    assert [line.split()[1] for line in printed.stdout.splitlines()] == ["default", *ROLES]
    assert f">{PASSWORD}" not in printed.stdout and "QUEUE" not in printed.stdout and "DATABASE" not in printed.stdout
    for name, words in (
        ("REDIS_QUEUES", "REDIS_QUEUES is empty"),
        ("REDIS_RESPONSE_KEYS", "REDIS_RESPONSE_KEYS is empty"),
        ("REDIS_WORKER_PASSWORD", "REDIS_WORKER_PASSWORD is empty"),
    ):
        failed = run({key: value for key, value in whole.items() if key != name}, "--print-users")
        assert failed.returncode != 0 and words in failed.stderr and failed.stdout == ""
    file = tmp_path / "password"
    file.write_text("from a file")
    both = run(whole | {"REDIS_WORKER_PASSWORD_FILE": str(file)}, "--print-users")
    assert both.returncode != 0 and "exclude each other" in both.stderr
    by_file = {key: value for key, value in whole.items() if key != "REDIS_WORKER_PASSWORD"}
    assert run(by_file | {"REDIS_WORKER_PASSWORD_FILE": str(file)}, "--print-users").stdout != printed.stdout
    failed = run(whole | {"REDIS_TLS_CERT_FILE": str(tmp_path / "nothing.pem")})
    assert failed.returncode == 2 and "cannot be read" in failed.stderr


def test_a_producer_that_may_not_look_at_its_queue_goes_on_waiting_for_its_answer(guarded: Guarded) -> None:
    """After some seconds without news, `send` looks whether its request is still there."""
    queue = f"{QUEUE}-slow"
    words = [sys.executable, "-m", "cog_celery", "send", "--queue", queue, "-i", "a=b", "--output", "json"]
    env = {**os.environ, "REDIS_URL": guarded.at("producer")}
    process = subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        entries = wait_until(lambda: guarded.client.xrange(queue), "the request", 20)
        request = json.loads(cast("list[tuple[str, dict[str, str]]]", entries)[0][1]["value"])
        time.sleep(FIRST_DOUBT + 1)
        assert process.poll() is None
        guarded.client.set(request["response_queue"], '{"status":"succeeded","output":1}')
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0 and json.loads(out)["output"] == 1, err
