"""The images of deploy/docker, from the commands of its Dockerfile: what they have, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT
from tests.support.compose import config
from tests.support.containers import Mount, sandbox
from tests.support.images import Image, instructions

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]

DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
WORKERS = ("worker", "worker-on-cog")


def run(image: Image, *command: str, mounts: tuple[Mount, ...] = (), user: int | None = None) -> tuple[int, str]:
    """Exit status and output of a command in a container of that image, whose file system is read-only."""
    words = sandbox(
        [*image.mounts(), *mounts],
        ["/tmp"],
        user=image.uid if user is None else user,
        workdir=image.workdir,
        hostname=None,
        init=True,
    )
    done = subprocess.run(
        [*words, *command],
        env=image.variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def test_all_of_ours_is_one_folder_that_is_the_same_in_every_image(images: dict[str, Image]) -> None:
    for name in ("adapter", *WORKERS):
        ours = images[name].folder / "opt/cog-celery"
        own = {"model-python"} if name != "adapter" else set()
        assert {path.name for path in (ours / "bin").iterdir()} == {"celery", "cog-celery", "join-fleet"} | own
        file = "venv/pyvenv.cfg"
        assert (ours / file).stat().st_ino == (images["adapter"].folder / "opt/cog-celery" / file).stat().st_ino
        assert not list(ours.rglob(".env")) and not list((images[name].folder / "src").rglob(".env"))
        assert not any(re.search("PASSWORD|SECRET|TOKEN|URL", variable) for variable in images[name].env)


def test_a_workers_health_is_asked_for_as_compose_does(images: dict[str, Image]) -> None:
    found, errors = config(ROOT, dict.fromkeys(re.findall(r"^(\w+_PASSWORD)=$", EXAMPLE, re.M), "x"))
    assert found is not None, errors
    for name in WORKERS:
        assert ["CMD", *images[name].health] == found["services"]["worker"]["healthcheck"]["test"]


def test_nobody_is_root(images: dict[str, Image]) -> None:
    assert {images[name].uid for name in ("adapter", *WORKERS)} == {10001}
    assert "ARG COG_USER=10001" in DOCKERFILE


def test_the_adapter_has_the_command_line_celery_and_flower(images: dict[str, Image]) -> None:
    status, text = run(images["adapter"], *images["adapter"].command)
    assert status == 0 and "bridge" in text
    status, text = run(images["adapter"], "celery", "-A", "cog_celery", "flower", "--help")
    assert status == 0 and "flower" in text.lower(), text
    status, text = run(images["adapter"], "/opt/cog-celery/venv/bin/python", "-I", "-c", "import pynvml, cog_celery")
    assert status == 0, text


def test_versions_are_those_of_the_lock(images: dict[str, Image]) -> None:
    locked = {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", _lock(), re.M)}
    program = (
        "import json; from importlib.metadata import distributions as all\n"
        "print(json.dumps({d.metadata['Name']: d.version for d in all()}))"
    )
    status, text = run(images["adapter"], "/opt/cog-celery/venv/bin/python", "-I", "-c", program)
    assert status == 0, text
    found = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in json.loads(text).items()}
    assert {"cog-celery", "flower", "nvidia-ml-py", "celery"} <= set(found)
    del found["cog-celery"]
    assert found == {name: locked[name] for name in found}
    assert not {"pytest", "mypy", "hatchling", "uv", "pip"} & set(found), "tools are left behind"


def test_the_models_python_comes_first_and_is_the_models_own(images: dict[str, Image]) -> None:
    for name, version in (("worker", "3.11"), ("worker-on-cog", "3.10")):
        program = "import sys; print('%d.%d' % sys.version_info[:2], sys.prefix)"
        for python in ("python3", "/opt/cog-celery/bin/model-python"):
            status, text = run(images[name], python, "-c", program)
            assert status == 0 and text.startswith(version), text
            assert "cog-celery/venv" not in text
    status, text = run(images["worker-on-cog"], "model-python", "-c", "import cog, pydantic; print(cog.__file__)")
    assert status == 0 and text.startswith("/opt/venv/"), "the image's own packages"
    status, text = run(images["worker"], "model-python", "-c", "import celery")
    assert status != 0, "and none of ours"


def test_our_python_takes_nothing_from_the_models_folder_or_its_path(images: dict[str, Image]) -> None:
    image = images["worker-on-cog"]
    assert "PYTHONPATH" in image.env and (image.folder / "src/redis.py").exists()
    assert run(image, "cog-celery", "schema")[0] == 0
    status, text = run(image, "cog-celery", "status", "--redis-url", "redis://127.0.0.1:1")
    assert status == 1 and "Redis at redis://127.0.0.1:1 cannot be reached" in text, text


@pytest.mark.parametrize(
    ("lacks", "text"),
    [
        ("cog.yaml", "there is no /src/cog.yaml: this is not the image of a Cog model"),
        ("python", "there is no python on this image's PATH (/nowhere)"),
        ("version", "a model needs CPython 3.9 to 3.14, and /fake/python is 3.8.20 (default)"),
    ],
)
def test_an_image_that_no_worker_can_run_in_is_refused_with_the_reason(
    images: dict[str, Image], tmp_path: Path, lacks: str, text: str
) -> None:
    image = images["worker-on-cog"]
    mounts: list[Mount] = []
    words = ["/bin/sh", "/opt/cog-celery/bin/join-fleet", "10001"]
    if lacks == "cog.yaml":
        mounts = [Mount("/src", tmp_path)]
    elif lacks == "python":
        words = ["/usr/bin/env", "PATH=/nowhere", *words]
    else:
        fake = tmp_path / "python"
        fake.write_text(
            '#!/bin/sh\ncase $2 in *sys.executable*) echo /fake/python ;; *sys.version\\)) echo "3.8.20 (default)" ;; '
            "*) exit 1 ;; esac\n"
        )
        fake.chmod(0o755)
        mounts = [Mount("/fake", tmp_path)]
        words.append("/fake/python")
    status, said = run(image, *words, mounts=tuple(mounts), user=0)
    assert status == 1
    assert f"join-fleet: {text}" in said


def test_stages_start_from_versions_and_the_lock_is_obeyed() -> None:
    steps = instructions(DOCKERFILE)
    bases = [text.split()[0] for name, text in steps if name == "FROM"]
    pinned = re.compile(r"python:(3\.12|\$\{PYTHON_VERSION\})-slim-bookworm|debian:bookworm-slim")
    assert all(pinned.fullmatch(base) for base in bases if base != "${COG_IMAGE}"), bases
    installs = [text for name, text in steps if name == "RUN" and "uv pip install" in text]
    assert len(installs) == 2
    assert all(re.search(r"--(build-)?constraint requirements\.lock", text) for text in installs)
    assert {text.partition("=")[0] for name, text in steps if name == "ARG"} <= {
        *("PYTHON_VERSION", "COG_IMAGE", "UV_VERSION", "CPYTHON_VERSION", "SYSTEM_PACKAGES", "MODEL", "COG_USER")
    }, "no argument is a credential: they stay in the image's history"


def test_what_is_sent_to_be_built_from_has_no_secret_of_the_folder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "what is not named is left out"
    named = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for name, text in instructions(DOCKERFILE)
        if name == "COPY" and "--from" not in text
        for source in [word for word in text.split() if not word.startswith("--")][:-1]
    }
    assert {name for name in named if not name.startswith("workers")} == {
        re.sub(r"/bin$", "", source) for source in copied if "$" not in source
    }


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
    assert hadolint is not None
    for file in sorted(ROOT.glob("deploy/**/*Dockerfile*")):
        done = subprocess.run([hadolint, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def _lock() -> str:
    return (ROOT / "requirements.lock").read_text()
