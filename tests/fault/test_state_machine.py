"""Whatever is sent, canceled, killed, paused and sent twice, in whatever order: the oracle finds nothing wrong."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.oracle import Oracle, Verdict, journal_env
from tests.support.processes import Child, wait_until
from tests.support.producer import Producer, Request
from tests.support.servers import RedisServer

pytestmark = pytest.mark.ours

LEASE = 1.0
BRIDGES, WORKERS, SLOTS = 2, 2, 1
STEPS = 12
"""Steps from one check to the next."""
ENDLESS = ("HANG", "IGNORE_TERM")
ACTIONS = ("OK", "LOGS", "STREAM", "FILES", "RAISE", "EXIT", "KILL", "SEGV", "OOM", "FLOOD", "BIG", *ENDLESS)
BAD = (
    ('{"response_queue": "%s", "input": 5}', True),
    ('{"response_queue": "%s", "input": {"action": "NONE"}}', True),
    ('{"response_queue": "%s", "cancel_key": 7}', True),
    ('{"response_queue": "%s"', False),
    ('["%s"]', False),
)
"""Messages, each with a response key in it, and whether that can be told."""


class World:
    """A fleet on a server of its own, and what was done to it; it outlives the machines that play with it."""

    def __init__(self, server: RedisServer, folder: Path, monitor: Monitor) -> None:
        journal = folder / "journal"
        self.server = server
        self.monitor = monitor
        self.fleet = Fleet(
            server,
            folder,
            "actions",
            bridges=BRIDGES,
            workers=WORKERS,
            slots=SLOTS,
            env=journal_env(journal),
            lease=LEASE,
            cancel_grace=0.3,
            priority=True,
        )
        self.lane = Producer(server.client, f"{self.fleet.queue}.high")
        self.oracle = Oracle(monitor, journal, self.fleet.queue)
        self.fleet.start()
        self.bridges = list(self.fleet.bridges)
        self.workers = list(self.fleet.workers)
        self.drained: list[Child] = []
        self.sent: list[tuple[str, Request]] = []
        self.steps: list[str] = []
        self.failure: Exception | None = None
        self.verdict: Verdict | None = None

    def ask(self, action: str, seconds: float = 0.02, **fields: Any) -> Request:
        number = len(self.sent)
        input = {"action": action, "n": 2, "seconds": seconds, "text": f"request {number}: {action}"}
        lane = number % 3 == 0
        producer = self.lane if lane else self.fleet.producer
        request = self.oracle.sent(producer.send(input, **fields), lane=lane)
        self.sent.append((action, request))
        return request

    def restart_worker(self, index: int) -> None:
        self.workers[index] = self.fleet.start_worker(name=f"w{index}-{self.fleet.queue}")

    def settle(self) -> None:
        """Let all come to its end, and have it judged."""
        for action, request in self.sent:
            if action in ENDLESS:
                self.fleet.producer.cancel(request)
        self.oracle.settle(30)
        self.verdict = self.oracle.check().demand()
        for child in self.drained:
            # One that was told to end before it could listen has said nothing yet.
            assert child.wait() == 0 or (child.wait() == -signal.SIGTERM and not child.text()), child.text()
        # Credits of those that were killed are counted, too: who has just been started may be up later than that.
        wait_until(lambda: self.fleet.credits() >= WORKERS * SLOTS, "all slots to be idle again", 15)
        wait_until(lambda: all(" is ready: " in worker.text() for worker in self.workers), "all workers to be up", 15)
        wait_until(lambda: all(" serves " in bridge.text() for bridge in self.bridges), "all bridges to be up", 15)
        for child in (*self.bridges, *self.workers):
            child.check_running()


Step = Callable[..., None]


def step(take: Step) -> Step:
    """Tells of a step in the timelines. What goes wrong is kept for the end, and then nothing more is done: Hypothesis
    would repeat it all to explain it, and it would not be the same again.
    """

    @functools.wraps(take)
    def told(self: Machine, **drawn: Any) -> None:
        world = self.world
        if world.failure is not None:
            return
        text = f"{take.__name__}({', '.join(f'{name}={value!r}' for name, value in drawn.items())})"
        world.steps.append(f"{time.time():.6f} {text}")
        world.oracle.note(text)
        try:
            take(self, **drawn)
        except Exception as error:
            world.failure = error

    return told


def stopped_for(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


class Machine(RuleBasedStateMachine):
    """The steps. Which can be taken depends on nothing: a step that makes no sense does nothing."""

    world: ClassVar[World]

    @rule(actions=st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=6))
    @step
    def ask(self, actions: list[str]) -> None:
        for action in actions:
            self.world.ask(action)

    @rule(action=st.sampled_from(("SLEEP", "LOGS", "STREAM")), tenths=st.integers(2, 15), count=st.integers(1, 5))
    @step
    def ask_for_long_ones(self, action: str, tenths: int, count: int) -> None:
        for _ in range(count):
            self.world.ask(action, tenths / 10)

    @rule(back=st.integers(0, 5))
    @step
    def cancel(self, back: int) -> None:
        if back < len(self.world.sent):
            self.world.fleet.producer.cancel(self.world.sent[-1 - back][1])

    @rule(index=st.integers(0, WORKERS - 1))
    @step
    def drain_worker(self, index: int) -> None:
        """As in a rolling restart."""
        world = self.world
        child = world.workers[index]
        child.terminate()
        world.drained.append(child)
        world.restart_worker(index)

    @rule(back=st.integers(0, 5))
    @step
    def duplicate_id(self, back: int) -> None:
        world = self.world
        if back < len(world.sent):
            action, request = world.sent[-1 - back]
            world.ask(action, id=request.id)

    @rule(back=st.integers(0, 5))
    @step
    def duplicate_ticket(self, back: int) -> None:
        """As a broker may."""
        world = self.world
        tickets = [
            (key.decode(), message)
            for name, key, message, *_ in (
                command.args for command in world.monitor.commands() if len(command.args) > 2
            )
            if name == b"LPUSH" and b":broker:" in key and world.fleet.queue.encode() in key
        ]
        for key, message in tickets[-1 - back :][:1]:
            world.server.client.lpush(key, message)

    @rule(index=st.integers(0, BRIDGES - 1))
    @step
    def kill_bridge(self, index: int) -> None:
        world = self.world
        world.bridges[index].discard()
        world.bridges[index] = world.fleet.start_bridge()

    @rule(index=st.integers(0, WORKERS * SLOTS - 1))
    @step
    def kill_runner(self, index: int) -> None:
        # A first setup() that dies ends its worker, which whoever runs it would start again.
        up = {worker.pid for worker in self.world.workers if "slots on queue" in worker.text()}
        runners = sorted((one for one in self.world.fleet.runners() if one.parent in up), key=lambda one: one.pid)
        for process in runners[index : index + 1]:
            os.kill(process.pid, signal.SIGKILL)

    @rule(index=st.integers(0, WORKERS - 1))
    @step
    def kill_worker(self, index: int) -> None:
        world = self.world
        world.workers[index].discard()
        world.restart_worker(index)

    @rule(tenths=st.integers(1, 9))
    @step
    def pause_redis(self, tenths: int) -> None:
        stopped_for(self.world.server.pid, tenths / 10)

    @rule(kind=st.sampled_from(BAD))
    @step
    def send_bad(self, kind: tuple[str, bool]) -> None:
        world = self.world
        message, answered = kind
        key = f"response-bad-{len(world.steps)}"
        entry = world.fleet.producer.send_raw(message % key)
        world.oracle.sent(Request("", entry, key if answered else "", ""))

    @rule(index=st.integers(0, WORKERS - 1), tenths=st.integers(2, 18))
    @step
    def stop_worker(self, index: int, tenths: int) -> None:
        """And let it go on, past its lease perhaps. Its runner knows nothing of it."""
        stopped_for(self.world.workers[index].pid, tenths / 10)

    @rule(hundredths=st.integers(1, 80))
    @step
    def wait(self, hundredths: int) -> None:
        """Let something happen before the next step."""
        time.sleep(hundredths / 100)

    def teardown(self) -> None:
        world = self.world
        if world.failure is None:
            world.oracle.note("settle")
            try:
                world.settle()
            except Exception as error:
                world.failure = error


def run_state_machine(seed: int, steps: int, folder: Path | None = None) -> Verdict:
    """Take `steps` steps at random, settled and judged after each STEPS of them, with one fleet; the last verdict.

    AssertionError, with the seed, the steps and the timelines of what went wrong.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="state-machine-") as name:
            return run_state_machine(seed, steps, Path(name))
    server = RedisServer("valkey", folder)
    try:
        with Monitor(server.client, keep=20_000) as monitor:
            world = World(server, folder, monitor)
            with world.fleet:
                play(world, seed, steps)
            assert world.verdict is not None
            return world.verdict
    finally:
        server.stop()


def play(world: World, seed: int, steps: int) -> None:
    machine = with_seed(seed)(type("Machine", (Machine,), {"world": world}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            # The first example is the plainest one there is: one sort of step.
            max_examples=1 + -(-steps // STEPS),
            stateful_step_count=min(steps, STEPS),
            phases=[Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if world.failure is not None:
        told = "\n".join(["", f"seed {seed}", *world.steps, "", str(world.failure), world.fleet.log(8_000)])
        raise AssertionError(told) from world.failure


def test_whatever_happens_in_whatever_order_the_oracle_agrees(tmp_path: Path) -> None:
    # A seed with twelve of the thirteen steps in it, that finds a missing fence, and a missing owner check in EXTEND.
    run_state_machine(seed=583, steps=24, folder=tmp_path)
