"""The images of deploy/docker, built once for a test run."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cog_celery.models import interpreters
from tests.conftest import missing
from tests.support.containers import Mount, lacking
from tests.support.images import PATH, Builder, Image

ROOT = Path(__file__).parents[2]
NONE = Path("/nonexistent")
COG_IMAGE = "r8.im/somebody/model"
# What a registry is reached with, where it is not the usual one, and packages that are on this machine.
SETTINGS = ("PIP_", "UV_", "SSL_")
WHEELS = ("/opt/pypi", "/opt/pypi-more", "/opt/wheels")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """`adapter`, `worker` with workers/hello in it, `worker-on-cog` on what Cog would make, and `redis`."""
    if (what := lacking()) is not None:
        missing(what)
    if shutil.which("uv") is None:
        missing("uv")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one for all of its processes
        folder = folder.parent
    kept = folder / "images.pickle"
    with (folder / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(build(folder / "images")))
        built: dict[str, Image] = pickle.loads(kept.read_bytes())
    return built


def build(folder: Path) -> dict[str, Image]:
    folder.mkdir()
    dockerfile = ROOT / "tests/deploy/cog_image/Dockerfile"
    cog = make(dockerfile, ROOT / "tests/models", folder / "cog", {}).build("cog-image")
    builder = images_builder(folder / "ours", {COG_IMAGE: cog})
    built = {
        "adapter": builder.build("adapter"),
        "worker": builder.build("worker", MODEL="workers/hello"),
        "worker-on-cog": builder.build("worker-on-cog", COG_IMAGE=COG_IMAGE),
    }
    # Its server is this machine's own.
    return built | {"redis": Image(built["adapter"].folder)}


def images_builder(folder: Path, bases: dict[str, Image] | None = None) -> Builder:
    """For deploy/docker/Dockerfile. What stands in for the Python that comes from elsewhere is the one of the tests."""
    make_link = 'here="/opt/cog-celery/python/cpython-${CPYTHON_VERSION}-here/bin"; mkdir -p "$here"'
    replaced = {
        "pip install": "uv --version",
        "uv python install": f'{make_link} && ln -s {sys._base_executable} "$here/python3"',  # type: ignore[attr-defined]
        # Only what the tests use is compiled, which takes a third of the time.
        "uv pip install --python /opt/cog-celery/venv --no-deps": (
            "uv pip install --python /opt/cog-celery/venv --no-deps --build-constraint requirements.lock . && "
            "/opt/cog-celery/venv/bin/python -c 'import cog_celery.cli.main, cog_celery.bridge.process, "
            "cog_celery.worker.process, celery.worker.worker, celery.bin.celery, kombu.transport.redis, flower.command'"
        ),
    }
    return make(ROOT / "deploy/docker/Dockerfile", ROOT, folder, bases or {}, replaced)


def make(
    dockerfile: Path, context: Path, folder: Path, bases: dict[str, Image], replaced: dict[str, str] | None = None
) -> Builder:
    folder.mkdir(exist_ok=True)
    uv = str(shutil.which("uv"))
    cache = Path(subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip())
    cache.mkdir(parents=True, exist_ok=True)
    env = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(SETTINGS) or name.lower().endswith("_proxy")
    }
    own = {"UV_NO_CACHE": "0", "UV_CACHE_DIR": "/run/uv-cache", "UV_COMPILE_BYTECODE": "0", "UV_LINK_MODE": "copy"}
    return Builder(
        dockerfile,
        context,
        folder,
        bases={
            "debian:bookworm-slim": Image(NONE, base=[_at_home(sys.base_prefix)]),
            "python:3.12-slim-bookworm": _python(sys.version_info[:2]),
            "python:3.11-slim-bookworm": _python((3, 11)),
            "python:3.10-slim-bookworm": _python((3, 10)),
            **bases,
        },
        replaced=replaced,
        tools=[
            Mount("/run/tools/uv", Path(os.path.realpath(uv))),
            Mount("/run/uv-cache", cache, writable=True),
            *(Mount(path, Path(path)) for path in WHEELS if os.path.isdir(path)),
        ],
        env={**env, **own},
        path="/run/tools",
    )


def _python(version: tuple[int, ...]) -> Image:
    """An image with that Python in /usr/local, and ours where it was built."""
    found = interpreters.find(version)
    if found is None:
        missing(f"Python {'.'.join(map(str, version))}")
    assert found is not None
    asked = subprocess.run(
        [found.path, "-I", "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True
    )
    prefix = asked.stdout.strip()
    homes = {prefix, sys.base_prefix}
    local = [] if prefix == "/usr" else [Mount("/usr/local", Path(prefix))]
    return Image(NONE, base=[*local, *map(_at_home, sorted(homes - {"/usr"}))], env={"PATH": PATH})


def _at_home(prefix: str) -> Mount:
    """Where it was built: there it looks for its library."""
    return Mount(prefix, Path(prefix))
