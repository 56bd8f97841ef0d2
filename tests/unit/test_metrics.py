"""What a worker counts, how far the model's own metrics go, GPUs' figures, and the server that gives it all out."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cog_celery.delivery.finished import Finished, Upload
from cog_celery.delivery.presence import About, SlotSeen
from cog_celery.errors import UsageError
from cog_celery.gpus.finding import Device
from cog_celery.gpus.monitor import Monitor
from cog_celery.telemetry import metrics
from cog_celery.telemetry.metrics import MOST_MODEL_METRICS, BridgeMetrics, MetricsServer, WorkerMetrics
from tests.support.gpus import Machine, uuid, without_nvml
from tests.support.processes import wait_until
from tests.support.servers import free_port

SLOTS = (SlotSeen("idle"), SlotSeen("busy"))
ABOUT = About(role="worker", name="w", version="0", state="ready", model="m", slots=SLOTS)
ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(text: str) -> Samples:
    """Every sample by its name and labels, `queue` left out."""
    return {
        (sample.name, frozenset(item for item in sample.labels.items() if item[0] != "queue")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> WorkerMetrics:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return WorkerMetrics("q", lambda: ABOUT, lambda: True, Monitor())


@pytest.fixture
def server(worker: WorkerMetrics) -> Iterator[MetricsServer]:
    server = MetricsServer(free_port(), worker.registry)
    yield server
    server.close()


def get(server: MetricsServer) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        return scraped(answer.read().decode())


def finished(outcome: Any = "succeeded", own: object = None, **fields: Any) -> Finished:
    now = time.time()
    return Finished(
        queue="q",
        slot=0,
        id="secret-id",
        entry=f"{int((now - 2) * 1000)}-0",
        attempt=1,
        outcome=outcome,
        received=now,
        ended=now + 1,
        metrics=None if own is None else msgspec.Raw(own if isinstance(own, bytes) else json.dumps(own).encode()),
        **fields,
    )


def key(name: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"cog_celery_{name}", frozenset(labels.items())


def test_a_delivery_is_counted_by_outcome_and_its_times_are_observed(
    worker: WorkerMetrics, server: MetricsServer
) -> None:
    uploads = (Upload(0.0, 0.25, 7, True),)
    worker.finished(finished(predict_time=0.3, uploads=uploads, fetching=(0.0, 0.5), bytes_in=10, bytes_out=20))
    worker.finished(finished("failed", fault="platform", bytes_in=1))
    worker.finished(finished("stale", bytes_in=1))
    seen = get(server)
    assert seen[key("predictions_total", outcome="succeeded", fault="")] == 1
    assert seen[key("predictions_total", outcome="failed", fault="platform")] == 1
    assert seen[key("predictions_total", outcome="stale", fault="")] == 1
    assert (seen[key("received_bytes_total")], seen[key("sent_bytes_total")]) == (12, 20)
    for name, total, count in (("predict", 0.3, 1), ("upload", 0.25, 1), ("fetch", 0.5, 1), ("time_in_queue", 4, 2)):
        assert seen[key(f"{name}_seconds_count")] == count, name
        assert seen[key(f"{name}_seconds_sum")] == pytest.approx(total, abs=0.1), name
    assert seen[key("overhead_seconds_count")] == 2
    assert seen[key("predict_seconds_bucket", le="0.25")] == 0 and seen[key("predict_seconds_bucket", le="0.5")] == 1
    assert {key("predict_seconds_bucket", le=bound) for bound in ("0.001", "3600.0", "+Inf")} <= set(seen)
    assert not any("secret-id" in value for _, labels in seen for _, value in labels)


def test_a_scrape_says_what_the_worker_is_about(worker: WorkerMetrics, server: MetricsServer) -> None:
    worker.set_up(12.0)
    worker.restarted(3.0)
    seen = get(server)
    assert seen[key("slots", state="idle")] == seen[key("slots", state="busy")] == 1
    assert seen[key("slots", state="restarting")] == 0
    assert (seen[key("runner_restarts_total")], seen[key("setup_seconds_sum")]) == (1, 15)
    assert seen[key("redis_up")] == seen[key("worker_ready")] == 1
    assert ("process_resident_memory_bytes", frozenset()) in seen


def test_a_model_that_records_ten_thousand_names_gets_a_few_of_them(
    worker: WorkerMetrics, server: MetricsServer
) -> None:
    for number in range(1000):
        worker.finished(finished(own={f"metric {number}/{part}": part for part in range(10)}))
    seen = get(server)
    assert len(seen) < 400, "series, whatever ids and names there were"
    assert sum(name == "cog_celery_model_metric_count" for name, _ in seen) == MOST_MODEL_METRICS
    assert seen[key("model_metric_sum", name="metric_0_7")] == 7
    assert seen[key("model_metrics_left_out_total")] == 10_000 - MOST_MODEL_METRICS


@pytest.mark.parametrize(
    ("own", "left_out"),
    [
        ({"text": "4111111111111111", "list": [1], "flag": True, "none": None, "fine": 1.5}, 4),
        (b'{"fine": 1.5, "big": 1e999}', 1),
        ({"fine": 1.5, "x" * 100_000: 1}, 1),
        (b"[1]", 1),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 1),
        ({'n\n"} 1\nx{': 2}, 0),
    ],
    ids=["no numbers", "infinite", "large", "no object", "deep", "hostile name"],
)
def test_of_the_models_own_metrics_only_numbers_are_shown(
    worker: WorkerMetrics, server: MetricsServer, own: object, left_out: int
) -> None:
    worker.finished(finished(own=own))
    seen = get(server)
    assert seen[key("model_metrics_left_out_total")] == left_out
    names = {dict(labels).get("name") for name, labels in seen if name == "cog_celery_model_metric_sum"}
    assert names <= {"fine", "n_1_x_"}


def test_a_port_that_is_taken_is_wrong_use(worker: WorkerMetrics, server: MetricsServer) -> None:
    with pytest.raises(UsageError, match=f"--metrics-port {server.port}: address already in use; each process"):
        MetricsServer(server.port, worker.registry)


def test_clients_that_say_nothing_keep_nobody_out_for_long(
    monkeypatch: pytest.MonkeyPatch, server: MetricsServer
) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.3)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(metrics.MOST_CLIENTS + 4)]

    def answered() -> bool:
        try:
            return bool(get(server))
        except (urllib.error.URLError, ConnectionError):
            return False

    wait_until(answered, "an answer", 5)
    for connection in silent:
        connection.close()


def test_without_redis_a_bridge_says_so_within_a_second() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        for port in (free_port(), deaf.getsockname()[1]):
            server = MetricsServer(free_port(), BridgeMetrics(f"redis://:hunter2@127.0.0.1:{port}", ["q"]).registry)
            since = time.monotonic()
            seen = get(server)
            assert time.monotonic() - since < 3
            assert seen[key("redis_up")] == 0
            assert not any(name.startswith("cog_celery_queue") for name, _ in seen)
            server.close()


def test_gpus_are_read_as_far_as_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, None, (1,))
    nvml = machine.install(monkeypatch)
    part = Device("1:1", "MIG-11aa-0000", parent=uuid(1))
    monitor = Monitor([Device("0", uuid(0)), part, Device("7", "GPU-7")])
    whole, instance = monitor.read()
    assert whole == ("0", uuid(0), 3 << 30, 80 << 30, 0.25)
    assert instance == ("1:1", part.id, 3 << 30, 10 << 30, None)
    machine.change(0, error="GPU_IS_LOST")
    assert [usage.label for usage in monitor.read()] == ["1:1"]
    assert nvml.sessions == 1
    machine.change(0, error=None)
    assert [(usage.label, usage.uuid) for usage in Monitor().read()] == [("0", uuid(0)), ("1", uuid(1))]


@pytest.mark.parametrize("nvml", ["none", "broken"])
def test_without_nvml_there_are_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvml: str) -> None:
    if nvml == "none":
        without_nvml(monkeypatch)
    else:
        machine = Machine(tmp_path, None)
        machine.state["driver"] = False
        machine.write()
        machine.install(monkeypatch)
    monitor = Monitor([Device("0", uuid(0))])
    assert monitor.read() == [] and monitor.states() == []


def test_who_wants_no_metrics_does_not_pay_for_them() -> None:
    code = (
        "import sys, cog_celery.bridge.process, cog_celery.worker.process;"
        "print(*{'prometheus_client', 'rich'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
