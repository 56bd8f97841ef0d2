"""The parent of several processes: what ends it, what it passes on, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import MARK, marked, wait_until

ROOT = Path(__file__).parents[2]

PARENT = """
import os, signal, sys
from cog_celery.settings import Settings
from cog_celery.local.supervisor import Fleet, Signals
# Whatever the tests themselves were started with.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
commands = {f"child{number}": [sys.executable, "-c", code] for number, code in enumerate(sys.argv[2:])}
with Signals() as signals:
    fleet = Fleet(commands, Settings.load({}, os.environ), float(sys.argv[1]), signals)
    fleet.start()
    sys.exit(fleet.wait(7))
"""

# Says `up`, and ends at the first SIGTERM.
POLITE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("up", flush=True)
signal.sigwait([signal.SIGTERM])
print("stopped", flush=True)
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""
TWICE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("up", flush=True)
for _ in range(2):
    signal.sigwait([signal.SIGTERM])
    print("told", flush=True)
"""


class Parent:
    def __init__(self, mark: str, patience: float, *children: str) -> None:
        self.mark = mark
        self.count = len(children)
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), MARK: mark}
        command = [sys.executable, "-c", PARENT, str(patience), *children]
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def read(self, count: int) -> list[str]:
        assert self.process.stdout is not None
        return [self.process.stdout.readline().strip() for _ in range(count)]

    def end(self) -> tuple[int, list[str]]:
        out, _ = self.process.communicate(timeout=20)
        wait_until(lambda: not marked(self.mark), f"nothing to be left of {marked(self.mark)}")
        return self.process.returncode, out.split()


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> str:
    return f"{os.getpid()}-{request.node.name}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_stops_all_and_is_no_failure(mark: str, number: signal.Signals) -> None:
    parent = Parent(mark, 10, POLITE, POLITE)
    assert parent.read(2) == ["up", "up"]
    parent.process.send_signal(number)
    assert parent.end() == (7, ["stopped", "stopped"])


def test_ctrl_c_in_the_terminal_reaches_the_parent_alone(mark: str) -> None:
    parent = Parent(mark, 10, POLITE.replace("SIGTERM", "SIGINT"), POLITE)
    assert parent.read(2) == ["up", "up"]
    os.killpg(parent.process.pid, signal.SIGINT)
    # The first listens to SIGINT only, and so dies of the SIGTERM that is passed on: that was asked for.
    assert parent.end() == (7, ["stopped"])


def test_a_second_signal_is_passed_on_as_well(mark: str) -> None:
    parent = Parent(mark, 30, TWICE, POLITE)
    assert parent.read(2) == ["up", "up"]
    parent.process.terminate()
    assert sorted(parent.read(2)) == ["stopped", "told"]
    parent.process.terminate()
    assert parent.end() == (7, ["told"])


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(0)", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_a_child_that_ends_by_itself_ends_all_with_its_status(mark: str, code: str, status: int) -> None:
    ends = f'import sys\nprint("up", flush=True)\nsys.stdin.read()\n{code}'
    parent = Parent(mark, 10, POLITE, ends)
    assert parent.end()[0] == status


def test_a_child_that_fails_to_stop_well_is_a_failure(mark: str) -> None:
    parent = Parent(mark, 10, POLITE, POLITE + "raise SystemExit(5)")
    assert parent.read(2) == ["up", "up"]
    parent.process.terminate()
    assert parent.end()[0] == 5


def test_who_does_not_stop_in_time_is_killed(mark: str) -> None:
    parent = Parent(mark, 0.3, STUBBORN, POLITE)
    assert parent.read(2) == ["up", "up"]
    parent.process.terminate()
    assert parent.end()[0] == 137


def test_kill_9_of_the_parent_leaves_nothing_behind(mark: str) -> None:
    parent = Parent(mark, 10, STUBBORN, POLITE)
    assert parent.read(2) == ["up", "up"]
    assert len(marked(mark)) == 3
    parent.process.kill()
    assert parent.end()[0] == -9
