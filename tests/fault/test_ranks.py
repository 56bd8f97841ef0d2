"""Models of several processes in a slot: they live and die together, however they were started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cog_celery.runners import kin
from cog_celery.runners.guardian import Guardian
from cog_celery.runners.master_port import MasterPort
from cog_celery.runners.runner import Done, Runner, RunnerCommand
from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.processes import Process, wait_until
from tests.support.producer import Request

pytestmark = pytest.mark.ours

MODEL = Path(__file__).parents[1] / "models" / "ranks"


def ranks_of(output: dict[str, Any]) -> list[Process]:
    found = [process for pid in output["ranks"] if (process := Process.read(pid)) is not None]
    assert len(found) == 3
    return found


def works(rank: Process) -> bool:
    """Whether it may still do something: what is ending by itself, the kernel has the last word on."""
    try:
        stat = Path("/proc", str(rank.pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    exiting = int(stat.rpartition(")")[2].split()[6]) & 0x4  # PF_EXITING
    return rank.alive and not exiting


def wait_gone(ranks: Sequence[Process]) -> None:
    wait_until(lambda: not any(rank.alive for rank in ranks), "all ranks to be gone", 5)


# -- one runner


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    with closing(Guardian()) as guardian:
        yield guardian


def started(guardian: Guardian, how: str) -> tuple[Runner, list[Process]]:
    """A runner that is ready, and its ranks."""
    with closing(MasterPort({})) as port:
        environment = {**os.environ, **port.variables(), "RANKS_BY": how}
        command = RunnerCommand(sys.executable, str(MODEL), environment)
        runner = Runner(command, guardian)
        runner.setup(command, lambda lines: None, 30)
    runner.predict("1", b'{"value": 5}')
    while True:
        for message in runner.wait(30):
            if isinstance(message, Done):
                output = msgspec.json.decode(message.output)
                assert output["sum"] == 15
                return runner, ranks_of(output)


@pytest.mark.parametrize("how", ["group", "session", "daemon", "spawn", "fork"])
def test_however_ranks_were_started_they_are_gone_when_their_runner_is(guardian: Guardian, how: str) -> None:
    """Forked or spawned, in sessions of their own, or orphans: all have ended when its end is told."""
    runner, ranks = started(guardian, how)
    os.kill(runner.pid, signal.SIGKILL)
    runner.end()
    assert runner.exitcode == -signal.SIGKILL
    assert not any(map(works, ranks))


def test_one_that_is_ending_and_has_no_environment_any_more_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory goes first and its devices last, and GPU memory takes seconds."""
    code = "import time; print(flush=True); time.sleep(60)"
    env = {**os.environ, kin.MARK: "that-runner"}
    with subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None and one.stdout.readline()
        marked, looks = kin._marked, iter([True])
        monkeypatch.setattr(kin, "_marked", lambda pid, needle: next(looks, False) if pid == one.pid else False)
        assert marked(one.pid, b"COG_RUNNER=that-runner")
        monkeypatch.setattr(kin, "_kill_one", lambda pid, born: None)
        assert kin.kill_kin(1 << 22, "that-runner", 0.1) == 1
        one.kill()
        assert kin.kill_kin(1 << 22, "that-runner", 5) == 0


def test_ranks_of_another_runner_live_on(guardian: Guardian) -> None:
    first, gone = started(guardian, "daemon")
    second, others = started(guardian, "daemon")
    first.end()
    assert not any(rank.alive for rank in gone) and all(rank.alive for rank in others)
    second.end()
    assert not any(rank.alive for rank in others)


# -- a fleet


@pytest.fixture(scope="module")
def one(shared_fleet: FleetFactory) -> Fleet:
    """One slot whose ranks wait for a dead one as a collective does, for half a minute."""
    env = {"RANKS_HANG": "hang"}
    return shared_fleet("ranks", env=env, lease=3, cancel_grace=0.5, predict_timeout=2)


def running(fleet: Fleet, seconds: float = 30, **more: Any) -> tuple[Request, dict[str, Any], list[Process]]:
    """A prediction, where it runs, and the ranks that are at it."""
    output = fleet.producer.predict({"value": 5}, timeout=30)["output"]
    ranks = ranks_of(output)
    request = fleet.producer.send({"seconds": seconds}, **more)
    fleet.producer.wait_for(request, lambda response: True)
    assert all(rank.alive for rank in ranks)
    return request, output, ranks


def test_when_the_runner_is_killed_the_next_ranks_begin_anew_at_the_same_port(one: Fleet) -> None:
    request, before, ranks = running(one)
    os.kill(before["pid"], signal.SIGKILL)
    assert one.producer.wait(request)["status"] == "failed"
    wait_gone(ranks)
    after = one.producer.predict({}, timeout=30)["output"]
    assert after["sum"] == 3 and not set(after["ranks"]) & set(before["ranks"])
    assert after["port"] == before["port"]


def test_ranks_of_a_runner_that_dies_while_it_is_idle_are_gone_with_the_next_heartbeat(one: Fleet) -> None:
    output = one.producer.predict({}, timeout=30)["output"]
    ranks = ranks_of(output)
    one.wait_idle()
    os.kill(output["pid"], signal.SIGKILL)
    wait_gone(ranks)


def test_a_prediction_that_waits_for_a_dead_rank_ends_at_its_time_limit_and_all_begin_anew(one: Fleet) -> None:
    request, before, ranks = running(one)
    os.kill(ranks[1].pid, signal.SIGKILL)
    os.kill(before["pid"], signal.SIGSTOP)  # as one that is stuck in a library
    assert one.producer.wait(request)["error"] == "Prediction timed out"
    wait_gone(ranks)
    assert one.producer.predict({}, timeout=30)["output"]["sum"] == 3


def test_a_canceled_prediction_that_must_be_killed_takes_its_ranks_along(one: Fleet) -> None:
    request, before, ranks = running(one, cancel_key="cancel-" + one.queue)
    os.kill(before["pid"], signal.SIGSTOP)
    one.client.set("cancel-" + one.queue, 1, ex=60)
    assert one.producer.wait(request)["status"] == "canceled"
    wait_gone(ranks)
    assert one.producer.predict({}, timeout=30)["status"] == "succeeded"


def test_a_rank_that_dies_is_the_models_failure_when_the_model_notices(fleet: FleetFactory) -> None:
    """And neither a drain nor a worker's death leaves a rank behind, even one that is nobody's child."""
    noticing = fleet("ranks", env={"RANKS_BY": "daemon"}, lease=3)
    request, before, ranks = running(noticing)
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert noticing.producer.wait(request)["error"] == "a rank has died"
    os.kill(before["pid"], signal.SIGKILL)
    wait_gone(ranks)

    request, _, ranks = running(noticing, seconds=1)
    [first] = noticing.workers
    first.kill()
    wait_gone(ranks)
    noticing.check_nothing_left(but=noticing.bridges)
    second = noticing.start_worker()
    assert noticing.producer.wait(request, timeout=30)["status"] == "succeeded"

    request, _, ranks = running(noticing, seconds=1)
    second.terminate()
    assert second.wait() == 0
    assert noticing.producer.wait(request)["status"] == "succeeded"
    assert not any(rank.alive for rank in ranks)


def test_slots_and_workers_of_a_host_meet_at_ports_of_their_own(fleet: FleetFactory) -> None:
    two = fleet("ranks", workers=2, gpus="0+1,2+3+4", lease=3)
    requests = [two.producer.send({"seconds": 0.3}) for _ in range(8)]
    outputs = [two.producer.wait(request, timeout=30)["output"] for request in requests]
    assert {(output["gpus"], output["sum"]) for output in outputs} == {("0,1", 1), ("2,3,4", 3)}
    ports = {output["pid"]: int(output["port"]) for output in outputs}
    assert len(ports) == 4 and len(set(ports.values())) == 4
    assert all(29500 <= port < 30500 for port in ports.values())
