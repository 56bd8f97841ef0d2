"""Every predictor of tests/corpus: what it does, or why it is refused.

All of them run under our own interpreter and under the oldest, the others share them out among themselves.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.support.bare_runner import PYTHONS, RUNTIME
from tests.support.corpus import CASES, FOLDER, Case, outcome

SECONDS = 60
"""For all of them under one interpreter; it takes 3."""
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [version for version in list(PYTHONS)[1:] if version != OURS]


def share(version: str) -> list[Case]:
    """The cases that are run under an interpreter."""
    able = [case for case in CASES if numbers(case.python) <= numbers(version)]
    if version not in OTHERS:
        return able
    return [case for number, case in enumerate(able) if number % len(OTHERS) == OTHERS.index(version)]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@cache
def heard(version: str, scratch: str) -> dict[str, dict[str, Any]]:
    """All of an interpreter's results, by the name of the case."""
    cases = json.dumps([case.for_driver() for case in share(version)])
    command = [PYTHONS[version], str(FOLDER / "driver.py"), str(RUNTIME), scratch]
    ran = subprocess.run(command, input=cases, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    return {result["name"]: result for result in results}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {version: str(tmp_path_factory.mktemp(f"corpus-{version}")) for version in PYTHONS}


@pytest.mark.parametrize(
    ("case", "version"),
    [pytest.param(case, version, id=f"{case.name}-{version}") for version in PYTHONS for case in share(version)],
)
def test_a_predictor_does_what_its_first_lines_say(case: Case, version: str, scratch: dict[str, str]) -> None:
    result = heard(version, scratch[version])[case.name]
    loaded = result["loaded"]
    if case.refused is not None or case.raised is not None:
        assert (loaded["type"], loaded.get("kind")) == ("setup_failed", "raised" if case.raised else "refused"), result
        if case.raised is not None:
            assert loaded["error"] == case.raised
        else:
            said, _, hint = loaded["error"].partition("\n")
            assert hint, "it says what to write instead"
            place = re.match(r"(?:([\w.]+)(?::(\d+))?: )?", said)
            assert place is not None
            assert said[place.end() :] == case.refused
            if case.line is not None:
                assert place.groups() == ("predict.py", str(case.line))
    else:
        assert loaded["type"] == "ready", (loaded, result["log"])
        assert [outcome(messages) for messages in result["heard"]] == [expected for _, expected in case.steps]
        assert loaded["concurrency"] == case.granted
        assert loaded["test_inputs"]["input"] == case.test_inputs, loaded["test_inputs"]
        for path, expected in case.schema.items():
            part = loaded["schema"]["components"]["schemas"]
            for key in path.split("."):
                part = part[key]
            assert part == expected, path
    for text in case.logs:
        assert text in result["log"]


def test_there_are_enough_and_each_says_something() -> None:
    assert len(CASES) >= 150
    assert len({case.title for case in CASES}) == len(CASES), "each shows something else"
    for case in CASES:
        bad = case.refused is not None or case.raised is not None
        assert bad == case.name.startswith("bad/"), case.name
        assert bad or case.steps or case.schema or case.test_inputs, case.name
