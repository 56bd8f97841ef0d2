"""Beside an installed Cog 0.4.4, and beside pydantic: run when COG_PEER_PYTHON names an interpreter that has them.

Of the same predictors and inputs, what both accept is the same, and what both refuse is refused in the same words.
"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cog_celery.runtime.cog._runner.rendering import render_queue
from tests.support.bare_runner import BareRunner, write_model
from tests.support.fleet import PEER

pytestmark = pytest.mark.skipif(not PEER, reason="COG_PEER_PYTHON is not set")

DECLARED = [
    "x: int",
    "x: float",
    "x: bool",
    "x: str",
    "x: int = Input(ge=2, le=5)",
    "x: float = Input(ge=0.5)",
    "x: str = Input(min_length=2, max_length=3)",
    "x: str = Input(regex='^a.c')",
    "x: str = Input(choices=['a', 'b c'])",
    "x: int = Input(choices=[1, 2])",
    "x: int = 7",
    "x: str = Input(default='d', description='text')",
    "x: int, y: str = 'z'",
]
GIVEN: list[dict[str, Any]] = [
    {},
    *({"x": value} for value in (0, 1, 2, 3, 5, 6, -1, 1.0, 3.5, 10**20, "1", "3", "a", "abc", "ab", "b c", "", "on")),
    *({"x": value} for value in (True, False, [], [1], "true", "no", "1.5", " 3 ", "abcd")),
    {"x": {}},
    {"x": 3, "y": "w"},
    {"x": 3, "y": []},
    {"x": "q", "y": {}},
    {"x": 3, "unknown": 1},
]
PROGRAM = """
import json, sys
from cog import BasePredictor, Input
from cog.predictor import get_input_type
from pydantic import ValidationError

declared, given = json.load(sys.stdin)
answers = []
for signature in declared:
    space = {"BasePredictor": BasePredictor, "Input": Input}
    exec("class Predictor(BasePredictor):\\n    def predict(self, %s) -> str:\\n        return ''" % signature, space)
    kind = get_input_type(space["Predictor"]())
    for values in given:
        try:
            answers.append(["accepted", kind(**values).dict()])
        except ValidationError as error:
            answers.append(["refused", str(error)])
print(json.dumps(answers))
"""


@cache
def theirs() -> list[list[Any]]:
    assert PEER is not None
    ran = subprocess.run(
        [PEER, "-c", PROGRAM], input=json.dumps([DECLARED, GIVEN]), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)
    assert isinstance(answers, list)
    return answers


def ours(tmp_path: Path) -> list[list[Any]]:
    assert PEER is not None
    answers = []
    for number, signature in enumerate(DECLARED):
        source = f"from cog import *\nclass Predictor(BasePredictor):\n    def predict(self, {signature}) -> dict:\n"
        source += "        return {k: v for k, v in locals().items() if k != 'self'}\n"
        with BareRunner(write_model(tmp_path / str(number), source), PEER) as runner:
            assert runner.load()["type"] == "ready", runner.logs()
            for values in GIVEN:
                last = runner.done(values)
                if last["type"] == "refused":
                    answers.append(["refused", render_queue(last["errors"])])
                else:
                    answers.append(["accepted", last["output"]])
    return answers


def test_inputs_are_accepted_and_refused_as_the_peer_does(tmp_path: Path) -> None:
    cases = [(signature, values) for signature in DECLARED for values in GIVEN]
    different = []
    for (signature, values), our, their in zip(cases, ours(tmp_path), theirs(), strict=True):
        if our != their and not on_purpose(signature, values):
            different.append((signature, values, our, their))
    assert not different


def on_purpose(signature: str, values: dict[str, Any]) -> bool:
    """Whether the specification wants something else than the peer does."""
    kind = signature.split()[1]
    value = values.get("x")
    return kind in ("int", "int,") and isinstance(value, float) and value != int(value)


MODEL = """
    from typing import Any, List, Optional

    import pydantic

    from cog import BasePredictor, Path, Secret


    class Inner(pydantic.BaseModel):
        image: Path
        note: str = "none"


    class Options(pydantic.BaseModel):
        text: str
        number: int = 3
        images: List[Path] = []
        inner: Optional[Inner] = None
        key: Optional[Secret] = None


    class Plain(pydantic.BaseModel):
        number: int


    class Predictor(BasePredictor):
        def predict(self, options: Options, plain: Optional[Plain] = None) -> Any:
            inner = options.inner
            return {
                "release": pydantic.VERSION[:1],
                "kind": type(options).__name__,
                "images": [image.read_text() for image in options.images],
                "inner": inner and [inner.image.read_text(), inner.note],
                "key": options.key and options.key.get_secret_value(),
                "out": Inner(image=Path(__file__)),
                "number": options.number,
                "plain": plain,
            }
"""


def test_models_of_pydantic_are_inputs_and_outputs_with_their_files(tmp_path: Path) -> None:
    assert PEER is not None
    with BareRunner(write_model(tmp_path / "model", MODEL), PEER) as runner:
        assert runner.load()["type"] == "ready", runner.logs()
        options = {
            "text": "t",
            "number": "4",
            "images": ["https://h/0", "https://h/1"],
            "inner": {"image": "data:,2"},
            "key": "abc",
        }
        id = runner.begin({"options": options, "plain": {"number": "5"}})
        assert runner.receive()["files"] == ["https://h/0", "https://h/1", "data:,2"]
        for number in "012":
            (tmp_path / number).write_text(number)
        runner.send({"type": "go", "id": id, "paths": [str(tmp_path / number) for number in "012"]})
        (done,) = runner.until_over()
        assert done["status"] == "succeeded", done
        output = done["output"]
        assert output.pop("release") in ("1", "2")
        assert output == {
            "kind": "Options",
            "images": ["0", "1"],
            "inner": ["2", "none"],
            "key": "abc",
            "out": {"image": None},
            "number": 4,
            "plain": {"number": 5},
        }
        assert [entry["at"] for entry in done["files"]] == [["out", "image"]]

        (refused,) = runner.predict({"options": {"text": "t"}, "plain": {"number": "x"}})
        (error,) = refused["errors"]
        assert (error["field"], error["kind"]) == ("plain", "invalid")
        assert error["limit"].startswith("number: ")
        (refused,) = runner.predict({"options": {"text": "t", "inner": {"image": "ftp://h"}}})
        assert refused["errors"][0]["limit"].startswith("inner.image: ")
