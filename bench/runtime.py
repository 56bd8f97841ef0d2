"""What the runtime itself costs: its start, its memory, the validation of an input, a trip to the runner and back.

It must not know queues or servers: a runner is driven over its pipes by the worker's own class for it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from cog_celery.runners.guardian import Guardian
from cog_celery.runners.runner import MAIN, Done, Runner, RunnerCommand

from . import BenchError
from .phases import Figures
from .procfs import memory_bytes

_MODEL = Path(__file__).parent / "models" / "noop"
_TRIPS = 500
_STARTS = 9
_PATIENCE = 10.0

_BARE = "print(flush=True); input()"
_IMPORT = f"""
import sys, time
sys.path.insert(0, {str(MAIN.parents[2])!r})
started = time.perf_counter()
import cog._runner.main
print(time.perf_counter() - started)
"""
_VALIDATE = f"""
import statistics, sys, time
from typing import List, Optional
sys.path.insert(0, {str(MAIN.parents[2])!r})
from cog import Input, Secret
from cog._runner.signature import inspect_predict
from cog._runner.validation import Validator

def predict(
    prompt: str = Input(min_length=1, max_length=999), negative: str = "", steps: int = Input(default=30, ge=1, le=99),
    width: int = Input(default=512, ge=64, le=2048), height: int = Input(default=512, ge=64, le=2048),
    scale: float = Input(default=7.5, ge=0, le=20), scheduler: str = Input(default="a", choices=["a", "b", "c"]),
    seed: Optional[int] = None, tags: List[str] = Input(default=[]), tiled: bool = False,
) -> str:
    return ""

validate = Validator(inspect_predict(predict, "predict", method=False)).validate
given = dict(
    prompt="a photograph of an astronaut", negative="blurry", width=768, height=1024, steps=50, scale=8,
    scheduler="b", seed=42, tags=["x", "y"], tiled=True,
)
assert validate(given)[0] is not None
times = []
for _ in range(200):
    started = time.perf_counter()
    for _ in range(50):
        validate(given)
    times.append((time.perf_counter() - started) / 50)
print(statistics.median(times))
"""


def measure() -> Figures:
    """Seconds are in ms, but for the two that are in µs; memory in MB. Raises BenchError."""
    return {
        "runtime_import": _median_of(_IMPORT) * 1e3,
        "runtime_validate": float(_run(_VALIDATE)) * 1e6,
        **_trips(),
    }


def _median_of(program: str) -> float:
    _run(program)  # compiles
    return statistics.median(float(_run(program)) for _ in range(_STARTS))


def _run(program: str) -> str:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BenchError(f"the runtime could not be measured: {ran.stderr.strip()}")
    return ran.stdout


def _trips() -> Figures:
    guardian = Guardian()
    command = RunnerCommand(sys.executable, str(_MODEL), dict(os.environ))
    runner = Runner(command, guardian)
    try:
        runner.setup(command, lambda lines: None, _PATIENCE)
        memory = memory_bytes([runner.pid]) - _bare_memory()
        times = [_trip(runner, str(number)) for number in range(_TRIPS)]
    finally:
        runner.end()
    return {"runtime_trip": statistics.median(times) * 1e6, "runtime_memory": memory / 1e6}


def _trip(runner: Runner, id: str) -> float:
    started = time.perf_counter()
    runner.predict(id, b'{"text": "x"}')
    while True:
        for message in runner.wait(_PATIENCE):
            if isinstance(message, Done):
                return time.perf_counter() - started
        if time.perf_counter() - started > _PATIENCE:
            raise BenchError("a runner does not answer")


def _bare_memory() -> int:
    with subprocess.Popen([sys.executable, "-u", "-c", _BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
        assert bare.stdout is not None
        bare.stdout.readline()
        memory = memory_bytes([bare.pid])
        bare.kill()
    return memory
