"""The cache of input files under a whole fleet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FleetFactory
from tests.support.web import Handler, Web

CONTENT = "x" * 100_000


class Model:
    """A file with an ETag; counts how often it was sent whole."""

    def __init__(self) -> None:
        self.whole = 0

    def __call__(self, handler: Handler) -> None:
        if handler.headers["If-None-Match"] == '"1"':
            handler.raw(b"HTTP/1.1 304 Not Modified\r\n\r\n")
        else:
            self.whole += 1
            handler.answer(200, CONTENT.encode(), ETag='"1"')


@pytest.mark.ours
def test_the_slots_of_several_workers_fetch_a_file_once(fleet: FleetFactory, web: Web, tmp_path: Path) -> None:
    file = Model()
    url = web.on("/a/file.txt", file)
    served = fleet("reads_file", workers=2, slots=2, input_cache=str(tmp_path / "cache"))
    requests = [served.producer.send({"file": url}) for _ in range(8)]
    for request in requests:
        output = served.producer.wait(request)["output"]
        name, content, path = output.split(" ")
        assert (name, content) == ("file.txt", CONTENT)
        assert str(tmp_path / "cache") not in path
    assert file.whole == 1 and len(web.seen) == 8


@pytest.mark.ours
def test_nothing_of_the_cache_is_given_out(fleet: FleetFactory, tmp_path: Path) -> None:
    served = fleet("gives_out", input_cache=str(tmp_path / "cache"))
    entry = tmp_path / "cache" / ("0" * 64)
    entry.write_text("of another prediction")
    for how in ("as is", "link", "folder", "hard_link"):
        snapshot = served.producer.wait(served.producer.send({"how": how, "path": str(entry)}))
        assert snapshot["status"] == "failed"
        assert "of another prediction" not in str(snapshot)
