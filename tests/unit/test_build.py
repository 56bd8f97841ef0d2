"""What cog.yaml asks to be installed, whatever is in it, and the Pythons that there are for it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from cog_celery.errors import UsageError
from cog_celery.models import interpreters
from cog_celery.models.build import Build, read_build
from tests.support.bare_runner import PYTHONS

OURS = sys.version_info[:2]


def build(folder: Path, text: str) -> Build:
    (folder / "cog.yaml").write_text(text)
    return read_build(folder)


@pytest.mark.parametrize("text", ["predict: p.py:P", "build:", "build: ~", "build: {}", "build: {python_packages: ~}"])
def test_a_model_that_asks_for_nothing_needs_no_environment(tmp_path: Path, text: str) -> None:
    found = build(tmp_path, text)
    assert found == Build(tmp_path)
    assert not found.wants_packages
    assert found.python == OURS


def test_everything_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    text = """
build:
  python_version: 3.10
  python_packages:
    - torch==2.1.0 --hash=sha256:00
    - "  idna ; python_version < '3.12' "
    - ""
  python_requirements: requirements.txt
  gpu: yes
  cuda: 11.8
  system_packages: [ffmpeg, libsndfile1]
  run: [make, {command: x, mounts: []}]
  cog_runtime: true
predict: predict.py:Predictor
"""
    found = build(tmp_path, text)
    assert found.python == (3, 10), "not 3.1"
    assert found.packages == ("torch==2.1.0 --hash=sha256:00", "idna ; python_version < '3.12'")
    assert found.requirements == tmp_path / "requirements.txt"
    assert found.image == ("system_packages (ffmpeg, libsndfile1)", "run", "gpu", "cuda 11.8")


def test_keys_are_taken_over_from_anchors(tmp_path: Path) -> None:
    text = """
common: &common {python_version: "3.9", python_packages: &packages [idna]}
more: &more {gpu: true, python_version: "3.10"}
build:
  <<: [*common, *more]
  python_version: "3.12"
copy: *packages
"""
    found = build(tmp_path, text)
    assert (found.python, found.packages, found.image) == ((3, 12), ("idna",), ("gpu",))


def test_what_is_off_is_nobody_s_business(tmp_path: Path) -> None:
    assert build(tmp_path, "build: {gpu: false, system_packages: [], cuda: ~, run: }").image == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2\n", r"cog\.yaml:2: not YAML"),
        ("a: *x", r"cog\.yaml:1: not YAML: found undefined alias"),
        ("? [a]\n: b", r"cog\.yaml:1: not YAML: found unhashable key"),
        ("a: \x00", r"cog\.yaml: not YAML"),
        ("[" * 100_000, "too deep"),
        ("just text", "keys are needed"),
        ("", "keys are needed"),
        ("build: [a]", "build: keys are needed"),
        ("build: {python_version: three}", "python_version is 'three': two numbers"),
        ("build: {python_version: 3}", "two numbers"),
        ("build: {python_version: [3.11]}", "python_version: text on one line"),
        ("build: {python_version: 3.8}", "python_version is 3.8: a model runs in Python 3.9 to 3.14"),
        ("build: {python_version: 999999999999.1}", "two numbers"),
        ("build: {python_packages: numpy}", "python_packages: a list"),
        ("build: {python_packages: [{numpy: 1}]}", "python_packages: a list"),
        ('build: {python_packages: ["a\\n--index-url x"]}', "more than a line"),
        ("build: {python_requirements: [a]}", "python_requirements: text on one line"),
        ("build: &b {python_packages: *b}", "recursive"),
        ("# " + "x" * (1 << 20), "more than 1 MiB"),
    ],
)
def test_a_file_that_is_wrong_is_one_error_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build(tmp_path, text)
    assert str(tmp_path / "cog.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tag_makes_no_object(tmp_path: Path) -> None:
    made = f'!!python/object/apply:os.mkdir ["{tmp_path}/made"]'
    assert build(tmp_path, f'a: {made}\nbuild: {{python_packages: [!!python/name:os.system ""]}}') == Build(tmp_path)
    assert not (tmp_path / "made").exists()


def test_the_name_is_of_what_is_installed_and_nothing_else(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    texts = {
        "requirements.txt": "-r more/base.txt  # see there\n--constraint=pins.txt\nidna\n",
        "more/base.txt": "-r ../requirements.txt\nsix\n-r https://example.com/x.txt\n-r ${HOME}/y.txt\n",
        "pins.txt": "idna==3.7\n",
    }
    for folder in (first, second):
        (folder / "more").mkdir(parents=True)
        for name, text in texts.items():
            (folder / name).write_text(text)

    def digest(folder: Path, python: str = "3.11", packages: str = "attrs", other: str = "gpu: true") -> str:
        fields = f"python_version: '{python}', python_packages: [{packages}], python_requirements: requirements.txt"
        return build(folder, f"build: {{{fields}, {other}}}\npredict: p.py:P").digest()

    name = digest(first)
    assert digest(second) == name == digest(first, other="gpu: false")
    others = {name, digest(first, python="3.12"), digest(first, packages="attrs==25.1"), digest(first, packages="''")}
    for path, text in texts.items():
        (first / path).write_text(text + "# other\n")
        others.add(digest(first))
        (first / path).write_text(text)
    assert len(others) == 4 + len(texts)
    assert digest(first) == name


@pytest.mark.parametrize(
    "package", ["./wheels/a.whl", "-e .", "a @ file:///a", "/opt/a", "libs/a", "a.whl", "--find-links w", "../a"]
)
def test_what_lies_in_a_model_s_folder_is_not_shared_with_another(tmp_path: Path, package: str) -> None:
    one, other = Build(tmp_path / "one", packages=(package,)), Build(tmp_path / "other", packages=(package,))
    assert one.digest() != other.digest()
    url = "a @ https://example.com/a"
    assert Build(tmp_path / "one", packages=(url,)).digest() == Build(tmp_path / "other", packages=(url,)).digest()


def test_a_file_of_requirements_that_is_not_there_is_named_with_who_names_it(tmp_path: Path) -> None:
    asked = build(tmp_path, "build: {python_requirements: requirements.txt}")
    with pytest.raises(UsageError, match=r"requirements\.txt, which cog\.yaml.* names: No such file"):
        asked.digest()
    (tmp_path / "requirements.txt").write_text("-c nowhere.txt\n")
    with pytest.raises(UsageError, match=r"nowhere\.txt, which .*/requirements\.txt names: No such file"):
        asked.digest()
    os.mkfifo(tmp_path / "nowhere.txt")
    with pytest.raises(UsageError, match=r"nowhere\.txt, which .*/requirements\.txt names, is not a file"):
        asked.digest()
    (tmp_path / "requirements.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        asked.digest()
    (tmp_path / "requirements.txt").write_text("".join(f"-r {number}.txt\n" for number in range(200)))
    for number in range(200):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(UsageError, match="more than 100 files"):
        asked.digest()


def test_a_hostile_file_of_requirements_takes_no_time(tmp_path: Path) -> None:
    asked = build(tmp_path, "build: {python_requirements: requirements.txt}")
    began = time.monotonic()
    for text in (
        "-r" + " " * 1_000_000,
        "-r a" + " " * 900_000 + "b",
        " " * 1_000_000,
        "a/" * 500_000,
        "\\\n" * 500_000,
    ):
        (tmp_path / "requirements.txt").write_text(text)
        try:
            asked.digest()
        except UsageError as error:
            assert "requirements.txt" in str(error)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("version", PYTHONS)
def test_a_python_of_this_machine_is_found(version: str) -> None:
    minor = tuple(map(int, version.split(".")))
    found = interpreters.find(minor)
    assert found is not None and found.version[:2] == minor


def test_the_last_number_may_differ() -> None:
    assert interpreters.find((*OURS, 99)) == interpreters.Interpreter(sys.executable, sys.version_info[:3])


def test_what_does_not_answer_as_a_cpython_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, says in (
        ("python3.97", "echo cpython 3 9 1"),
        ("python3.98", "echo pypy 3 98 1"),
        ("python3.99", "exit 3"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sub").mkdir()
    right = tmp_path / "sub" / "python3.99"
    right.write_text("#!/bin/sh\necho cpython 3 99 1\n")
    right.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{right.parent}")
    assert interpreters.find((3, 97)) is None
    assert interpreters.find((3, 98)) is None
    assert interpreters.find((3, 99)) == interpreters.Interpreter(str(right), (3, 99, 1))
