"""Who is measured, and how each is started: nothing but command lines.

It must not know what is measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .fleet import Command
from .phases import FOUR_SLOTS, ONE_SLOT, YIELDS, Phase

_ROOT = Path(__file__).resolve().parent.parent
# Of the caller's environment, what programs need to run: PYTHONPATH or COG_CELERY_* would change a contestant.
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Job:
    """What a fleet is asked to serve."""

    model: Path
    queue: str
    slots: int
    host: str
    port: int
    upload_url: str = ""


@dataclass(frozen=True)
class Contestant:
    """A column of the table."""

    name: str
    commands: Callable[[Job], Sequence[Command]]
    phases: Sequence[Phase] = (ONE_SLOT, FOUR_SLOTS, YIELDS)


def own(*, turn: float | None = None) -> Contestant:
    """This project: a bridge, and a worker with all the slots. `turn` in seconds; None is the default of the worker."""

    def commands(job: Job) -> list[Command]:
        url = f"redis://{job.host}:{job.port}/0"
        program = (sys.executable, "-m", "cog_celery")
        common = ("--queue", job.queue, "--redis-url", url)
        turns = () if turn is None else ("--turn", f"{turn:g}")
        files = ("--upload-url", job.upload_url, "--allow-address", "127.0.0.0/8") if job.upload_url else ()
        worker = ("worker", str(job.model), *common, "--slots", str(job.slots), *turns, *files)
        env = environment()
        return [Command((*program, "bridge", *common), _ROOT, env), Command((*program, *worker), _ROOT, env)]

    if turn is None:
        return Contestant("cog_celery", commands)
    # A turn ends between predictions, never within one: yields are the same with every turn.
    return Contestant(f"cog_celery --turn {turn:g}", commands, (ONE_SLOT, FOUR_SLOTS))


def peer(name: str, python: Path) -> Contestant:
    """A release of Cog: one worker process per slot, each with a consumer id of its own, as one would deploy it."""

    def commands(job: Job) -> list[Command]:
        # As in the images that Cog builds; our runner is unbuffered too.
        env = {**environment(), "PYTHONUNBUFFERED": "1"}
        program = (str(python), "-m", "cog.server.redis_queue", job.host, str(job.port), job.queue)
        rest = ("model", f"{job.queue}-log")
        return [
            Command((*program, job.upload_url, f"consumer-{number}", *rest), job.model, env)
            for number in range(job.slots)
        ]

    return Contestant(name, commands)


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
