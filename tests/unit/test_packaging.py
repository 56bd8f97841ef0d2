"""What is shipped: the wheel's contents and metadata, and the lock that everybody installs from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cog_celery

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        return opened


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "cog_celery"
    files = {
        str(file.relative_to(ROOT)) for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"cog_celery/py.typed", "cog_celery/runtime/cog/_runner/__main__.py"} <= files
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"cog_celery-{cog_celery.__version__}.dist-info"
    names = wheel.namelist()
    assert f"{info}/licenses/LICENSE" in names
    with zipfile.ZipFile(str(wheel.filename)) as opened:
        metadata = opened.read(f"{info}/METADATA").decode()
        entry_points = opened.read(f"{info}/entry_points.txt").decode()
    assert "Requires-Python: >=3.11\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "cog-celery = cog_celery.cli.main:main" in entry_points


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.M)}


def test_the_lock_has_every_requirement_at_a_version_that_is_allowed() -> None:
    locked = pins()
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line} is locked at {version}: make lock"


def test_the_lock_pins_by_hash_and_names_no_place() -> None:
    for entry in re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip()):
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "://" not in LOCK
    assert not re.search(r"^\s*(-(?!-hash=)|/|\.)", LOCK, re.M)


def test_every_requirement_has_a_lower_bound() -> None:
    extras = PROJECT["optional-dependencies"].values()
    for line in [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]:
        assert any(spec.operator == ">=" for spec in Requirement(line).specifier), line
