from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

from cog_celery.errors import UsageError
from cog_celery.producer.given_inputs import SMALL, Files, read_inputs


def test_values_stay_text_and_keep_what_is_behind_the_first_equals_sign() -> None:
    assert read_inputs(["a=1", "b= x=y ", "c="], None) == {"a": "1", "b": " x=y ", "c": ""}


def test_a_name_given_again_makes_a_list_in_order() -> None:
    assert read_inputs(["a=1", "b=x", "a=2", "a=3"], None) == {"a": ["1", "2", "3"], "b": "x"}


def test_quotes_make_text_of_what_begins_with_an_at_sign() -> None:
    assert read_inputs(['a="@home"', 'b="'], None) == {"a": "@home", "b": '"'}


def test_a_file_becomes_a_data_uri_with_its_media_type(tmp_path: Path) -> None:
    for name, kind in (("a.jpg", "image/jpeg"), ("b.flac", "audio/flac"), ("c", "application/octet-stream")):
        (tmp_path / name).write_bytes(b"\x00\x01")
        expected = f"data:{kind};base64,{base64.b64encode(bytes([0, 1])).decode()}"
        assert read_inputs([f"file=@{tmp_path / name}"], None) == {"file": expected}


def test_a_file_that_does_not_fit_into_a_request_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "big.bin"
    file.write_bytes(b"x" * 101)
    read_inputs([f"a=@{file}"], None, Files(101))
    with pytest.raises(UsageError, match=r"big\.bin.*URL"):
        read_inputs([f"a=@{file}"], None, Files(100))


def test_with_a_place_for_files_a_small_one_is_inlined_and_a_large_one_uploaded(tmp_path: Path) -> None:
    uploaded: list[str] = []

    def upload(file: Path) -> str:
        uploaded.append(file.name)
        return f"http://files/{file.name}"

    for name, size in (("small", SMALL), ("large", SMALL + 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    pairs = [f"{name}=@{tmp_path / name}" for name in ("small", "large")]
    inputs = read_inputs(pairs, None, Files(upload=upload))
    assert inputs["large"] == "http://files/large"
    assert str(inputs["small"]).startswith("data:")
    assert uploaded == ["large"]


def test_small_files_that_do_not_fit_together_are_uploaded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 60)
    inputs = read_inputs(
        [f"a=@{tmp_path / 'a'}"] * 3, None, Files(150, upload=lambda file: f"http://files/{file.name}")
    )
    assert [str(value)[:5] for value in inputs["a"]] == ["data:", "data:", "http:"]  # type: ignore[attr-defined]


def test_json_keeps_types_and_typed_inputs_are_laid_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"n": 1, "list": [true, null], "text": "json"}'
    expected = {"n": 1, "list": [True, None], "text": "typed"}
    assert read_inputs(["text=typed"], text) == expected
    (tmp_path / "inputs.json").write_text(text)
    assert read_inputs(["text=typed"], f"@{tmp_path / 'inputs.json'}") == expected
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert read_inputs(["text=typed"], "-") == expected


@pytest.mark.parametrize(
    ("pairs", "json_text"),
    [
        (["a"], None),
        (["=1"], None),
        (["a=@"], None),
        (["a=@/"], None),
        ([], "null"),
        ([], "[" * 100_000),
        ([], '{"a": Infinity}'),
        ([], "@/nowhere.json"),
    ],
)
def test_what_cannot_be_read_is_wrong_use(pairs: list[str], json_text: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        read_inputs(pairs, json_text)
    assert len(str(caught.value)) < 300
