"""A model here and now, in a runner of its own, without Redis: one prediction, or its schema.

It must not know how the result is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Literal, TypeVar

import msgspec

from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.snapshots import Cog04
from cog_celery.errors import RunnerDied, RunnerProtocolError, SetupError
from cog_celery.files import downloads, inputs
from cog_celery.files.cancel import Cancel
from cog_celery.files.input_cache import InputCache
from cog_celery.files.outputs import PredictionUploads, Uploader
from cog_celery.producer.given_inputs import data_uri
from cog_celery.runners.environment import model_environment
from cog_celery.runners.guardian import Guardian
from cog_celery.runners.runner import FieldError, Lines, Runner, RunnerCommand, Schema, TestInputs
from cog_celery.runners.wake import Wake
from cog_celery.runtime.cog._runner.rendering import render_runtime
from cog_celery.settings import Settings
from cog_celery.slots.execution import Execution

OWN = ("127.0.0.0/8", "::1")

T = TypeVar("T", Schema, TestInputs)


def predict(settings: Settings, input: dict[str, object] | None) -> tuple[dict[str, object], int]:
    """The terminal snapshot (cog-0.4) of one prediction and the exit status that says the same; logs go to standard
    error as they come, and Ctrl-C cancels. Without an input, the model's own test_inputs. Raises SetupError.
    """
    with _running(settings) as (runner, scratch), closing(Wake()) as wake:
        if input is None:
            input = _test_inputs(runner, settings.max_data_uri_bytes)
        runner.attend(wake.fileno())
        prediction = Prediction(settings.max_log_bytes)
        outlet = _LocalOutlet(settings, scratch)
        execution = Execution(
            *(runner, prediction, outlet),
            id="local",
            timeout=settings.predict_timeout,
            grace=settings.cancel_grace,
            wake=wake,
        )
        before = signal.signal(signal.SIGINT, lambda number, frame: execution.stop("canceled"))
        try:
            # ASCII: half a surrogate pair, which --json can name, has no form in UTF-8.
            execution.run(json.dumps(input).encode(), hold=False, context=None)
            execution.finish()
        finally:
            signal.signal(signal.SIGINT, before)
    snapshot: dict[str, object] = msgspec.json.decode(outlet.dialect.render(prediction))
    return snapshot, {"succeeded": 0, "canceled": 130}.get(prediction.status, 1)


def schema(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of the model, whose setup() is not run. Raises SetupError when it cannot be loaded."""
    with _running(settings, setup=False) as (runner, _):
        return _answer(runner, "schema", Schema).document


def test_inputs(settings: Settings) -> dict[str, object]:
    """What the model offers to be tried with, files as data URIs. Raises SetupError and UsageError."""
    with _running(settings, setup=False) as (runner, _):
        return _test_inputs(runner, settings.max_data_uri_bytes)


@contextmanager
def _running(settings: Settings, *, setup: bool = True) -> Iterator[tuple[Runner, str]]:
    """A runner that is ready, and a folder for its files; both are gone afterwards."""
    assert settings.model_dir is not None
    with (
        closing(Guardian()) as guardian,
        TemporaryDirectory(prefix="cog-celery-runner-", ignore_cleanup_errors=True) as scratch,
    ):
        guardian.watch_folder(scratch)
        environment, _ = model_environment(
            *(os.environ, settings.model_env, {"TMPDIR": scratch}),
            other_interpreter=settings.python != sys.executable,
        )
        command = RunnerCommand(settings.python, settings.model_dir, environment, setup=setup)
        runner = Runner(command, guardian)
        try:
            runner.setup(command, _to_stderr, settings.setup_timeout)
            yield runner, scratch
        finally:
            runner.end()


def _test_inputs(runner: Runner, max_file_bytes: int) -> dict[str, object]:
    """What the model offers, files as data URIs; nothing when it offers nothing. Raises SetupError and UsageError."""
    told = _answer(runner, "test_inputs", TestInputs)
    if told.error is not None:
        raise SetupError(f"The model's test_inputs cannot be used: {told.error}")
    if told.input is None:
        return {}
    for file in told.files:
        *outer, last = file.at
        holder: Any = told.input
        for key in outer:
            holder = holder[key]
        holder[last] = data_uri(Path(file.path), max_file_bytes)
    _to_stderr([f"cog-celery: predicting with the model's test_inputs: {', '.join(told.input) or 'none'}"])
    return told.input


def _answer(runner: Runner, question: Literal["schema", "test_inputs"], kind: type[T]) -> T:
    """The runner's answer; what it logs meanwhile goes to standard error. Raises SetupError."""
    runner.ask(question)
    try:
        while True:
            answer = None
            for message in runner.wait(None):
                if isinstance(message, Lines):
                    _to_stderr(message.lines)
                elif isinstance(message, kind):
                    answer = message
            if answer is not None:
                _to_stderr(runner.between())
                return answer
    except (RunnerDied, RunnerProtocolError) as error:
        raise SetupError(f"The model was asked for its {question}, and did not answer: {error}") from None


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
        self._cache = InputCache.of(settings)
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
        with downloads.room_for("The input files"):
            folder = Path(mkdtemp(prefix="cog-celery-", dir=self._scratch))
        client = self._uploader.client
        return inputs.fetch(urls, folder, client, max_bytes=self._limit, cancel=cancel, cache=self._cache)

    def upload(self, path: str, cancel: Cancel) -> Future[str]:
        if self._uploads is None:
            self._uploads = self._uploader.for_prediction("local", cancel=cancel, queue="local", scratch=self._scratch)
        return self._uploads.start(path)

    @property
    def all_open(self) -> bool:
        return self._uploads is None or self._uploads.all_open
