"""A model that says of itself that it is not well: its worker takes nothing until it is."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cog_celery.worker.reporting import READY
from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.processes import wait_until

pytestmark = pytest.mark.ours

REASON = "the weights are gone"


class Unwell:
    """A fleet of two slots whose model is unhealthy while a file exists, and its worker's heartbeat."""

    def __init__(self, fleet: FleetFactory, folder: Path) -> None:
        self.file = folder / "unwell"
        # The ready file is Kubernetes'; a heartbeat in a place of its own is the worker's alone, and not the bridge's.
        env = {"UNWELL_FILE": str(self.file), "KUBERNETES_SERVICE_HOST": "127.0.0.1"}
        self.fleet: Fleet = fleet("unwell", start=False, env=env, slots=2)
        self._heartbeat = folder / "alive"

    def start(self) -> None:
        self.fleet.start_bridge()
        self.worker = self.fleet.start_worker(heartbeat_file=str(self._heartbeat))

    def wait(self, state: str, *, idle: int) -> None:
        """Wait until the worker is in this state, with so many idle slots."""

        def reached() -> bool:
            self.worker.check_running()
            found = self._heartbeat.exists() and json.loads(self._heartbeat.read_text())["state"]
            return found == state and self.fleet.credits() == idle

        wait_until(reached, f"the worker to be {state} with {idle} idle slots", 20.0, interval=0.05)

    def health(self) -> tuple[int, str]:
        """Exit status and output of `cog-celery health`."""
        child = self.fleet.start_command(
            "health", "health", "--role", "worker", queue=self.fleet.queue, heartbeat_file=str(self._heartbeat)
        )
        return child.wait(), child.text()

    def ready_file(self) -> bool | None:
        """Whether it is there; None where it cannot be made."""
        return None if f"{READY} could not be made" in self.worker.text() else READY.exists()


def test_a_worker_whose_model_is_unhealthy_takes_nothing_until_it_is_well(fleet: FleetFactory, tmp_path: Path) -> None:
    """Unhealthy from the start, then well, then unhealthy again while one slot is at work and the other one is not."""
    unwell = Unwell(fleet, tmp_path)
    producer = unwell.fleet.producer
    unwell.file.write_text(REASON)
    unwell.start()
    unwell.wait("unhealthy", idle=0)
    assert REASON in unwell.worker.text()
    assert not unwell.ready_file()
    request = producer.send({"text": "you"})
    status, said = unwell.health()
    assert status == 1 and unwell.fleet.queue in said and "not well" in said
    assert producer.get(request) is None and unwell.fleet.depth() == 1
    os.kill(unwell.fleet.runners()[0].pid, signal.SIGKILL)  # a runner that dies while it is unhealthy is replaced

    unwell.file.unlink()
    assert producer.wait(request)["output"] == "hello you"
    unwell.wait("ready", idle=2)
    assert unwell.ready_file() is not False
    assert unwell.health()[0] == 0

    go = tmp_path / "go"
    request = producer.send({"until": str(go)})
    producer.wait_for(request, lambda response: True)
    told = unwell.worker.text().count(REASON)
    unwell.file.write_text(REASON)
    wait_until(lambda: unwell.fleet.credits() == 0, "the idle slot to take nothing")
    wait_until(lambda: unwell.worker.text().count(REASON) > told, "its reason to be told")
    go.touch()
    assert producer.wait(request)["output"] == "hello world", "what runs ends"
    # And afterwards its worker ends well at SIGTERM, unhealthy as it is.
