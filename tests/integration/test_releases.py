"""Bridges and workers of two releases on one queue, as while a fleet is updated."""

from __future__ import annotations

import base64
import re
import shutil
import sys
from pathlib import Path

import pytest

import cog_celery
from cog_celery.delivery import scripts, stream
from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import Child, wait_until
from tests.support.producer import succeeded

pytestmark = pytest.mark.ours

PACKAGE = Path(cog_celery.__file__).parent


@pytest.fixture(scope="module")
def another_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that writes tickets of the next version, and knows its scripts by other
    hashes.
    """
    folder = tmp_path_factory.mktemp("release")
    copy = shutil.copytree(PACKAGE, folder / "cog_celery", ignore=shutil.ignore_patterns("__pycache__"))
    for module, old, new in (
        (
            stream.__file__,
            f"TICKET_VERSION = {stream.TICKET_VERSION}\n",
            f"TICKET_VERSION = {stream.TICKET_VERSION + 1}\n",
        ),
        (
            scripts.__file__,
            "local queue, group = KEYS[1], KEYS[1]\n",
            "local queue, group = KEYS[1], KEYS[1] -- here\n",
        ),
        (cog_celery.__file__, cog_celery.__version__, "999.0"),
    ):
        path = copy / Path(module).relative_to(PACKAGE)
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
    return folder


def start(fleet: Fleet, release: Path | None, *arguments: str) -> Child:
    env = {} if release is None else {"PYTHONPATH": str(release)}
    command = [sys.executable, "-m", "cog_celery", *arguments, "--queue", fleet.queue]
    child = fleet.start_child(arguments[0], command, cwd=release, env=env)
    (fleet.bridges if arguments[0] == "bridge" else fleet.workers).append(child)
    return child


@pytest.mark.parametrize("newer", ["bridge", "worker"])
def test_a_bridge_and_a_worker_of_two_releases_understand_each_other(
    fleet: FleetFactory, monitor: Monitor, another_release: Path, newer: str
) -> None:
    mixed = fleet("modes", start=False, turn=0)
    start(mixed, another_release if newer == "bridge" else None, "bridge")
    start(mixed, another_release if newer == "worker" else None, "worker", str(mixed.model))
    mixed.wait_ready(1)
    for i in range(5):
        assert mixed.producer.predict({"mode": "hello", "text": str(i)}) == succeeded(f"hello {i}")
    wait_until(lambda: len(tickets(monitor, mixed.queue)) >= 5, "five tickets in the recording")
    assert set(tickets(monitor, mixed.queue)) == {stream.TICKET_VERSION}, "the older of the two is spoken"
    assert mixed.client.hlen(f"cog-celery:{mixed.queue}:processes") == 2
    for child in mixed.children:
        assert "refused" not in child.text() and "Traceback" not in child.text(), child.text()


def tickets(monitor: Monitor, queue: str) -> list[int]:
    """The versions of the tickets that went through the broker."""
    found = []
    for command in monitor.commands():
        if command.name == "LPUSH" and b":broker:" in command.args[1]:
            body = re.search(rb'"body": "([^"]+)"', command.args[2])
            if body and (ticket := re.match(rb"\[\[(\d+), ", base64.b64decode(body[1]))):
                found.append(int(ticket[1]))
    return found


def test_a_fleet_is_updated_while_it_serves(fleet: FleetFactory, another_release: Path) -> None:
    mixed = fleet("modes", start=False)
    old = [start(mixed, None, "bridge"), start(mixed, None, "worker", str(mixed.model))]
    mixed.wait_ready(1)
    requests = [mixed.producer.send({"mode": "sleeps", "seconds": 0.05, "text": str(i)}) for i in range(60)]
    mixed.producer.wait(requests[3])
    start(mixed, another_release, "worker", str(mixed.model), "--name", "other")
    mixed.producer.wait(requests[10])
    start(mixed, another_release, "bridge", "--name", "other")
    for child in reversed(old):
        child.terminate()
        assert child.wait(30) == 0, child.text()
    assert [mixed.producer.wait(request, timeout=30)["output"] for request in requests] == [str(i) for i in range(60)]
    mixed.wait_idle()
    assert int(mixed.client.hget(f"cog-celery:{mixed.queue}:counts", "done") or 0) == 60
    assert not mixed.client.hget(f"cog-celery:{mixed.queue}:counts", "reclaimed")
