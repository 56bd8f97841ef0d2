"""Inputs against a signature: conversions, constraints, defaults, and both renderings of what is refused."""

# ruff: noqa: UP006, UP045 -- types as predictors write them

from __future__ import annotations

import enum
import os
import pathlib
from typing import Any, Callable, Dict, List, Literal, Optional  # noqa: UP035

import pytest

from cog_celery.runtime.cog import File, Input, Path, Secret
from cog_celery.runtime.cog._runner.rendering import render_queue, render_runtime
from cog_celery.runtime.cog._runner.signature import inspect_predict
from cog_celery.runtime.cog._runner.validation import Accepted, Validator

REQUIRED = object()


class Color(str, enum.Enum):  # noqa: UP042 -- StrEnum is younger than the oldest Python
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def validator(annotation: Any, default: Any = REQUIRED) -> Validator:
    """For a predictor with one input, x."""
    if default is REQUIRED:

        def predict(x) -> str:  # type: ignore[no-untyped-def]
            return "x"
    else:

        def predict(x=default) -> str:  # type: ignore[no-untyped-def,misc]
            return "x"

    predict.__annotations__["x"] = annotation
    return Validator(inspect_predict(predict, "predict", method=False))


def accepted(annotation: Any, given: dict[str, Any], default: Any = REQUIRED) -> Accepted:
    result, errors = validator(annotation, default).validate(given)
    assert result is not None, errors
    return result


def value_of(annotation: Any, value: Any, default: Any = REQUIRED) -> Any:
    return accepted(annotation, {"x": value}, default).arguments["x"]


def refused(annotation: Any, given: dict[str, Any], default: Any = REQUIRED) -> tuple[str, str]:
    """What the queue's consumers and cog-celery predict are told."""
    result, errors = validator(annotation, default).validate(given)
    assert result is None
    header, field, sentence = render_queue(errors).split("\n")
    assert (header, field) == ("1 validation error for Input", "x")
    return sentence, render_runtime(errors)


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (int, 3, 3),
        (int, 3.0, 3),
        (int, "3", 3),
        (int, " 3 ", 3),
        (int, "-7", -7),
        (int, True, 1),
        (float, 3, 3.0),
        (float, "3.5", 3.5),
        (float, "1e3", 1000.0),
        (bool, True, True),
        (bool, 0, False),
        *((bool, word, True) for word in ("true", "1", "yes", "on", "t", "y", "YES", "True")),
        *((bool, word, False) for word in ("false", "0", "no", "off", "f", "n", "Off")),
        (str, "text", "text"),
        (str, "https://not.fetched/x", "https://not.fetched/x"),
        (str, 5, "5"),
        (str, 3.5, "3.5"),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (Any, None, None),
        (dict, {"a": 1}, {"a": 1}),
        (Dict[str, int], {"a": 1}, {"a": 1}),
        (Optional[int], None, None),
        (Optional[int], "4", 4),
        (int | None, 4, 4),
        (List[int], [1, "2"], [1, 2]),
        (list[str], [], []),
        (list, [1, "a"], [1, "a"]),
        (Optional[List[float]], [1], [1.0]),
        (Optional[List[float]], None, None),
        (Color, "red", Color.RED),
        (Level, "2", Level.HIGH),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, 2], "2", 2),
        (Secret, "abc", Secret("abc")),
    ],
)
def test_a_value_is_converted_to_its_type(annotation: Any, given: Any, value: Any) -> None:
    converted = value_of(annotation, given)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("annotation", "given", "sentence", "line"),
    [
        (int, "x", "value is not a valid integer (type=type_error.integer)", "x='x' is not a valid int"),
        (int, "3.0", "value is not a valid integer (type=type_error.integer)", "x='3.0' is not a valid int"),
        (int, 3.5, "value is not a valid integer (type=type_error.integer)", "x=3.5 is not a valid int"),
        (int, float("inf"), "value is not a valid integer (type=type_error.integer)", "x=inf is not a valid int"),
        (int, [], "value is not a valid integer (type=type_error.integer)", "x=[] is not a valid int"),
        (float, "y", "value is not a valid float (type=type_error.float)", "x='y' is not a valid float"),
        (float, {}, "value is not a valid float (type=type_error.float)", "x={} is not a valid float"),
        (
            bool,
            "maybe",
            "value could not be parsed to a boolean (type=type_error.bool)",
            "x='maybe' is not a valid bool",
        ),
        (bool, 2, "value could not be parsed to a boolean (type=type_error.bool)", "x=2 is not a valid bool"),
        (str, [], "str type expected (type=type_error.str)", "x=[] is not a valid str"),
        (str, {}, "str type expected (type=type_error.str)", "x={} is not a valid str"),
        (str, None, "none is not an allowed value (type=type_error.none.not_allowed)", "x=None must not be null"),
        (dict, [], "value is not a valid dict (type=type_error.dict)", "x=[] is not a valid dict"),
        (list[int], 1, "value is not a valid list (type=type_error.list)", "x=1 is not a valid list"),
        (
            list[int],
            [1, "b"],
            "value is not a valid integer (type=type_error.integer)",
            "x=[1, 'b'] is not a valid int",
        ),
        (Secret, ["abc"], "str type expected (type=type_error.str)", "x=********** is not a valid str"),
        (
            Color,
            "green",
            "value is not a valid enumeration member; permitted: 'red', 'blue' "
            "(type=type_error.enum; enum_values=[<x.red: 'red'>, <x.blue: 'blue'>])",
            "x='green' does not match choices ['red', 'blue']",
        ),
        *(
            (
                Path,
                url,
                f"'{scheme}' is not a valid URL scheme. 'data', 'http', or 'https' is supported. (type=value_error)",
                f"x='{shown}' is no URL of scheme data, http or https",
            )
            for url, scheme, shown in (
                ("ftp://user:password@host/y", "ftp", "ftp:…"),
                ("FILE:///etc/passwd", "file", "file:…"),
                ("/etc/passwd?signature=1", "", "/etc/passwd"),
                ("", "", ""),
            )
        ),
    ],
)
def test_a_value_of_another_type_is_refused(annotation: Any, given: Any, sentence: str, line: str) -> None:
    assert refused(annotation, {"x": given}) == (f"  {sentence}", f"invalid input value: {line}")


@pytest.mark.parametrize(
    ("annotation", "info", "given", "sentence", "line"),
    [
        (
            int,
            {"ge": 10},
            1,
            "ensure this value is greater than or equal to 10 (type=value_error.number.not_ge; limit_value=10)",
            "x=1 fails constraint >= 10.0",
        ),
        (
            float,
            {"le": 1.5},
            "2",
            "ensure this value is less than or equal to 1.5 (type=value_error.number.not_le; limit_value=1.5)",
            "x='2' fails constraint <= 1.5",
        ),
        (
            float,
            {"le": 1e20},
            float("nan"),
            "ensure this value is less than or equal to 1e+20 (type=value_error.number.not_le; limit_value=1e+20)",
            "x=nan fails constraint <= 1e+20",
        ),
        (
            List[int],
            {"ge": 0},
            [-1],
            "ensure this value is greater than or equal to 0 (type=value_error.number.not_ge; limit_value=0)",
            "x=[-1] fails constraint >= 0.0",
        ),
        (
            str,
            {"min_length": 2, "regex": "^a"},
            "b",
            "ensure this value has at least 2 characters (type=value_error.any_str.min_length; limit_value=2)",
            "x='b' fails constraint len() >= 2",
        ),
        (
            str,
            {"max_length": 2},
            "abc",
            "ensure this value has at most 2 characters (type=value_error.any_str.max_length; limit_value=2)",
            "x='abc' fails constraint len() <= 2",
        ),
        (
            str,
            {"regex": "^a"},
            "ba",
            'string does not match regex "^a" (type=value_error.str.regex; pattern=^a)',
            "x='ba' does not match regex '^a'",
        ),
        (
            str,
            {"choices": ["a", "x y"]},
            "z",
            "value is not a valid enumeration member; permitted: 'a', 'x y' "
            "(type=type_error.enum; enum_values=[<x.a: 'a'>, <x.x y: 'x y'>])",
            "x='z' does not match choices ['a', 'x y']",
        ),
        (
            int,
            {"choices": [1, 2]},
            3,
            "value is not a valid enumeration member; permitted: 1, 2 "
            "(type=type_error.enum; enum_values=[<x.1: 1>, <x.2: 2>])",
            "x=3 does not match choices [1, 2]",
        ),
        (
            int,
            {"choices": [1, 2]},
            "z",
            "value is not a valid integer (type=type_error.integer)",
            "x='z' is not a valid int",
        ),
    ],
)
def test_a_value_beyond_its_limits_is_refused(
    annotation: Any, info: dict[str, Any], given: Any, sentence: str, line: str
) -> None:
    assert refused(annotation, {"x": given}, Input(**info)) == (f"  {sentence}", f"invalid input value: {line}")


def test_a_missing_input_is_named() -> None:
    assert refused(int, {}) == ("  field required (type=value_error.missing)", "missing required input field: x")


def test_several_fields_at_fault_are_listed_in_order_with_their_number() -> None:
    def predict(a: int, b: int = 1, c: float = 1.0) -> str:
        return ""

    result, errors = Validator(inspect_predict(predict, "predict", method=False)).validate({"c": "x", "b": "y"})
    assert result is None
    assert render_queue(errors) == (
        "3 validation errors for Input\n"
        "a\n  field required (type=value_error.missing)\n"
        "b\n  value is not a valid integer (type=type_error.integer)\n"
        "c\n  value is not a valid float (type=type_error.float)"
    )
    assert render_runtime(errors) == (
        "missing required input field: a\ninvalid input value: b='y' is not a valid int\n"
        "invalid input value: c='x' is not a valid float"
    )


def test_null_skips_all_limits_of_an_optional_input() -> None:
    assert value_of(Optional[int], None, Input(default=5, ge=3)) is None


@pytest.mark.parametrize("value", ["9" * 5000, 10**400, "1" * 10**6])
def test_numbers_without_end_cost_nothing_and_are_refused(value: Any) -> None:
    assert refused(float if isinstance(value, int) else int, {"x": value})


def test_a_refused_value_is_shown_up_to_a_length() -> None:
    _, line = refused(int, {"x": "y" * 10**6})
    assert len(line) < 1100 and "…" in line


def test_defaults_are_converted_and_what_can_change_is_made_afresh() -> None:
    assert accepted(float, {}, 5).arguments["x"] == 5.0
    assert accepted(Optional[int], {}).arguments["x"] is None
    check = validator(list[int], Input(default=[1]))
    first = check.validate({})[0]
    assert first is not None
    first.arguments["x"].append(2)
    second = check.validate({})[0]
    assert second is not None and second.arguments["x"] == [1]
    made: list[int] = []
    factory: Callable[[], Any] = lambda: made.append(1) or len(made)  # type: ignore[func-returns-value]  # noqa: E731
    check = validator(int, Input(default_factory=factory))
    assert [result.arguments["x"] for result, _ in (check.validate({}), check.validate({})) if result] == [1, 2]


def test_a_default_that_cannot_be_made_is_the_inputs_fault() -> None:
    def broken() -> Any:
        raise OSError("no disk")

    sentence, line = refused(int, {}, Input(default_factory=broken))
    assert sentence == "  its default cannot be made: OSError('no disk') (type=value_error)"
    assert line == "invalid input value: x: its default cannot be made: OSError('no disk')"


def test_ellipsis_is_no_default() -> None:
    assert refused(int, {}, Input(..., ge=1))[1] == "missing required input field: x"


def test_a_default_and_a_factory_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="Cannot specify both 'default' and 'default_factory' parameters"):
        Input(default=1, default_factory=int)


@pytest.mark.parametrize("annotation", [Path, pathlib.Path, os.PathLike])
def test_files_are_made_from_local_paths(annotation: Any) -> None:
    result = accepted(list[annotation], {"x": ["https://h/a", "data:,b"]})
    assert result.urls == ["https://h/a", "data:,b"]
    result.fill(["/tmp/a", "/tmp/b"])
    assert result.closing == []
    assert result.arguments["x"] == [pathlib.Path("/tmp/a"), pathlib.Path("/tmp/b")]
    assert isinstance(result.arguments["x"][0], pathlib.PurePath)


def test_a_default_url_is_fetched_and_a_default_path_is_the_models() -> None:
    assert accepted(Path, {}, "https://h/default.png").urls == ["https://h/default.png"]
    local = accepted(Path, {}, "examples/a.png")
    local.fill([])
    assert local.urls == []
    assert local.arguments["x"] == Path("examples/a.png")


def test_an_old_file_input_is_opened_and_returned_for_closing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("content")
    result = accepted(File, {"x": "https://h/a"})
    result.fill([str(tmp_path / "a")])
    opened = result.arguments["x"]
    assert opened.read() == b"content"
    result.close()
    assert opened.closed


def test_a_secret_is_shown_nowhere() -> None:
    secret = value_of(Secret, "abc")
    assert (str(secret), repr(secret), f"{secret}", secret.get_secret_value()) == (*["**********"] * 3, "abc")
