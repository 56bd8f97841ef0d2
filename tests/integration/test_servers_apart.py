"""Queues and broker in two databases of a server, or on two servers: each key is where it belongs, and that is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from cog_celery.cli import main as cli
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.producer import bare, succeeded
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours


class Database:
    """One database of a server, as a fleet needs to know it."""

    def __init__(self, server: RedisServer, number: int) -> None:
        self.port = server.port
        self.url = f"redis://127.0.0.1:{server.port}/{number}"
        self.client = redis.Redis.from_url(self.url, decode_responses=True, protocol=2)

    def keys(self) -> set[str]:
        return {str(key) for key in self.client.scan_iter(count=1000)}


@pytest.fixture
def databases(own_server: RedisServer) -> Iterator[tuple[Database, Database]]:
    both = Database(own_server, 1), Database(own_server, 2)
    yield both
    for one in both:
        one.client.close()


def run(*words: str, url: str) -> Any:
    result = CliRunner().invoke(cli.cli, [*words, "--output", "json"], env={"REDIS_URL": url, "COG_CELERY_QUEUE": None})
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def check_apart(one: Fleet, queues: Database, broker: Database) -> None:
    """Predictions come, keys are where they belong, and `check` and `status` say where that is."""
    sent = [one.producer.send({"mode": "hello", "text": str(i)}) for i in range(5)]

    def response(key: str) -> Any:
        text = queues.client.get(key)
        return None if text is None else json.loads(str(text))

    for i, request in enumerate(sent):
        key = request.response_queue
        wait_until(lambda: (response(key) or {}).get("status") == "succeeded", "an answer")  # noqa: B023
        assert bare(response(request.response_queue)) == succeeded(f"hello {i}")
    with queues.client.pubsub() as notices:
        number = queues.client.connection_pool.connection_kwargs["db"]
        notices.subscribe(f"__keyspace@{number}__:response-x")
        one.producer.send({"mode": "hello"}, response_queue="response-x")
        told = [notices.get_message(timeout=5) for _ in range(2)]
        assert [message["data"] for message in told if message] == [1, "set"], "by the database's own channel"
    words = ("send", "--queue", one.queue, "-i", "mode=hello")
    assert run(*words, url=queues.url)["output"] == "hello world"
    [status] = run("status", "--queue", one.queue, url=queues.url)["queues"]
    assert {process["role"] for process in status["processes"]} == {"bridge", "worker"}
    keys, tickets = queues.keys(), broker.keys()
    assert keys and not {key for key in keys if key.startswith("cog-celery:broker:")}
    assert {key for key in tickets if not key.startswith("cog-celery:broker:")} == set()
    assert any(key.startswith("cog-celery:broker:") for key in tickets)
    findings = {one["subject"]: one for one in run("check", "--broker-url", broker.url, url=queues.url)}
    assert broker.url in findings["broker"]["found"] and "apart from the queues" in findings["broker"]["found"]
    assert queues.url in findings["redis"]["found"]


def test_queues_and_broker_have_a_database_each(databases: tuple[Database, Database], tmp_path: Path) -> None:
    queues, broker = databases
    with Fleet(queues, tmp_path, "modes", turn=0, lease=1, broker_url=broker.url) as one:
        one.start()
        check_apart(one, queues, broker)


def test_queues_and_broker_have_a_server_each(
    own_server: RedisServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    queues, broker = Database(redis_server, 3), Database(own_server, 0)
    try:
        with Fleet(queues, tmp_path, "modes", turn=0, lease=1, broker_url=broker.url) as one:
            one.start()
            check_apart(one, queues, broker)
    finally:
        queues.client.flushdb()
        queues.client.close()
        broker.client.close()


def test_a_broker_that_is_a_replica_is_found_out_before(own_server: RedisServer, redis_server: RedisServer) -> None:
    own_server.client.replicaof("127.0.0.1", redis_server.port)
    words = ["check", "--redis-url", redis_server.url, "--broker-url", own_server.url, "--output", "json"]
    result = CliRunner().invoke(cli.cli, words)
    assert result.exit_code == 1
    [finding] = [one for one in json.loads(result.stdout) if one["subject"] == "broker"]
    assert "is a replica" in finding["found"] and "primary" in finding["advice"]
