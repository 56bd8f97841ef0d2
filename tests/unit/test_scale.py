"""The benchmark of scale: what is made of its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import BenchError
from bench.scale.forecast import idle_load, load
from bench.scale.parts import PARTS
from bench.scale.report import tables, write

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "scaling.md"
PREDICTION = {
    "server_us": 200.0,
    "executing_us": 50.0,
    "trip_us": 10.0,
    "connections": 10.0,
    "connections_per_worker": 20.0,
    "bridge_us": 400.0,
    "workers_us": 900.0,
    "trips": 5.0,
    "commands": 20.0,
    "bytes": 2500,
}
TICKET = {"bridge_us": 400.0, "server_us": 90.0, "tickets_per_second": 1500.0, "trips": 2.0}
MEMORY = {"worker_mib": 40.0, "runner_mib": 6.0, "guardian_mib": 3.0, "bridge_mib": 34.0, "memory_mib": 34.0}
FOUND: dict[str, list[dict[str, Any]]] = {
    "slots": [{"slots": n, "rate": 19.0 * n, "linear": 1.0, "ideal": 0.95, **PREDICTION} for n in (1, 2, 4, 8)],
    "fleet": [
        {"seconds": seconds, "slots_per_worker": slots, "slots": 10 * slots, "rate": 1.0, "ideal": 0.9, **PREDICTION}
        for slots in (10, 1)
        for seconds in (0.0, 0.05, 1.0, 30.0)
    ],
    "idle": [
        {
            "workers": n,
            "worker_share": 0.001,
            "server_share": n / 1e4,
            "executing_share": n / 1e6,
            "latency_ms": 2.0,
            **PREDICTION,
            **MEMORY,
        }
        for n in (10, 100)
    ],
    "queues": [
        {"queues": n, "threads": n + 1, "idle_share": 0.0, "idle_trips": 1.6, "idle_server_share": 0.0}
        | TICKET
        | MEMORY
        for n in (1, 200)
    ],
    "workers": [{"workers": n, **TICKET} for n in (1, 1000)],
    "bridges": [{"bridges": n, **TICKET} for n in (1, 2)],
    "backlog": [{"waiting": n, "workers_mib": 60.0, "rate": 2000.0, "entry_bytes": 112, **MEMORY} for n in (0, 10**6)],
}


def test_what_gpus_ask_of_redis_is_what_their_predictions_ask() -> None:
    one = load(FOUND["fleet"][2], 10_000)
    assert one.per_second == 10_000
    assert one.redis_share == pytest.approx(2.0)
    assert one.redis == 3  # each at 80 % at the most
    assert one.bridges == 5
    assert one.most == 4000
    assert one.busy_share == pytest.approx(1.0)  # 50 µs in commands and five round trips of 10 µs
    assert one.busy_most == 8000
    assert one.network == pytest.approx(0.2)
    assert one.connections == 20_000  # of 1,000 workers of ten slots


def test_what_idle_gpus_ask_is_what_more_workers_ask() -> None:
    one = idle_load(FOUND["idle"], 10_000, trip_us=1.0)
    assert one.redis_share == pytest.approx(1.0)
    assert one.redis == 2
    assert one.most == 8000
    assert one.busy_share == pytest.approx(0.06)  # a tenth of a thousandth of it in commands, and five round trips


def test_every_part_has_a_table_and_a_place_in_the_document(tmp_path: Path) -> None:
    assert set(tables(FOUND)) == {*PARTS, "forecast"}
    document, image = tmp_path / "scaling.md", tmp_path / "scaling.svg"
    document.write_text(DOCUMENT.read_text())
    write(document, image, FOUND, "2 cores")
    for name, table in tables(FOUND).items():
        assert f"<!-- {name} -->\n{table.markdown()}\n<!-- /{name} -->" in document.read_text()
    assert "<!-- machine -->2 cores<!-- /machine -->" in document.read_text()
    ElementTree.fromstring(image.read_text())


def test_the_document_holds_what_was_measured() -> None:
    """Each table is there, and the picture is well-formed."""
    for name, table in tables(FOUND).items():
        part = DOCUMENT.read_text().partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]
        assert part.startswith(table.markdown().splitlines()[0])
    ElementTree.fromstring((ROOT / "docs" / "scaling.svg").read_text())


def test_a_document_without_a_place_for_a_table_is_told_of(tmp_path: Path) -> None:
    document = tmp_path / "scaling.md"
    document.write_text("nothing")
    with pytest.raises(BenchError, match="slots"):
        write(document, tmp_path / "scaling.svg", FOUND, "")
