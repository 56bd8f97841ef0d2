"""A runner that is started again when it has died, with its temporary folder, and pauses between setups that fail.

It is out of service while a GPU of its own is not well, or when its model could not be set up again and again. It must
not know what is predicted, nor where requests come from.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory

from cog_celery.errors import RunnerDied, RunnerProtocolError, SetupError
from cog_celery.gpus.assigning import Share
from cog_celery.gpus.monitor import Monitor
from cog_celery.runners.master_port import MasterPort
from cog_celery.runners.runner import Health, Lines, Ready, Runner, RunnerCommand
from cog_celery.runners.sharing import Seat, SharedRunner
from cog_celery.slots.workshop import Workshop
from cog_celery.telemetry import logs, traces

SETUP_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between attempts to set a predictor up again after its runner died. After the last one it is out."""
OUT_PAUSES = (*SETUP_PAUSES, 60.0, 120.0, 300.0)
"""Seconds between attempts to set up one that is out; the last one again and again."""
LOOK = 0.5
"""Seconds between looks, in a pause, at whether its GPU is there."""
HEALTH_PATIENCE = 8.0
"""Seconds for an answer to a health check; the runner gives the model 5 s."""

log = logging.getLogger(__name__)


class RespawningRunner:
    """Used by one slot, or by as many as the model predicts at once, each with a seat of its own.

    kill() may come from any thread; of one seat, all else comes from its slot's.
    """

    def __init__(
        self,
        name: str,
        shop: Workshop,
        environment: Mapping[str, str],
        concurrency: int,
        share: Share,
        monitor: Monitor,
    ) -> None:
        self.name = name
        self.share = share
        self._monitor = monitor
        self._port = MasterPort(environment)
        self._shop = shop
        self._environment = environment
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._scratch: TemporaryDirectory[str] | None = None
        self._last_scratch: TemporaryDirectory[str] | None = None
        """That of the runner before this one, from which another slot may still upload."""
        self._runner: Runner | None = None
        self._shared: SharedRunner | None = None
        self._seats: Sequence[Runner | Seat] = ()
        self.healthcheck = False
        """Whether the model has one."""
        self.sick: str | None = None
        """What the model said of itself when it was asked last, if it was not well."""
        self.health_due = False
        """Whether it is to be asked between two predictions, since it does nothing else."""
        self._gpu_trouble: str | None = None
        self._setup_trouble: str | None = None
        self._tries = 0
        self._again_at = 0.0

    @property
    def out(self) -> str | None:
        """Why it is out of service, None when it is not."""
        return self._gpu_trouble or self._setup_trouble

    @property
    def unfit(self) -> str | None:
        """Why its slots take nothing: it is out, or its model is not well."""
        return self.out or self.sick

    def lose(self, trouble: str) -> None:
        """A GPU of its is not well: it ends, and stays out until regain()."""
        self._gpu_trouble = trouble
        self.kill()

    def regain(self) -> None:
        """Its GPUs are well: it is set up again when somebody tries."""
        self._setup_trouble = self._setup_trouble or f"it is to be set up again, after {self._gpu_trouble}"
        self._again_at = 0.0
        self._gpu_trouble = None

    def fail(self, trouble: str) -> None:
        """It cannot be set up: it is out, and tried again after a pause."""
        self._setup_trouble = trouble
        self._again_at = time.monotonic() + OUT_PAUSES[min(self._tries, len(OUT_PAUSES) - 1)]
        self._tries += 1

    @property
    def due(self) -> bool:
        """Whether one that is out may be tried again."""
        return self._gpu_trouble is None and time.monotonic() >= self._again_at

    def look_at_gpus(self, *, late: bool) -> str | None:
        """What is wrong with its GPUs, as they are now; `late`: or within a moment."""
        return self._gpu_trouble or self._monitor.trouble(self.share.ids, late=late)

    def try_again(self, on_setup: Callable[[float], None]) -> bool:
        """Set up one that is out, once; whether it is in service again."""
        with self._lock:
            if self.out is None or not self.due or self._shop.draining.is_set():
                return False
            self._let_go()
            try:
                took = self.set_up().setup_time
            except (SetupError, OSError) as error:
                self._let_go()
                if not self._shop.draining.is_set() and self._gpu_trouble is None:
                    self.fail(str(error))
                    log.error("%s is still out, it is tried again: %s", self.name, error)
                return False
            self._setup_trouble, self.sick = None, None
            self._tries = 0
        on_setup(took)
        self._shop.on_out()
        return True

    def seat(self, index: int) -> Runner | Seat:
        """What a slot predicts with, also when it has died."""
        return self._seats[index]

    def ended(self, index: int) -> bool:
        """Whether there is none, or its end has been told."""
        return not self._seats or self._seats[index].ended

    def died(self, index: int) -> bool:
        """Whether its end has been told since it was set up."""
        return bool(self._seats) and self._seats[index].ended

    @property
    def scratch(self) -> str | None:
        """The folder of its temporary files, which goes when it does."""
        return None if self._scratch is None else self._scratch.name

    def set_up(self) -> Ready:
        """Start a runner and wait for setup(); what the runner says of it. Raises SetupError, OSError."""
        try:
            with traces.runner_start() as start:
                ready = self._set_up()
                start.ready(ready.in_setup)
        except (SetupError, OSError):
            if not self._shop.draining.is_set() and self._gpu_trouble is None:
                self._shop.on_setup_failed(self.name)
            raise
        return ready

    def _set_up(self) -> Ready:
        shop = self._shop
        self._clear(self._last_scratch)
        self._last_scratch, self._scratch = self._scratch, None
        if self._concurrency == 1:
            self._clear(self._last_scratch)
            self._last_scratch = None
        self._scratch = TemporaryDirectory(prefix="cog-celery-runner-", ignore_cleanup_errors=True)
        shop.guardian.watch_folder(self._scratch.name)
        environment = {**self._environment, **self._port.variables(), "TMPDIR": self._scratch.name}
        command = RunnerCommand(
            *(shop.settings.python, shop.settings.model_dir or ".", environment), concurrency=self._concurrency
        )
        runner = self._runner = shop.spawner.submit(Runner, command, shop.guardian).result()
        if shop.draining.is_set() or self._gpu_trouble is not None:
            runner.kill()  # whoever has killed the others may not have seen this one
        ready = runner.setup(command, shop.on_setup_lines, shop.settings.setup_timeout)
        self._concurrency = ready.concurrency
        if ready.concurrency > 1:
            self._shared = SharedRunner(runner, ready.concurrency)
            self._seats = self._shared.seats
        else:
            self._seats = (runner,)
        self.healthcheck = ready.healthcheck
        log.info("%s is ready: setup() took %.2f s, process %d", self.name, ready.setup_time, runner.pid)
        return ready

    def lives(self, index: int) -> bool:
        """Whether it lives; what it wrote between predictions goes to the log."""
        if self.ended(index):
            return False
        try:
            logs.model_lines(self._seats[index].between(), "between predictions")
            self._keep_scratch()
            return True
        except RunnerDied as death:
            log.warning("%s ended between predictions (exitcode %d)", self.name, death.exitcode)
        except RunnerProtocolError as error:
            log.warning("%s ended between predictions: %s", self.name, error)
        return False

    def respawn(self, index: int, on_setup: Callable[[float], None]) -> bool:
        """Start it again, unless another of its slots has. False when it is out of service, or the worker drains."""
        with self._lock:
            if not self.ended(index):
                return True
            self._let_go()
            if self.out is not None:
                return False
            for pause in (0.0, *SETUP_PAUSES):
                if self._pause(pause):
                    return False
                try:
                    on_setup(self.set_up().setup_time)
                    return True
                except (SetupError, OSError) as error:
                    if self._shop.draining.is_set():
                        return False  # the drain killed it
                    self._let_go()
                    if self._gpu_trouble is not None:
                        return False
                    log.error("%s: %s", self.name, error)
                    reason = f"its predictor could not be set up again: {error}"
            self._tries = len(SETUP_PAUSES)
            self.fail(reason)
        self._shop.on_out()
        return False

    def _pause(self, seconds: float) -> bool:
        """Wait; whether it is over, since the worker drains or the GPU is gone."""
        until = time.monotonic() + seconds
        while not self._shop.draining.wait(min(LOOK, max(0.0, until - time.monotonic()))):
            if self._gpu_trouble is not None:
                return True
            if time.monotonic() >= until:
                return False
        return True

    @property
    def shared(self) -> bool:
        """Whether it predicts several at once."""
        return self._shared is not None

    def ask_health(self) -> None:
        """Have the model say of itself how it is. Not shared: only while its slot does nothing. Raises RunnerDied,
        RunnerProtocolError.
        """
        self.health_due = False
        health = self._health()
        self.sick = None if health.healthy else health.error or "it does not say why"

    def _health(self) -> Health:
        if self._shared is not None:
            answer = self._shared.healthcheck(HEALTH_PATIENCE)
        else:
            answer = None
            runner = self._runner
            assert runner is not None
            runner.ask("healthcheck")
            until = time.monotonic() + HEALTH_PATIENCE
            while answer is None and time.monotonic() < until:
                for message in runner.wait(until - time.monotonic()):
                    if isinstance(message, Lines):
                        logs.model_lines(message.lines, "healthcheck")
                    elif isinstance(message, Health):
                        answer = message
        return answer or Health(False, f"the runner has not answered within {HEALTH_PATIENCE:g} s")

    def lay_down(self) -> None:
        """Wait for the end of one that is out, which nobody uses."""
        with self._lock:
            if self.out is not None and self._shared is None and self._runner is not None:
                self._runner.end()

    def kill(self) -> None:
        """End it from another thread; whoever uses it is told by its death."""
        if self._shared is not None:
            self._shared.kill()
        elif self._runner is not None:
            self._runner.kill()

    def interrupt(self) -> None:
        """End it, if that ends nothing but a setup() or what one slot is about to begin."""
        if self._shared is None and self._runner is not None:
            self._runner.kill()

    def close(self) -> None:
        """End it, and remove its files."""
        self._let_go()
        self._port.close()
        for scratch in (self._last_scratch, self._scratch):
            self._clear(scratch)

    def _let_go(self) -> None:
        if self._shared is not None:
            self._shared.close()
        elif self._runner is not None:
            self._runner.end()
        self._shared, self._runner, self._seats = None, None, ()

    def _keep_scratch(self) -> None:
        """Make its folder anew when a cleaner of old files has taken it."""
        scratch = self.scratch
        if scratch is not None and not os.path.isdir(scratch):
            with contextlib.suppress(OSError):  # whoever needs it will say so
                os.mkdir(scratch, 0o700)
                log.warning("%s: its temporary folder was removed, it is made again: %s", self.name, scratch)

    def _clear(self, scratch: TemporaryDirectory[str] | None) -> None:
        if scratch is not None:
            self._shop.guardian.forget_folder(scratch.name)
            scratch.cleanup()
