"""`cog-celery init`, `schema`, `install`, and `predict` with what a model offers: real runners, real environments."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cog_celery.cli import main as cli
from cog_celery.models.build import read_build
from cog_celery.models.indexes import Indexes, of_pip
from cog_celery.models.installing import MARKER, Place, place_of, python_for
from cog_celery.settings import Settings
from tests.support.bare_runner import write_model

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments of this test alone, and no index to install from but a folder of wheels."""
    cache, wheels = tmp_path / "cache", tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "greeter", "1.2")
    wheel(wheels, "volume", "3.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for variable in ("PIP_CONFIG_FILE", "UV_CONFIG_FILE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("PIP_NO_INDEX", "UV_NO_INDEX"):
        monkeypatch.setenv(variable, "1")
    for variable in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(variable, str(wheels))
    return cache


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with one module, whose VERSION is the version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cog_celery", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def working_in(folder: Path) -> list[bytes]:
    """Command lines of processes that make or use an environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_bytes())
    return [line for line in found if os.fsencode(folder) in line]


def place(model: Path) -> Place:
    return place_of(read_build(model))


# -- init


def test_what_init_writes_predicts_and_has_a_schema(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "my model"
    written = invoke("init", folder)
    assert written.exit_code == 0, written.output
    assert f"cog-celery predict '{folder}'" in written.stdout
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "cog.yaml", "predict.py"]

    predicted = invoke("predict", folder)
    assert predicted.exit_code == 0, predicted.output
    assert json.loads(predicted.stdout)["output"] == "hello world"
    assert predicted.stderr == "cog-celery: predicting with the model's test_inputs: text\ngreeting 'world'\n"

    predicted = invoke("predict", folder, "-i", "text=you", "-i", "times=2")
    assert json.loads(predicted.stdout)["output"] == "hello you hello you"
    assert "test_inputs" not in predicted.stderr

    document = json.loads(invoke("schema", folder).stdout)
    assert list(document["components"]["schemas"]["Input"]["properties"]) == ["text", "times"]


@pytest.mark.parametrize("name", ["cog.yaml", "predict.py", "README.md"])
def test_init_overwrites_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.iterdir())
    refused = invoke("init", tmp_path)
    assert refused.exit_code == 2
    assert f"has {name} already" in refused.stderr
    assert sorted(tmp_path.iterdir()) == before
    refused = invoke("init", tmp_path / name / "below")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1


# -- schema


def test_a_schema_is_printed_alone_and_setup_is_not_run(tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "model",
        """
        from cog import BasePredictor

        print("imported")


        class Predictor(BasePredictor):
            def setup(self):
                raise SystemExit("setup was run")

            def predict(self, größe: int = 3) -> str:
                return ""
        """,
    )
    printed = invoke("schema", model)
    assert printed.exit_code == 0, printed.output
    document = json.loads(printed.stdout)
    assert document["openapi"] == "3.0.2"
    assert document["components"]["schemas"]["Input"]["properties"]["größe"]["default"] == 3
    assert printed.stderr == "imported\n"
    assert '\n  "openapi"' in printed.stdout


def test_a_refused_model_has_no_schema_but_a_reason_with_its_place(tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "model",
        "from cog import BasePredictor\nclass Predictor(BasePredictor):\n    def predict(self, x): ...",
    )
    refused = invoke("schema", model)
    assert (refused.exit_code, refused.stdout) == (1, "")
    first, hint = refused.stderr.splitlines()
    assert first == "cog-celery: predict.py:3: missing type annotation for input: x"
    assert hint
    assert invoke("schema").exit_code == 2
    assert invoke("schema", tmp_path / "nowhere").exit_code == 2


def test_a_model_that_ends_when_asked_is_told_of(tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "model",
        """
        import os


        def test_inputs():
            print("about to go", flush=True)
            os._exit(7)


        def predict(text: str = "") -> str:
            return text
        """,
        "predict: predict.py:predict\n",
    )
    ended = invoke("predict", model)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert "about to go" in ended.stderr
    assert "asked for its test_inputs, and did not answer" in ended.stderr
    assert "exitcode 7" in ended.stderr


# -- test_inputs

OFFERS = """
import pathlib

from cog import BasePredictor, Path, Secret


class Predictor(BasePredictor):
    def test_inputs():
        print("making them")
        return {"file": pathlib.Path("notes.txt"), "key": Secret("a key"), "text": "b"}

    def predict(self, file: Path, key: Secret, text: str = "a") -> str:
        assert key.get_secret_value() == "a key"
        return file.read_text() + text
"""


def test_test_inputs_may_be_made_and_may_have_files_and_secrets(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", OFFERS)
    (model / "notes.txt").write_text("ä")
    predicted = invoke("predict", model)
    assert predicted.exit_code == 0, predicted.output
    snapshot = json.loads(predicted.stdout)
    assert snapshot["output"] == "äb"
    assert snapshot["logs"] == [], "what test_inputs() prints is not the prediction's"
    assert "making them" in predicted.stderr
    assert "test_inputs: file, key, text" in predicted.stderr
    assert "a key" not in predicted.output


def test_inputs_that_are_given_are_all_there_is(tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "model", "test_inputs = {'n': 5}\n\ndef predict(n: int = 1) -> int:\n    return n\n", None
    )
    (model / "cog.yaml").write_text("predict: predict.py:predict\n")
    assert json.loads(invoke("predict", model).stdout)["output"] == 5
    assert json.loads(invoke("predict", model, "--json", "{}").stdout)["output"] == 1
    (model / "predict.py").write_text("test_inputs = {'n': 10**30}\n\ndef predict(n: int) -> int:\n    return n\n")
    assert json.loads(invoke("predict", model).stdout)["output"] == 10**30
    (model / "predict.py").write_text("def predict(n: int = 1) -> int:\n    return n\n")
    assert json.loads(invoke("predict", model).stdout)["output"] == 1


@pytest.mark.parametrize(
    ("offered", "told"),
    [
        ("[1]", "test_inputs is list, not a dict"),
        ("lambda: 1 / 0", "division by zero"),
        ("{'f': open}", "cannot be sent"),
    ],
)
def test_test_inputs_that_cannot_be_used_are_one_line(tmp_path: Path, offered: str, told: str) -> None:
    model = write_model(
        tmp_path / "model", f"test_inputs = {offered}\n\ndef predict(n: int = 1) -> int:\n    return n\n"
    )
    (model / "cog.yaml").write_text("predict: predict.py:predict\n")
    refused = invoke("predict", model)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1].startswith("cog-celery: The model's test_inputs cannot be used: ")
    assert told in refused.stderr


def test_half_a_surrogate_pair_is_an_input_like_any_other() -> None:
    predicted = invoke("predict", ROOT / "workers" / "hello", "--json", '{"text": "\\ud800"}')
    assert predicted.exit_code == 0, predicted.output
    assert json.loads(predicted.stdout)["output"].startswith("hello ")


# -- install

ASKS = """
build:
  python_packages: [greeter==1.2]
  python_requirements: requirements.txt
  system_packages: [ffmpeg]
predict: predict.py:Predictor
"""
USES = """
import importlib.util

import greeter
import volume
from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, name: str = "msgspec") -> str:
        return f"{greeter.VERSION} {volume.VERSION} {importlib.util.find_spec(name)}"
"""


def asking(folder: Path, config: str = ASKS) -> Path:
    model = write_model(folder, USES, config)
    (model / "requirements.txt").write_text("volume\n")
    (model / "zipfile.py").write_text("raise SystemExit('a module of the model took the place of one of Python')")
    return model


def test_an_environment_survives_those_who_make_it_and_has_what_was_asked_for(tmp_path: Path, cache: Path) -> None:
    model = asking(tmp_path / "model")
    folder = place(model).folder
    killed = start("install", model, "--with", "pip")
    wait_for(lambda: (folder / "bin" / "python").exists())
    killed.kill()
    killed.communicate()
    wait_for(lambda: not working_in(folder))
    assert folder.exists() and not place(model).is_installed(), "what was begun does not count"
    missing = invoke("predict", model)
    assert missing.exit_code == 1
    assert missing.stderr.count("cog-celery install") == 1
    assert "No module named 'greeter'" in missing.stderr

    with open(f"{folder}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # once those are gone that the killed one had started
        second = start("install", model, "--with", "pip")
        assert second.stderr is not None
        told = [second.stderr.readline(), second.stderr.readline()]
        assert told[0] == "cog-celery: left to the image, or to you: system_packages (ffmpeg)\n"
        assert "another process makes this environment: waiting for it" in told[1]
        assert folder.exists(), "it is not touched before"
    out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, err
    assert "Installing collected packages: " in err, "pip is heard while it works"
    assert re.search(r"^greeter +1\.2$", out, re.MULTILINE)
    assert re.search(r"^volume +3\.0$", out, re.MULTILINE)
    assert {file.name for file in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}

    again = invoke("install", model)
    assert (again.exit_code, again.stdout) == (0, out)
    assert f"installed already: {folder}/bin/python" in again.stderr
    predicted = invoke("predict", model)
    assert json.loads(predicted.stdout)["output"] == "1.2 3.0 None", "and nothing of ours"
    assert predicted.stderr == ""
    assert Settings(queues=("q",), model_dir=str(model)).for_worker().python == str(folder / "bin" / "python")
    assert Settings(model_dir=str(model), python=sys.executable).for_model().python == sys.executable
    twin = asking(tmp_path / "twin")
    assert place(twin) == place(model)


def test_a_package_that_is_not_there_is_named_and_nothing_is_left(tmp_path: Path, cache: Path) -> None:
    model = asking(tmp_path / "model", ASKS.replace("greeter==1.2", "greeter==99"))
    failed = start("install", model, "--with", "pip")
    out, err = failed.communicate(timeout=PATIENCE)
    assert (failed.returncode, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith(
        "cog-celery: pip could not install what cog.yaml asks for: No matching distribution found for greeter==99. "
    )
    assert not place(model).folder.exists()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    model = asking(tmp_path / "model")
    folder = place(model).folder
    interrupted = start("install", model, "--with", "pip")
    wait_for(lambda: (folder / "bin" / "python").exists())
    interrupted.send_signal(signal.SIGINT)
    interrupted.communicate(timeout=PATIENCE)
    assert interrupted.returncode == 130
    assert not working_in(folder)
    assert not folder.exists()


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
def test_uv_installs_the_same(tmp_path: Path) -> None:
    model = asking(tmp_path / "model")
    installed = invoke("install", model)
    assert installed.exit_code == 0, installed.output
    assert installed.stdout == "greeter  1.2\nvolume   3.0\n"
    assert json.loads(invoke("predict", model).stdout)["output"] == "1.2 3.0 None"

    model = asking(tmp_path / "wrong", ASKS.replace("greeter==1.2", "greeter==99"))
    failed = invoke("install", model, "--with", "uv")
    assert failed.exit_code == 1
    assert "uv could not install what cog.yaml asks for" in failed.stderr
    assert "greeter==99" in failed.stderr.splitlines()[-1]


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
def test_uv_takes_packages_from_where_pip_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "UV_NO_INDEX", "UV_FIND_LINKS"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # the user's own pip.conf, and no uv.toml
    conf = tmp_path / "pip" / "pip.conf"
    conf.parent.mkdir()
    conf.write_text(
        "[global]\nindex-url = https://user:hidden@index.invalid/simple\nfind-links = /elsewhere\n"
        f"[install]\nno-index = true\nfind-links = {tmp_path / 'wheels'}\n"
    )
    model = asking(tmp_path / "model")
    installed = invoke("install", model, "--with", "uv")
    assert installed.exit_code == 0, installed.output
    assert installed.stdout == "greeter  1.2\nvolume   3.0\n"
    said = next(line for line in installed.stderr.splitlines() if "pip's configuration" in line)
    assert {"index-url", "find-links", "no-index"} <= set(said.rpartition(": ")[2].split(", "))
    assert "hidden" not in installed.output

    environment = {**os.environ, "UV_DEFAULT_INDEX": "https://mine.invalid"}
    assert of_pip([sys.executable], environment) == Indexes({}), "uv's own configuration comes first"
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.invalid https://b.invalid")
    found = of_pip(["/no/python", sys.executable], os.environ)
    assert found.variables["UV_INDEX"] == "https://a.invalid https://b.invalid"
    assert found.variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").touch()
    assert of_pip([sys.executable], os.environ) == Indexes({})


def test_a_python_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = next(f"3.{minor}" for minor in (9, 14) if minor != sys.version_info.minor)
    model = asking(tmp_path / "model", f"build: {{python_version: '{version}'}}\npredict: predict.py:Predictor\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    failed = invoke("install", model)
    assert failed.exit_code == 1
    assert f"asks for Python {version}, and this machine has {sys.version.split()[0]}. Install it" in failed.stderr
    assert not list(place(model).folder.parent.glob("*"))
    refused = invoke("install", model, "--with", "uv")
    assert refused.exit_code == 2
    assert "no uv on PATH" in refused.stderr


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("build: {python_packages: [a]}", "cog.yaml asks for packages that are not installed for it"),
        ("build: {python_requirements: gone.txt}", "gone.txt, which cog.yaml"),
        ("build: {python_packages: a}", "a list of requirements is needed"),
        ("build: {python_version: '3.9'}", "cog.yaml asks for Python 3.9, which is not installed for it"),
        (f"build: {{python_version: 3.{sys.version_info.minor}}}", None),
        ("build: {}", None),
    ],
)
def test_a_missing_environment_is_one_line_when_something_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config: str, told: str | None
) -> None:
    model = write_model(tmp_path / "my model", "", config)
    with caplog.at_level(logging.WARNING):
        assert python_for(model) == sys.executable
    assert len(caplog.messages) == (told is not None)
    if told is not None:
        assert told in caplog.messages[0]
        assert f"runs in {sys.executable}" in caplog.messages[0]


def test_an_environment_whose_python_has_gone_does_not_count(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "", "build: {python_packages: [a]}")
    found = place(model)
    python = Path(found.python)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert not found.is_installed()
    (found.folder / MARKER).touch()
    assert found.is_installed()
    assert python_for(model) == found.python
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    assert not found.is_installed()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = asking(tmp_path / "model")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    failed = invoke("install", model)
    assert failed.exit_code == 1
    assert "cannot be made: Not a directory" in failed.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place(model).folder.is_relative_to(tmp_path / ".cache" / "cog-celery"), "a relative one is passed over"
    assert os.environ["XDG_CACHE_HOME"] == "relative"


def test_install_needs_a_model() -> None:
    assert invoke("install").exit_code == 2
    assert invoke("install", ROOT / "tests").exit_code == 2
    assert invoke("install", "--with", "conda").exit_code == 2
