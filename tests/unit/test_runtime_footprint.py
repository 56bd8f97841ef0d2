"""What a runner costs a model that does nothing: modules, memory, and no asyncio unless it is async."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.bare_runner import PYTHONS, BareRunner, write_model

MEGABYTES = 4
"""At most, over a bare interpreter of the same version."""
SYNC = """
    from cog import BasePredictor

    class Predictor(BasePredictor):
        def predict(self) -> list:
            import sys

            return sorted(sys.modules)
"""
ASYNC = SYNC.replace("def predict", "async def predict")
HEAVY = {"asyncio", "dataclasses", "inspect", "ast", "traceback", "shutil", "tempfile", "threading", "socket", "ssl"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """An environment in which interpreters keep what they have compiled, as where the package is installed."""
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("compiled"))}


def modules(model: Path, python: str) -> set[str]:
    with BareRunner(model, python) as runner:
        assert runner.load()["type"] == "ready"
        return set(runner.done({})["output"])


def bare_modules(python: str) -> set[str]:
    return set(subprocess.check_output([python, "-c", "import sys; print(*sys.modules)"], text=True).split())


@pytest.mark.parametrize("version", PYTHONS)
def test_nothing_but_the_standard_library_is_imported_and_little_of_it(version: str, tmp_path: Path) -> None:
    python = PYTHONS[version]
    found = modules(write_model(tmp_path, SYNC), python) - bare_modules(python)
    tops = {name.partition(".")[0] for name in found}
    known = subprocess.check_output(
        [python, "-c", "import sys; print(*getattr(sys, 'stdlib_module_names', ''))"], text=True
    ).split()
    if known:  # since 3.10
        assert tops - set(known) == {"cog", "predict"}
    assert not tops & HEAVY
    assert not tops & {"numpy", "pydantic", "typing_extensions", "yaml"}


@pytest.mark.parametrize("version", PYTHONS)
def test_asyncio_is_there_for_models_that_are_async(version: str, tmp_path: Path) -> None:
    assert "asyncio" in modules(write_model(tmp_path, ASYNC), PYTHONS[version])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("version", PYTHONS)
def test_a_runner_of_an_empty_model_is_small(version: str, tmp_path: Path, compiled: Mapping[str, str]) -> None:
    python = PYTHONS[version]
    model = write_model(tmp_path, SYNC)
    command, environment = [python, "-u", "-c", "print(); input()"], {**os.environ, **compiled}
    for _ in range(2):  # the first one compiles
        with (
            BareRunner(model, python, compiled) as runner,
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare,
        ):
            assert bare.stdout is not None
            bare.stdout.readline()
            assert runner.load()["type"] == "ready"
            # At one moment: what they map is divided among all who do, other tests' interpreters too.
            ours, theirs = memory(runner.process.pid), memory(bare.pid)
            bare.kill()
    assert ours - theirs <= MEGABYTES * 10**6


def memory(pid: int) -> int:
    """A process's proportional set size, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss in smaps_rollup")
