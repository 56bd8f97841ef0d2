"""One prediction in a runner of its own, without Redis: `cog-celery predict`.

It must not know how the result is printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import msgspec

from cog_celery import inputs
from cog_celery.cancel import Cancel
from cog_celery.environment import model_environment
from cog_celery.execution import Execution, Wake
from cog_celery.guardian import Guardian
from cog_celery.outputs import PredictionUploads, Uploader
from cog_celery.prediction import Prediction
from cog_celery.runner import FieldError, Runner, RunnerCommand
from cog_celery.runtime.cog._runner.rendering import render_runtime
from cog_celery.settings import Settings
from cog_celery.snapshots import Cog04

OWN = ("127.0.0.0/8", "::1")


def predict(settings: Settings, input: dict[str, object]) -> tuple[dict[str, object], int]:
    """The terminal snapshot (cog-0.4) of one prediction and the exit status that says the same; logs go to standard
    error as they come, and Ctrl-C cancels. Raises SetupError.
    """
    assert settings.model_dir is not None
    guardian, wake = Guardian(), Wake()
    scratch = TemporaryDirectory(prefix="cog-celery-runner-", ignore_cleanup_errors=True)
    try:
        guardian.watch_folder(scratch.name)
        environment, _ = model_environment(
            *(os.environ, settings.model_env, {"TMPDIR": scratch.name}),
            other_interpreter=settings.python != sys.executable,
        )
        command = RunnerCommand(settings.python, settings.model_dir, environment)
        runner = Runner(command, guardian)
        try:
            runner.setup(command, _to_stderr, settings.setup_timeout)
            runner.attend(wake.fileno())
            prediction = Prediction(settings.max_log_bytes)
            outlet = _LocalOutlet(settings, scratch.name)
            execution = Execution(
                *(runner, prediction, outlet),
                id="local",
                timeout=settings.predict_timeout,
                grace=settings.cancel_grace,
                wake=wake,
            )
            before = signal.signal(signal.SIGINT, lambda number, frame: execution.stop("canceled"))
            try:
                execution.run(msgspec.json.encode(input), hold=False, context=None)
            finally:
                signal.signal(signal.SIGINT, before)
        finally:
            runner.end()
    finally:
        scratch.cleanup()
        guardian.close()
        wake.close()
    snapshot: dict[str, object] = msgspec.json.decode(outlet.dialect.render(prediction))
    return snapshot, {"succeeded": 0, "canceled": 130}.get(prediction.status, 1)


def _to_stderr(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


class _LocalOutlet:
    def __init__(self, settings: Settings, scratch: str) -> None:
        self.dialect = Cog04()
        self._scratch = scratch
        self._limit = settings.max_input_bytes
        # Whoever types a URL here sits at this machine: it may be its own.
        allowed = (*settings.allow_addresses, *OWN)
        self._uploader = Uploader.of(msgspec.structs.replace(settings, allow_addresses=allowed))
        self._uploads: PredictionUploads | None = None

    def refused(self, errors: Sequence[FieldError]) -> str:
        return render_runtime([{"field": e.field, "kind": e.kind, "limit": e.limit, "value": e.value} for e in errors])

    def started(self) -> bool:
        return True

    def answered(self) -> bool:
        return True

    def changed(self) -> int | None:
        return 0

    def lines(self, lines: list[str]) -> list[str]:
        _to_stderr(lines)
        return [line.rstrip() for line in lines]

    def fetch(self, urls: list[str], cancel: Cancel) -> list[Path]:
        folder = Path(mkdtemp(prefix="cog-celery-", dir=self._scratch))
        return inputs.fetch(urls, folder, self._uploader.client, max_bytes=self._limit, cancel=cancel)

    def upload(self, path: str, cancel: Cancel) -> str:
        if self._uploads is None:
            self._uploads = self._uploader.for_prediction("local", cancel=cancel, scratch=self._scratch)
        return self._uploads.upload(path)
