"""RabbitMQ as the broker: the whole path, its outages, workers that die, remote control, and who is let in."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery
from click.testing import CliRunner

from cog_celery.cli import main as cli
from tests.conftest import FleetFactory, missing
from tests.support.authority import Authority
from tests.support.fleet import Fleet
from tests.support.processes import Child, wait_until
from tests.support.producer import bare, succeeded
from tests.support.rabbitmq import PASSWORD, RabbitMQ, program

pytestmark = pytest.mark.ours

LEASE = 1.0
LOST = "broker is out of reach|broker did not answer"
RETURN = 6.0
"""Seconds within which work goes on after a broker's return."""


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    if program("rabbitmq-server") is None:
        missing("rabbitmq-server")
    folder = tmp_path_factory.mktemp("rabbitmq")
    rabbitmq = RabbitMQ(folder, Authority(folder / "authority"))
    yield rabbitmq
    rabbitmq.stop()


@pytest.fixture(scope="module")
def steady(shared_fleet: FleetFactory, rabbitmq: RabbitMQ) -> Fleet:
    """A fleet in which every prediction needs a ticket."""
    return shared_fleet("modes", turn=0, broker_url=rabbitmq.url(), lease=LEASE, slots=2, cancel_grace=1)


def check_words(fleet: Fleet) -> None:
    """Neither the password is written down, nor what only its programmer understands."""
    assert PASSWORD not in fleet.log()
    assert "Traceback" not in fleet.log() and "a bug of ours" not in fleet.log()


def life(fleet: Fleet, worker: int = 0) -> str:
    """Which life a worker is in."""
    prefix = f"cog-celery:{fleet.queue}:worker:"
    wait_until(lambda: fleet.client.keys(f"{prefix}*"), "a worker")
    lives = [str(key).removeprefix(prefix) for key in fleet.client.keys(f"{prefix}*")]
    [found] = [life for life in lives if life.startswith(f"w{worker}-")]
    return found


def lines(child: Child, words: str) -> int:
    return len(re.findall(words, child.text()))


def test_predictions_come_and_go_by_queues_that_end_by_themselves(steady: Fleet, rabbitmq: RabbitMQ) -> None:
    sent = [steady.producer.send({"mode": "hello", "text": str(i)}) for i in range(40)]
    for i, request in enumerate(sent):
        assert bare(steady.producer.wait(request)) == succeeded(f"hello {i}")
    arguments = rabbitmq.queues()[f"cog-celery.{life(steady)}"]
    assert "x-expires" in arguments, "else that of an idle worker which is killed would stay"
    check_words(steady)


@pytest.mark.parametrize("how", ["told to stop", "killed"])
def test_requests_wait_for_a_broker_that_comes_back(steady: Fleet, rabbitmq: RabbitMQ, how: str) -> None:
    one, [worker], [bridge] = steady, steady.workers, steady.bridges
    before = {child: (lines(child, LOST), lines(child, "is back")) for child in (worker, bridge)}
    running = one.producer.send({"mode": "sleeps", "seconds": 2, "text": "done"})
    one.producer.wait_for(running, lambda response: True)
    rabbitmq.kill() if how == "killed" else rabbitmq.shut_down()
    try:
        waiting = [one.producer.send({"mode": "hello", "text": str(i)}) for i in range(5)]
        assert one.producer.wait(running)["output"] == "done", "what runs needs no broker"
        wait_until(lambda: lines(worker, LOST) == before[worker][0] + 1, "the outage to be noticed")
    finally:
        rabbitmq.start()
    for i, request in enumerate(waiting):
        assert bare(one.producer.wait(request, timeout=RETURN + 2)) == succeeded(f"hello {i}")
    wait_until(lambda: lines(worker, "is back") == before[worker][1] + 1, "the end of the outage to be said", RETURN)
    for child, (lost, back) in before.items():
        assert lines(child, LOST) <= lost + 1 and lines(child, "is back") <= back + 1, child.text()
    check_words(one)


def test_remote_control_finds_and_cancels_what_runs(steady: Fleet, rabbitmq: RabbitMQ) -> None:
    one = steady
    with Celery("observer", broker=rabbitmq.url(), set_as_current=False) as app:
        node = f"{one.queue}@w0-{one.queue}"
        request = one.producer.send({"mode": "sleeps", "seconds": 60})
        one.producer.wait_for(request, lambda response: True)
        inspect = app.control.inspect(destination=[node], timeout=3)
        assert inspect.ping() == {node: {"ok": "pong"}}
        [active] = inspect.active()[node]
        assert active["id"] == request.id
        app.control.revoke(request.id, terminate=True)
        assert one.producer.wait(request, timeout=5)["status"] == "canceled"


def test_neither_a_worker_that_ends_nor_one_that_is_killed_with_a_ticket_leaves_a_queue(
    fleet: FleetFactory, rabbitmq: RabbitMQ
) -> None:
    one = fleet("modes", turn=0, broker_url=rabbitmq.url(), lease=LEASE)
    first = f"cog-celery.{life(one)}"
    assert rabbitmq.has_queue(first)
    os.kill(one.workers[0].pid, signal.SIGSTOP)  # it has a credit, and does not consume
    waiting = one.producer.send({"mode": "hello"})
    wait_until(lambda: one.pending() == 1, "a ticket")
    one.workers[0].kill()
    one.workers[0].wait()
    second = one.start_worker()
    assert bare(one.producer.wait(waiting)) == succeeded("hello world")
    wait_until(lambda: not rabbitmq.has_queue(first), "the bridge to delete its queue", 10 * LEASE, interval=0.1)
    queue = f"cog-celery.{life(one, 1)}"
    assert rabbitmq.has_queue(queue)
    second.terminate()
    assert second.wait() == 0
    assert not rabbitmq.has_queue(queue)
    check_words(one)


Url = Callable[[RabbitMQ], str]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (lambda rabbitmq: rabbitmq.url(password="wrong-word"), "it does not let us in"),
        (lambda rabbitmq: rabbitmq.url(vhost="%2F"), "it does not let us into the virtual host"),
    ],
    ids=["a wrong password", "a virtual host without rights"],
)
def test_a_broker_that_does_not_let_us_in_is_said_in_one_line(
    fleet: FleetFactory, rabbitmq: RabbitMQ, url: Url, words: str
) -> None:
    broker = url(rabbitmq)
    one = fleet("modes", start=False, broker_url=broker, lease=LEASE)
    bridge, worker = one.start_bridge(), one.start_worker()
    one.producer.send({"mode": "hello"})
    wait_until(lambda: lines(worker, words) == 1, "the worker to say so")
    wait_until(lambda: one.credits() == 0 or lines(bridge, words) == 1, "the bridge to say so")
    time.sleep(1.5)  # and does not say it again
    for child in (worker, bridge):
        assert lines(child, words) <= 1, child.text()
        assert "Traceback" not in child.text()
    result = CliRunner().invoke(
        cli.cli, ["check", "--redis-url", one.server.url, "--broker-url", broker, "--output", "json"]
    )
    [finding] = [one for one in json.loads(result.stdout) if one["subject"] == "broker"]
    assert finding["verdict"] == "fail" and words in finding["found"]
    for secret in (PASSWORD, "wrong-word"):
        assert secret not in one.log() and secret not in result.output


def test_by_tls_it_is_reached_with_a_certificate_and_trusted_by_its_authority_alone(
    fleet: FleetFactory, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    one = fleet("modes", turn=0, broker_url=rabbitmq.secure_url(), lease=LEASE)
    assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
    stranger = Authority(tmp_path / "stranger")
    for url, words in (
        (rabbitmq.secure_url(ssl_ca_certs=stranger.file), "its certificate is not trusted"),
        (rabbitmq.secure_url(host="127.0.0.2"), "certificate is another host's"),
    ):
        result = CliRunner().invoke(
            cli.cli, ["check", "--redis-url", one.server.url, "--broker-url", url, "--output", "json"]
        )
        [finding] = [found for found in json.loads(result.stdout) if found["subject"] == "broker"]
        assert words in finding["found"], finding
        assert PASSWORD not in result.output
    check_words(one)
