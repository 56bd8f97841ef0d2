"""A file of requests: how its lines are read, and what makes one a request."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from cog_celery.errors import UsageError
from cog_celery.producer import sending_many
from cog_celery.producer.sending_many import BadLine, Lines, parse


def all_of(lines: Lines) -> list[tuple[int, bytes | None]]:
    found = []
    while not lines.over:
        line = lines.next(5)
        if line is not None:
            found.append(line)
    return found


def opened(path: Path, content: bytes, max_bytes: int = 100) -> Lines:
    path.write_bytes(content)
    return Lines(os.open(path, os.O_RDONLY), max_bytes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n \n\r\n", []),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\n\nb\n", [(1, b"a"), (3, b"b")]),
        (b"x" * 100 + b"\n" + b"y" * 101 + b"\nb", [(1, b"x" * 100), (2, None), (3, b"b")]),
        (b"a\n" + b"y" * 300, [(1, b"a"), (2, None)]),
    ],
)
@pytest.mark.parametrize("read", [1, 7, 1 << 18])
def test_lines_have_their_numbers_and_too_long_ones_no_text(
    tmp_path: Path, content: bytes, expected: list[object], read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_many, "READ", read)
    assert all_of(opened(tmp_path / "file", content)) == expected


def test_a_line_without_end_is_not_kept_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(200 << 20)
    lines = Lines(os.open(tmp_path / "file", os.O_RDONLY), 1 << 20)
    tracemalloc.start()
    assert all_of(lines) == [(1, None)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_pipe_gives_its_lines_as_they_come() -> None:
    out, into = os.pipe()
    lines = Lines(out, 100)
    assert lines.next() is None and not lines.over
    os.write(into, b"one\ntw")
    assert lines.next(5) == (1, b"one")
    assert lines.next() is None and not lines.over

    def finish() -> None:
        os.write(into, b"o\n")
        os.close(into)

    timer = threading.Timer(0.05, finish)
    timer.start()
    assert lines.next(5) == (2, b"two")
    timer.join()
    assert lines.next(5) is None and lines.over


def test_a_folder_is_no_file_of_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        Lines(os.open(tmp_path, os.O_RDONLY), 100).next()


def test_a_request_keeps_its_fields_and_common_inputs_are_below_its_own() -> None:
    line = b'\xef\xbb\xbf{"id": "me", "input": {"a": 1}, "webhook": null}'
    assert parse(line, {"a": 2, "b": 3}, own_keys=False) == {"id": "me", "input": {"a": 1, "b": 3}, "webhook": None}
    assert parse(b'{"input": {}, "response_queue": "r"}', {}, own_keys=True)["response_queue"] == "r"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"input": {"a": NaN}}', "NaN is not a number"),
        (b'{"input": {"a": "\xff"}}', "not UTF-8"),
        (b"[]", "a request is needed"),
        (b'{"text": "hello"}', "a request is needed"),
        (b'{"input": null}', "a request is needed"),
        (b'{"input": {}, "response_queue": "r"}', "names a response_queue"),
        (b'{"input": {}, "cancel_key": "r"}', "names a cancel_key"),
    ],
)
def test_what_is_no_request_is_told(line: bytes, why: str) -> None:
    with pytest.raises(BadLine, match=why) as caught:
        parse(line, {}, own_keys=False)
    assert len(str(caught.value)) < 300
