"""`cog-celery check` against servers that are fit, and that are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cog_celery.cli import main as cli
from tests.support.servers import RedisServer, free_port

HELLO = Path(__file__).parents[2] / "workers" / "hello"

Findings = dict[str, dict[str, str]]


def check(server: RedisServer, *arguments: str, url: str | None = None, status: int = 0) -> Findings:
    words = ["check", "--redis-url", url or server.url, "--output", "json", *arguments]
    result = CliRunner().invoke(cli.cli, words, env={"REDIS_URL": None})
    assert not isinstance(result.exception, Exception), result.exception
    assert result.exit_code == status, result.output
    return {finding["subject"]: finding for finding in json.loads(result.output)}


@pytest.mark.every_server
def test_a_fit_server_is_told_with_its_name_and_version(redis_server: RedisServer) -> None:
    findings = check(redis_server)
    name = {"valkey": "Valkey ", "redis": "Redis "}[redis_server.kind]
    assert findings["redis"]["found"].startswith(name)
    assert set(findings) == {
        "redis",
        "commands",
        "topology",
        "memory",
        "persistence",
        "notifications",
        "broker",
        "gpus",
    }
    expected = {"persistence": "warn"}
    assert {subject: finding["verdict"] for subject, finding in findings.items()} == {
        subject: expected.get(subject, "ok") for subject in findings
    }


def test_what_is_not_fit_comes_with_what_to_do(own_server: RedisServer) -> None:
    set_to = own_server.client.config_set
    set_to("notify-keyspace-events", "Ex")
    set_to("maxmemory-policy", "allkeys-lru")
    findings = check(own_server)
    assert findings["memory"]["verdict"] == "warn"
    assert findings["notifications"]["verdict"] == "warn"
    flags = findings["notifications"]["advice"].split()[-1]
    set_to("notify-keyspace-events", flags)
    set_to("maxmemory", "100mb")
    set_to("appendonly", "yes")
    findings = check(own_server, status=1)
    assert findings["notifications"]["verdict"] == "ok"
    assert findings["persistence"]["verdict"] == "ok"
    assert findings["memory"]["verdict"] == "fail"
    assert findings["memory"]["advice"] == "CONFIG SET maxmemory-policy noeviction"


def test_a_replica_is_refused(own_server: RedisServer, redis_server: RedisServer) -> None:
    own_server.client.replicaof("127.0.0.1", redis_server.port)
    assert check(own_server, status=1)["topology"]["verdict"] == "fail"


def test_a_user_without_rights_is_told_which(own_server: RedisServer) -> None:
    own_server.client.execute_command("ACL", "SETUSER", "weak", "on", ">hunter2", "~*", "+@all", "-eval", "-config")
    url = own_server.url.replace("redis://", "redis://weak:hunter2@")
    findings = check(own_server, url=url, status=1)
    assert findings["commands"]["verdict"] == "fail"
    assert "ACL" in findings["commands"]["advice"]
    assert findings["notifications"]["verdict"] == "warn"
    assert "hunter2" not in json.dumps(findings)
    wrong = check(own_server, url=url.replace("hunter2", "hunter3"), status=1)
    assert "does not let us in" in wrong["redis"]["found"]
    assert "hunter3" not in json.dumps(wrong)


def test_a_cluster_is_refused_by_all(own_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Its second port is 10,000 higher unless told, which for some free ports there is not.
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    node = RedisServer("valkey", tmp_path_factory.mktemp("cluster"), *cluster)
    try:
        assert "Cluster" in check(node, status=1)["topology"]["found"]
        for command in (["bridge"], ["worker", str(HELLO)]):
            arguments = [sys.executable, "-m", "cog_celery", *command, "--queue", "q", "--redis-url", node.url]
            result = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
            assert result.returncode == 1
            assert "node of a Redis Cluster" in result.stderr
            assert "Traceback" not in result.stderr
    finally:
        node.stop()


@pytest.mark.parametrize("url", ["amqp://user:hunter2@127.0.0.1:1//", "redis://:hunter2@127.0.0.1:1", "carrier://x"])
def test_a_broker_that_cannot_be_reached_is_told_without_its_password(redis_server: RedisServer, url: str) -> None:
    findings = check(redis_server, "--broker-url", url, status=1)
    assert findings["broker"]["verdict"] == "fail"
    assert "hunter2" not in json.dumps(findings)


def test_another_broker_that_answers_is_fine(redis_server: RedisServer, own_server: RedisServer) -> None:
    assert check(redis_server, "--broker-url", own_server.url)["broker"]["verdict"] == "ok"


def test_the_table_is_for_people(redis_server: RedisServer) -> None:
    result = CliRunner().invoke(cli.cli, ["check", "--redis-url", redis_server.url, "--output", "text"])
    assert result.exit_code == 0
    assert "what to do" in result.output
    assert "CONFIG SET appendonly yes" in " ".join(result.output.split())
