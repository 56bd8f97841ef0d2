"""Every model of workers/ in a fleet, in an environment of its own: its test_inputs give what its expected.json says.

Those that need nothing but Python run always. TEST_MODELS=small adds those whose environments have less than 200 MB,
TEST_MODELS=all the rest: `make test-models`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cog_celery.models.build import read_build
from cog_celery.models.installing import python_for
from tests.conftest import FleetFactory
from tests.support.bare_runner import BareRunner
from tests.support.fleet import ROOT, Fleet
from tests.support.web import Web, reply
from tests.workers.expectations import differences

pytestmark = pytest.mark.ours

FOLDER = ROOT / "workers"
MODELS = sorted(path.parent.name for path in FOLDER.glob("*/cog.yaml"))
LARGE = {"ocr"}
"""200 MB and more."""
WANTED = os.environ.get("TEST_MODELS", "")
assert WANTED in ("", "small", "all"), f"TEST_MODELS is {WANTED!r}, not small or all"

LARGEST_FILE = 100_000
SLOW = 300
"""Seconds, where packages are downloaded."""
MAGIC = {
    "audio/wav": rb"RIFF....WAVE",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/svg+xml": rb"<svg .*</svg>\s*\Z",
}


def is_light(model: str) -> bool:
    return not read_build(FOLDER / model).wants_packages


def is_wanted(model: str) -> bool:
    return WANTED == "all" or is_light(model) or (WANTED == "small" and model not in LARGE)


RUN = [model for model in MODELS if is_wanted(model)]


def inputs_of(web: Web, model: Path) -> dict[str, Any]:
    """The model's test_inputs; their files are on the server."""
    with BareRunner(model, python_for(model)) as runner:
        ready = runner.load(setup=False)
        assert ready["type"] == "ready", runner.logs()
        runner.send({"type": "test_inputs"})
        answer = runner.receive()
    assert answer["error"] is None and answer["input"] is not None, f"{model.name} offers no test_inputs: {answer}"
    given: dict[str, Any] = answer["input"]
    for number, file in enumerate(answer["files"]):
        *outer, last = file["at"]
        holder: Any = given
        for key in outer:
            holder = holder[key]
        path = Path(file["path"])
        holder[last] = web.on(f"/in/{number}/{path.name}", reply(200, path.read_bytes()))
    return given


def uploaded(web: Web, url: str) -> str | None:
    """The MIME type that a file was uploaded with, which must be what is in it."""
    for seen in web.seen:
        if seen.method == "PUT" and web.url + seen.target == url:
            kind = seen.headers["Content-Type"]
            assert re.match(MAGIC[kind], seen.body, re.DOTALL), f"{url} is no {kind}: {seen.body[:40]!r}"
            return kind
    return None


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        web.on("*", reply(201))
        yield web


def serve(fleet: FleetFactory, web: Web, model: str) -> Fleet:
    """A fleet of the model, after `cog-celery install` if it asks for packages."""
    folder = FOLDER / model
    if not is_light(model):
        command = [sys.executable, "-m", "cog_celery", "install", str(folder)]
        installing = subprocess.run(command, capture_output=True, text=True, check=False)
        assert installing.returncode == 0, installing.stderr
    # Whoever tries to download weights anyway does not wait for it.
    return fleet(folder, upload_url=f"{web.url}/out/", env={"HF_HUB_OFFLINE": "1"})


@pytest.mark.timeout(SLOW)
@pytest.mark.parametrize("model", RUN)
def test_a_model_gives_what_it_promises(model: str, fleet: FleetFactory, web: Web) -> None:
    made = serve(fleet, web, model)
    input = inputs_of(web, FOLDER / model)
    snapshot = made.producer.predict(input, timeout=60)
    assert snapshot["status"] == "succeeded", snapshot
    expected = json.loads((FOLDER / model / "expected.json").read_text())
    assert not list(differences(expected, snapshot["output"], lambda url: uploaded(web, url)))


def test_babble_is_read_while_it_speaks_and_says_the_same_for_a_seed(fleet: FleetFactory, web: Web) -> None:
    made = serve(fleet, web, "babble")
    input = {"prompt": "The class", "words": 20, "seed": 3}
    slow = made.producer.send({**input, "pause": 0.05})
    early = made.producer.wait_for(slow, lambda response: bool(response["output"]))
    assert early["status"] == "processing"
    words = made.producer.wait(slow)["output"]
    assert len(early["output"]) < len(words) == 21
    assert words[: len(early["output"])] == early["output"]
    assert made.producer.predict(input)["output"] == words
    assert made.producer.predict({**input, "seed": 4})["output"] != words


@pytest.mark.parametrize("model", MODELS)
def test_a_model_s_folder_is_complete(model: str) -> None:
    folder = FOLDER / model
    text = (folder / "README.md").read_text()
    assert text.startswith(f"# {model}\n")
    assert "licence" in text.lower()
    assert f"cog-celery predict workers/{model}" in text
    assert f"[{model}]({model}/README.md)" in (FOLDER / "README.md").read_text()
    assert (folder / "expected.json").is_file()
    too_large = [path.name for path in folder.iterdir() if path.is_file() and path.stat().st_size >= LARGEST_FILE]
    assert not too_large
    build = read_build(folder)
    if build.requirements is not None:
        loose = [line for line in build.requirements.read_text().splitlines() if not re.search(r">=[^,]+,<\d", line)]
        assert not loose, "each needs a lower and an upper bound"


EXPECTED = {
    "n": 1.0,
    "text": "a",
    "files": [{"$file": "image/png"}],
    "words": {"$length": 2, "$each": {"$pattern": "a+"}},
}
GIVEN = {"n": 1.01, "text": "a", "files": ["http://x/1.png"], "words": ["a", "aa"]}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({}, []),
        ({"n": 1.1}, ["output.n"]),
        ({"n": True}, ["output.n"]),
        ({"text": "b"}, ["output.text"]),
        ({"files": ["http://x/1.jpg"]}, ["output.files[0]"]),
        ({"files": []}, ["output.files"]),
        ({"words": ["a", "b"]}, ["output.words[1]"]),
        ({"words": ["a"]}, ["output.words"]),
        ({"words": None}, ["output.words", "output.words"]),
        ({"more": 1}, ["output"]),
    ],
)
def test_what_differs_from_what_is_expected_is_found(change: dict[str, Any], where: list[str]) -> None:
    found = differences(EXPECTED, {**GIVEN, **change}, {"http://x/1.png": "image/png"}.get)
    assert [line.partition(": ")[0] for line in found] == where
