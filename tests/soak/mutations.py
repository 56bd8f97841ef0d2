"""Delivery without one of its guards, in a copy of the project: whoever judges it must notice, every time.

It must not know why a guard is there, but for its text, which must still be the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.trial import LEASE, Trial
from tests.support.fleet import ROOT

COPIED = ("cog_celery", "bench", "tests", "pyproject.toml")
RUNS = 3
TIMEOUT = 180.0
SCRIPTS, STREAM = "cog_celery/delivery/scripts.py", "cog_celery/delivery/stream.py"
STOPPED = ("stopped", "--times", "10", "--lease", f"{LEASE:g}")
COMMITTED = ("failpoints", "--place", "slot.committed", "--times", "4", "--lease", f"{LEASE:g}")


@dataclass(frozen=True)
class Patch:
    """In this file, `before` becomes `after`. It must be there exactly once."""

    file: str
    before: str
    after: str

    def apply(self, copy: Path) -> None:
        path = copy / self.file
        text = path.read_text()
        found = text.count(self.before)
        if found != 1:
            raise AssertionError(
                f"{self.file} has {found} of what is to be taken out; mend this mutation:\n{self.before}"
            )
        path.write_text(text.replace(self.before, self.after))


@dataclass(frozen=True)
class Mutation:
    """What is taken out, which part of the soak must notice, and what it must then say."""

    name: str
    patches: Sequence[Patch]
    command: Sequence[str]
    noticed: Sequence[str]


COMMIT_UNFENCED = Patch(
    SCRIPTS,
    "if not ours(stream, ARGV[1], ARGV[2], ARGV[3]) then\n  if redis.call('GET', KEYS[3])",
    "if false then\n  if redis.call('GET', KEYS[3])",
)
PUBLISH_UNFENCED = Patch(
    SCRIPTS,
    "if not ours(KEYS[2], ARGV[1], ARGV[2], ARGV[3]) then\n  count('stale')\n  return 0\nend\n",
    "",
)
EXTEND_FOR_ALL = Patch(
    SCRIPTS,
    "  if gone or not ours(stream, entry, owner, ARGV[i + 3]) then\n",
    "  if gone or not pending(stream, entry) then\n",
)
COMMIT_IN_TWO = Patch(
    STREAM,
    "            answer = link.script(\n                *(scripts.COMMIT, keys,",
    "            from cog_celery import failpoints\n\n"
    '            link.call("XACK", self.name, self.name, delivery.entry)\n'
    '            failpoints.reach("slot.committed")\n'
    "            answer = link.script(\n                *(scripts.COMMIT, keys,",
)
MUTATIONS = (
    Mutation("the fence", (PUBLISH_UNFENCED, COMMIT_UNFENCED), STOPPED, ("[no stale write]", "[one terminal]")),
    Mutation("the owner check in extend", (EXTEND_FOR_ALL,), STOPPED, ("[no stale write]",)),
    Mutation("the atomicity of commit", (COMMIT_IN_TWO, COMMIT_UNFENCED), COMMITTED, ("was never answered",)),
)


def mutations(trial: Trial) -> None:
    whole = _copy(trial.folder / "whole")
    for command in (STOPPED, COMMITTED):
        trial.say(f"nothing taken out: {' '.join(command)}")
        problems = _problems(trial, whole, command)
        if problems:
            row = trial.row("nothing taken out", "the suite is green", "runs")
            row.check(False, "; ".join(problems[:3]))
    for mutation in MUTATIONS:
        row = trial.row(f"{mutation.name} is taken out", "the suite goes red, 3 of 3", "runs")
        copy = _copy(trial.folder / mutation.name.replace(" ", "-"))
        for patch in mutation.patches:
            patch.apply(copy)
        for number in range(trial.times(RUNS)):
            trial.say(f"{mutation.name} is taken out, run {number + 1}: {' '.join(mutation.command)}")
            problems = _problems(trial, copy, mutation.command)
            noticed = [one for one in problems if any(text in one for text in mutation.noticed)]
            row.check(bool(noticed), f"run {number + 1} said {problems or 'that all held'}")


def _copy(folder: Path) -> Path:
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def _problems(trial: Trial, copy: Path, command: Sequence[str]) -> list[str]:
    """What a part of the soak says of a copy."""
    # What it keeps of a failure goes with this part's folder.
    env = {**os.environ, "PYTHONPATH": str(copy), "TMPDIR": str(trial.folder)}
    seed = str(trial.rng.randrange(1_000_000))
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *command, "--seed", seed, "--output", "json"],
        cwd=copy,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode in (0, 1), f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    result: dict[str, Any] = json.loads(done.stdout)
    return [problem for row in result["rows"] for problem in row["problems"]]
