"""What predict() returns, as JSON and files."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import io
import json
import os
import pathlib
import tempfile
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator
from decimal import Decimal
from ipaddress import ip_address, ip_network
from typing import Any, Optional

import pytest

from cog_celery.runtime.cog import BaseModel, Path, Secret
from cog_celery.runtime.cog._runner.outputs import Encoder, Files, OutputError
from tests.support.bare_runner import BareRunner, write_model


@pytest.fixture
def files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    files = Files()
    yield files
    files.clear()
    assert os.listdir(tmp_path / "tmp") == []


@pytest.fixture
def encoder(files: Files) -> Encoder:
    return Encoder(files)


class Color(enum.Enum):
    RED = "red"


class Name(str, enum.Enum):  # noqa: UP042 -- StrEnum is younger than the oldest Python
    A = "a"


class Declared(BaseModel):
    x: int
    y: Optional[int]  # noqa: UP045 -- as predictors write it
    label: str = "none"
    tags: list[str] = []  # noqa: RUF012 -- as in models made for pydantic
    z: int  # a field without a default behind one with


Point: Any = Declared  # made in ways that type checkers would not have


@dataclasses.dataclass
class Plain:
    a: int
    b: datetime.date


class Array:
    """Looks like one of numpy's."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tolist(self) -> Any:
        return self.value


class Pydantic2:
    model_fields = {"a": None, "b": None}  # noqa: RUF012

    def __init__(self) -> None:
        self.model_fields_set = {"a"}
        self.a, self.b = Color.RED, 2


class Pydantic1:
    __fields__ = {"a": None}  # noqa: RUF012

    def __init__(self) -> None:
        self.__fields_set__ = {"a"}
        self.a = 1


class Half(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", ""),
        (0, 0),
        (False, False),
        ([], []),
        (1.5, 1.5),
        (float("nan"), None),
        ({"a": float("-inf")}, {"a": None}),
        (Half("nan"), None),
        (
            {7: "a", None: "b", True: "c", Color.RED: "d", 1.5: "e"},
            {"7": "a", "null": "b", "true": "c", "red": "d", "1.5": "e"},
        ),
        ({Name.A: Name.A}, {"a": "a"}),
        ((1, (2,)), [1, [2]]),
        ({3}, [3]),
        (frozenset({3}), [3]),
        (OrderedDict(a=1), {"a": 1}),
        (Color.RED, "red"),
        (datetime.datetime(2022, 9, 22, 14, 31, 17), "2022-09-22T14:31:17"),
        ([datetime.date(2022, 9, 22)], ["2022-09-22"]),
        (datetime.timedelta(minutes=1, milliseconds=500), 60.5),
        ([Decimal("1.50"), Decimal("3"), Decimal("1e2"), Decimal("NaN")], [1.5, 3, 100, None]),
        ({"u": uuid.UUID(int=1)}, {"u": "00000000-0000-0000-0000-000000000001"}),
        ([ip_address("::1"), ip_network("10.0.0.0/8")], ["::1", "10.0.0.0/8"]),
        ({"d": deque([1, (2,)]), "r": range(3)}, {"d": [1, [2]], "r": [0, 1, 2]}),
        (Secret("abc"), "**********"),
        ({"token": Secret("abc")}, {"token": "**********"}),
        (Point(x=1, z=3), {"x": 1, "tags": [], "z": 3}),
        (Point(x=1, y=None, z=3, label="p", tags=["t"]), {"x": 1, "y": None, "label": "p", "tags": ["t"], "z": 3}),
        (Plain(1, datetime.date(2022, 1, 2)), {"a": 1, "b": "2022-01-02"}),
        (Array([1.0, float("nan")]), [1.0, None]),
        ([Array(7)], [7]),
        (Pydantic2(), {"a": "red"}),
        (Pydantic1(), {"a": 1}),
        (map(str, [1, 2]), ["1", "2"]),
        ({"later": iter([{1}])}, {"later": [[1]]}),
        ("caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        ("\udcff", "\ufffd"),
        (["\ud83d\ude00", "\udcff"], ["\U0001f600", "\ufffd"]),
    ],
)
def test_a_value_becomes_json(encoder: Encoder, value: Any, expected: Any) -> None:
    encoded, files = encoder.encode(value)
    assert json.loads(encoded) == expected
    assert files == b""


@pytest.mark.parametrize(("levels", "wide", "fits"), [(500, 1, True), (501, 1, False), (3, 100, True)])
def test_an_output_has_levels_that_can_be_read(encoder: Encoder, levels: int, wide: int, fits: bool) -> None:
    value: Any = []
    for _ in range(levels - 1):
        value = {"a": [value] * wide} if wide > 1 else {"a": value}
    if fits:
        assert json.loads(encoder.encode(value)[0]) == value
    else:
        with pytest.raises(OutputError, match="more than 500 levels deep"):
            encoder.encode(value)


def test_json_is_compact_and_utf8(encoder: Encoder) -> None:
    assert encoder.encode({"a": ["é", 1]})[0] == '{"a":["é",1]}'.encode()


class Cycle:
    def __init__(self) -> None:
        self.it = [self]


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "An output of type object cannot be sent"),
        ([b"bytes"], "An output of type bytes cannot be sent"),
        ({"a": deque}, "An output of type type cannot be sent"),
        (CYCLE, "contains itself"),
        (Path("/nowhere/at/all"), "The output /nowhere/at/all is not a file"),
        (Path("/tmp"), "The output /tmp is not a file"),
    ],
)
def test_what_cannot_be_sent_says_what_to_return(encoder: Encoder, value: Any, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        encoder.encode(value)


def entries(encoded: bytes) -> list[tuple[list[Any], str, bytes]]:
    return [
        (entry["at"], os.path.basename(entry["path"]), pathlib.Path(entry["path"]).read_bytes())
        for entry in json.loads(encoded)
    ]


def test_files_come_in_the_order_in_which_they_appear(encoder: Encoder, tmp_path: pathlib.Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    value = {"one": [tmp_path / "b", {"x": tmp_path / "a"}], "two": (1, tmp_path / "c"), "three": tmp_path / "a"}
    encoded, files = encoder.encode(value)
    assert json.loads(encoded) == {"one": [None, {"x": None}], "two": [1, None], "three": None}
    assert entries(files) == [
        (["one", 0], "b", b"b"),
        (["one", 1, "x"], "a", b"a"),
        (["two", 1], "c", b"c"),
        (["three"], "a", b"a"),
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_a_name_that_is_no_text_becomes_one(encoder: Encoder, tmp_path: pathlib.Path, keep: bool) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    file = folder / os.fsdecode(b"caf\xe9.png")
    file.write_bytes(b"image")
    _, found = encoder.encode(Path(file), keep)
    assert entries(found) == [([], "caf\ufffd.png", b"image")]
    with file.open("rb") as opened:
        assert entries(encoder.encode(opened)[1]) == [([], "caf\ufffd.png", b"image")]


def test_a_relative_path_is_the_models(
    encoder: Encoder, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.txt").write_text("A")
    _, files = encoder.encode(Path("a.txt"))
    assert json.loads(files) == [{"at": [], "path": str(tmp_path / "a.txt")}]


def test_open_files_are_written_down_from_their_beginning(encoder: Encoder, tmp_path: pathlib.Path) -> None:
    named = io.BytesIO(b"named")
    named.name = "../sub/named.bin"
    read = io.BytesIO(b"read to its end")
    read.read()
    with (
        open(tmp_path / "written.txt", "w") as written,
        open(tmp_path / "both.txt", "w+") as both,
        tempfile.NamedTemporaryFile(suffix=".png") as temporary,
    ):
        written.write("written")
        both.write("both")
        temporary.write(b"png")
        _, files = encoder.encode([named, read, io.StringIO("téxt"), written, both, temporary])
        name = os.path.basename(temporary.name)
    assert entries(files) == [
        ([0], "named.bin", b"named"),
        ([1], "file", b"read to its end"),
        ([2], "file", "téxt".encode()),
        ([3], "written.txt", b"written"),
        ([4], "both.txt", b"both"),
        ([5], name, b"png"),
    ]


def test_a_kept_file_is_a_copy_and_equal_names_do_not_meet(encoder: Encoder, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "same.txt"
    kept = []
    for text in ("first", "second"):
        path.write_text(text)
        kept.append(encoder.encode(path, keep=True)[1])
    path.unlink()
    assert [entries(files) for files in kept] == [[([], "same.txt", b"first")], [([], "same.txt", b"second")]]


def test_a_base_model_is_made_like_a_dataclass_or_a_pydantic_model() -> None:
    assert Point(1, 2, "p", ["t"], 3) == Point(x=1, y=2, label="p", tags=["t"], z=3)
    assert Point(x=1, z=2).y is None
    assert Point(x=1, z=2).label == "none"
    first, second = Point(x=1, z=2), Point(x=1, z=2)
    first.tags.append("a")
    assert second.tags == []
    assert repr(Point(x=1, z=2)) == "Declared(x=1, y=None, label='none', tags=[], z=2)"
    for values, named in (
        ((), {"x": 1}),
        ((), {"x": 1, "z": 3, "w": 3}),
        ((1, 2, "p", [], 3, 4), {}),
        ((1,), {"x": 1}),
    ):
        with pytest.raises(TypeError):
            Point(*values, **named)


def test_bases_of_a_base_model_have_to_go_together() -> None:
    class Other:
        pass

    with pytest.raises(TypeError, match='Primary base class of "Wrong" must inherit from BaseModel'):

        class Wrong(Other, BaseModel):
            pass

    with pytest.raises(TypeError, match='Cannot mixin dataclass "Plain" while inheriting from `BaseModel`'):

        class Mixed(BaseModel, Plain):
            pass

    with pytest.raises(ValueError, match="auto_dataclass"):

        class ByHand(Declared, auto_dataclass=False):
            pass

    @dataclasses.dataclass
    class Own(BaseModel, auto_dataclass=False):
        a: int = 1

    assert Own() == Own(a=1)


NO_ROOM = """
    import io
    import resource

    from cog import BasePredictor, File


    class Predictor(BasePredictor):
        def predict(self, size: int = 2_000) -> File:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
            return io.BytesIO(bytes(size))


    async def at_once(size: int = 2_000) -> File:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
        return io.BytesIO(bytes(size))
"""


@pytest.mark.parametrize("slots", [1, 2])
def test_a_file_without_room_is_not_the_models_failure(tmp_path: pathlib.Path, slots: int) -> None:
    environment = {"COG_MAX_CONCURRENCY": str(slots), "TMPDIR": str(tmp_path)}
    with BareRunner(write_model(tmp_path, NO_ROOM), environment=environment) as runner:
        reference = "predict.py:Predictor" if slots == 1 else "predict.py:at_once"
        assert runner.load(reference, concurrency=slots)["concurrency"] == slots
        done = runner.done({})
        assert (done["status"], done["fault"]) == ("failed", "platform")
        assert done["error"] == (
            "An output file could not be stored: File too large. Make room on the worker's disk for temporary files."
        )
        assert runner.logs() == ""
        assert "fault" not in runner.done({"size": 10})
