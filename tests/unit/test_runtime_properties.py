"""Whatever JSON comes: an input is accepted as its annotation says, or refused with a sentence."""

# ruff: noqa: UP006, UP035, UP045 -- types as predictors write them

from __future__ import annotations

import dataclasses
import enum
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, Dict, List, Literal, Optional, Set, TypedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from cog_celery.runtime.cog import BaseModel, File, Input, Path, Secret
from cog_celery.runtime.cog._runner import events
from cog_celery.runtime.cog._runner.rendering import render_queue, render_runtime
from cog_celery.runtime.cog._runner.signature import inspect_predict
from cog_celery.runtime.cog._runner.validation import Validator


class Color(str, enum.Enum):  # noqa: UP042 -- as predictors write them
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Options:
    text: str
    numbers: List[int] = dataclasses.field(default_factory=list)
    image: Optional[Path] = None


class Typed(TypedDict, total=False):
    number: int
    color: Color


class Model(BaseModel):
    text: str
    inner: Optional[Options]


def is_path(value: Any) -> bool:
    return isinstance(value, pathlib.PurePath)


def is_options(value: Any) -> bool:
    return (
        isinstance(value, Options)
        and isinstance(value.text, str)
        and all(type(number) is int for number in value.numbers)
        and (value.image is None or is_path(value.image))
    )


CASES: dict[str, tuple[Any, Any, Callable[[Any], bool]]] = {
    "bool": (bool, Input(), lambda v: type(v) is bool),
    "int": (int, Input(), lambda v: type(v) is int),
    "int bounded": (int, Input(ge=-5, le=5), lambda v: type(v) is int and -5 <= v <= 5),
    "float": (float, Input(), lambda v: type(v) is float),
    "float bounded": (float, Input(ge=0.5), lambda v: type(v) is float and v >= 0.5),
    "str": (str, Input(min_length=1, max_length=4, regex="[a-z]"), lambda v: type(v) is str and 1 <= len(v) <= 4),
    "str choices": (str, Input(choices=["a", "b"]), lambda v: v in ("a", "b")),
    "int choices": (int, Input(choices=[1, 2]), lambda v: type(v) is int and v in (1, 2)),
    "enum": (Color, Input(), lambda v: isinstance(v, Color)),
    "literal": (Literal[1, 2], Input(), lambda v: type(v) is int and v in (1, 2)),
    "optional": (Optional[int], Input(), lambda v: v is None or type(v) is int),
    "list": (List[float], Input(), lambda v: isinstance(v, list) and all(type(item) is float for item in v)),
    "dict": (Dict[str, int], Input(), lambda v: isinstance(v, dict) and all(type(i) is int for i in v.values())),
    "set": (Set[int], Input(), lambda v: isinstance(v, set) and all(type(item) is int for item in v)),
    "any": (Any, Input(), lambda v: True),
    "secret": (Secret, Input(), lambda v: isinstance(v, Secret) and isinstance(v.get_secret_value(), str)),
    "path": (Path, Input(), is_path),
    "paths": (List[Path], Input(), lambda v: isinstance(v, list) and all(map(is_path, v))),
    "path by name": (Dict[str, Path], Input(), lambda v: isinstance(v, dict) and all(map(is_path, v.values()))),
    "dataclass": (Options, Input(), is_options),
    "dataclasses": (List[Options], Input(), lambda v: isinstance(v, list) and all(map(is_options, v))),
    "typed dict": (Typed, Input(), lambda v: isinstance(v, dict) and type(v.get("number", 0)) is int),
    "model": (Model, Input(), lambda v: isinstance(v, Model) and (v.inner is None or is_options(v.inner))),
}

WITH_FILES = ("path", "paths", "path by name", "dataclass", "dataclasses", "model")

urls = st.sampled_from(["https://h/a", "data:,b", "ftp://user:word@h/c", "/etc/passwd", "http:", "", "data:"])
names = st.one_of(st.sampled_from(["text", "numbers", "image", "inner", "number", "color", "x"]), st.text(max_size=5))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-6, max_value=6),
    st.just(10**400),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["red", "a", "1", "1.5", "true", "no", "9" * 5000, "\ud800", "\u0661"]),
    urls,
)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


def validator(annotation: Any, info: Any) -> Validator:
    def predict(x=info) -> str:  # type: ignore[no-untyped-def]
        return ""

    predict.__annotations__["x"] = annotation
    return Validator(inspect_predict(predict, "predict", method=False))


VALIDATORS = {name: validator(annotation, info) for name, (annotation, info, _) in CASES.items()}


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(list(CASES)), anything)
def test_any_json_is_accepted_as_the_annotation_says_or_refused_with_a_sentence(name: str, value: Any) -> None:
    accepted, errors = VALIDATORS[name].validate({"x": value})
    if accepted is None:
        assert [error["field"] for error in errors] == ["x"]
        assert len(render_queue(errors).splitlines()) >= 3
        sentence = render_runtime(errors)
        assert sentence.startswith(("invalid input value: x", "missing required"))
        assert "word@h" not in sentence or name not in WITH_FILES, "no credentials of a URL"
        message = json.loads(events.refused(b'"p"', errors))
        assert message["errors"][0]["field"] == "x"
    else:
        accepted.fill([f"/tmp/{number}" for number in range(len(accepted.urls))])
        assert CASES[name][2](accepted.arguments["x"])
        accepted.close()
        if isinstance(value, float) and not math.isfinite(value):
            assert name in ("float", "float bounded", "any", "str", "secret")


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "unknown"]), anything))
def test_every_field_at_fault_is_named_once_and_what_nobody_knows_is_ignored(given_: dict[str, Any]) -> None:
    def predict(a: int, b: List[str], c: Optional[Path] = None) -> str:
        return ""

    accepted, errors = Validator(inspect_predict(predict, "predict", method=False)).validate(given_)
    if accepted is None:
        fields = [error["field"] for error in errors]
        assert fields and fields == [field for field in "abc" if field in fields]
    else:
        assert accepted.ignored == (["unknown"] if "unknown" in given_ else [])
        assert set(accepted.arguments) | {"c"} == {"a", "b", "c"}


def test_an_old_file_is_a_file_whatever_is_opened() -> None:
    accepted, _ = validator(File, Input()).validate({"x": "https://h/a"})
    assert accepted is not None and accepted.urls == ["https://h/a"]
