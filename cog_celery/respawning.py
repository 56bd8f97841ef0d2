"""A runner that is started again when it has died, with its temporary folder, and pauses between setups that fail.

It must not know what is predicted, nor where requests come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory

from cog_celery.errors import RunnerDied, SetupError
from cog_celery.outlet import model_log
from cog_celery.runner import Ready, Runner, RunnerCommand
from cog_celery.workshop import Workshop

SETUP_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between attempts to set a predictor up again after its runner died. After the last one it is given up."""

log = logging.getLogger(__name__)


class RespawningRunner:
    """Used by one slot; kill() may come from any thread. `wake`: a file descriptor that ends the runner's waits."""

    def __init__(
        self,
        slot: int,
        shop: Workshop,
        environment: Mapping[str, str],
        wake: int,
        on_setup: Callable[[float], None],
    ) -> None:
        self._slot = slot
        self._shop = shop
        self._environment = environment
        self._wake = wake
        self._on_setup = on_setup
        self._scratch: TemporaryDirectory[str] | None = None
        self._runner: Runner | None = None

    @property
    def runner(self) -> Runner:
        """The runner as it is, also when it has died."""
        assert self._runner is not None
        return self._runner

    @property
    def ended(self) -> bool:
        """Whether there is none, or it has died."""
        return self._runner is None or self._runner.ended

    @property
    def died(self) -> bool:
        """Whether it has died since it was set up."""
        return self._runner is not None and self._runner.ended

    @property
    def scratch(self) -> str | None:
        """The folder of its temporary files, which goes when it does."""
        return None if self._scratch is None else self._scratch.name

    def set_up(self) -> Ready:
        """Start a runner and wait for setup(); what the runner says of it. Raises SetupError, OSError."""
        shop = self._shop
        self._clear_scratch()
        self._scratch = TemporaryDirectory(prefix="cog-celery-runner-", ignore_cleanup_errors=True)
        shop.guardian.watch_folder(self._scratch.name)
        environment = {**self._environment, "TMPDIR": self._scratch.name}
        command = RunnerCommand(shop.settings.python, shop.settings.model_dir or ".", environment)
        runner = self._runner = shop.spawner.submit(Runner, command, shop.guardian).result()
        if shop.draining.is_set():
            runner.kill()  # the drain has killed the others, and may not have seen this one
        ready = runner.setup(command, shop.on_setup_lines, shop.settings.setup_timeout)
        runner.attend(self._wake)
        log.info("slot %d is ready: setup() took %.2f s, runner %d", self._slot, ready.setup_time, runner.pid)
        return ready

    def lives(self) -> bool:
        """Whether it lives; what it wrote between predictions goes to the log."""
        try:
            if self._runner is not None:
                for line in self._runner.between():
                    model_log.info("between predictions: %s", line)
                return True
        except RunnerDied as death:
            log.warning("the runner of slot %d ended between predictions (exitcode %d)", self._slot, death.exitcode)
        return False

    def respawn(self) -> bool:
        """Start it again; False when it cannot be set up, and the worker has been told, or when the worker drains."""
        self._runner = None
        for pause in (0.0, *SETUP_PAUSES):
            if self._shop.draining.wait(pause):
                return False
            try:
                self._on_setup(self.set_up().setup_time)
                return True
            except (SetupError, OSError) as error:
                if self._shop.draining.is_set():
                    return False  # the drain killed it
                log.error("slot %d: %s", self._slot, error)
                self._runner = None
        self._shop.on_broken(f"slot {self._slot}: its predictor could not be set up again")
        return False

    def kill(self) -> None:
        """End it from another thread; whoever uses it is told by its death."""
        if self._runner is not None:
            self._runner.kill()

    def close(self) -> None:
        """End it, and remove its files."""
        if self._runner is not None:
            self._runner.end()
        self._clear_scratch()

    def _clear_scratch(self) -> None:
        if self._scratch is not None:
            self._shop.guardian.forget_folder(self._scratch.name)
            self._scratch.cleanup()
            self._scratch = None
