"""Which of a worker's slots are in service: out while their GPU is not well or their model cannot be set up.

It must not know how either is found out, nor what a slot does in its turn.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cog_celery.errors import SetupError
from cog_celery.gpus.monitor import Monitor
from cog_celery.runners.runner import Ready
from cog_celery.slots.respawning import RespawningRunner
from cog_celery.slots.slot import Slot

log = logging.getLogger(__name__)


class Roster:
    """update() may be called from any thread; it is to be called whenever something may have changed."""

    def __init__(
        self,
        runners: Sequence[RespawningRunner],
        slots: Sequence[Slot],
        monitor: Monitor,
        on_change: Callable[[], None],
        on_nobody: Callable[[str], None],
    ) -> None:
        """`slots` may still be empty, while models are set up for the first time. `on_change` is told that a slot went
        out or came back, `on_nobody` that none is left, and why.
        """
        self._runners = runners
        self._slots = slots
        self._monitor = monitor
        self._on_change = on_change
        self._on_nobody = on_nobody
        self._lock = threading.Lock()
        self._lost: dict[str, str] = {}
        """What is wrong with the GPUs of each runner, by name, as they were told of it."""
        self._told: dict[str, str] = {}
        """Why runners are out, as was logged."""
        self._nobody = False

    def set_up(self) -> list[Ready]:
        """Set all up for the first time, side by side. Those that cannot be are out, and the others serve; what these
        say. Raises SetupError, OSError when there is none.
        """
        with ThreadPoolExecutor(len(self._runners), thread_name_prefix="setup") as pool:
            setups = [pool.submit(_set_up, runner) for runner in self._runners]
        failed = [
            (runner, error) for runner, one in zip(self._runners, setups, strict=True) if (error := one.exception())
        ]
        for _, error in failed:
            if len(failed) == len(setups) or not isinstance(error, SetupError | OSError):
                raise error
        for runner, error in failed:
            runner.fail(str(error))
        return [one.result() for one in setups if one.exception() is None]

    def update(self) -> None:
        """Take slots out, and back; tell of it."""
        with self._lock:
            for runner in self._runners:
                trouble = self._monitor.known_trouble(runner.share.ids)
                if trouble is not None and self._lost.get(runner.name) != trouble:
                    self._lost[runner.name] = trouble
                    self._lose(runner, trouble)
                elif trouble is None and self._lost.pop(runner.name, None) is not None:
                    log.warning("GPU %s is there again: its slot is set up again", runner.share.label)
                    runner.regain()
            changed = [runner for runner in self._runners if runner.out != self._told.get(runner.name)]
            came_or_went = False
            for runner in changed:
                was = self._told.pop(runner.name, None)
                if runner.out is not None:
                    self._told[runner.name] = runner.out
                    if was is None:
                        log.error("%s is out: %s", self._called(runner), runner.out)
                elif was is not None:
                    log.warning("%s is back", self._called(runner))
                came_or_went |= (was is None) != (runner.out is None)
            nobody = bool(self._slots) and all(runner.out is not None for runner in self._runners)
            said, self._nobody = self._nobody, nobody
            why = self._runners[0].out
        for slot in (slot for runner in changed for slot in self._of(runner)):
            slot.heed_health()  # with nothing held: Redis may be out of reach
        if came_or_went:
            self._on_change()
        if nobody and not said:
            self._on_nobody(f"no slot is left: {why}")

    def _lose(self, runner: RespawningRunner, trouble: str) -> None:
        # In this order: the runner's death is then nobody's failure.
        for slot in self._of(runner):
            slot.forsake()
        runner.lose(trouble)

    def _of(self, runner: RespawningRunner) -> list[Slot]:
        return [slot for slot in self._slots if slot.serves(runner)]

    def _called(self, runner: RespawningRunner) -> str:
        slots = ", ".join(str(slot.index) for slot in self._of(runner))
        called = f"slot {slots}" if slots else runner.name
        return called if runner.share.label is None else f"{called} on GPU {runner.share.label}"


def _set_up(runner: RespawningRunner) -> Ready:
    trouble = runner.look_at_gpus(late=False)
    if trouble is not None:
        raise SetupError(trouble)
    return runner.set_up()
