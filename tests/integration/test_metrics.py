"""Metrics of a fleet that runs, and whether the dashboard and the alerts speak of what is really there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import FleetFactory, missing
from tests.support.fleet import Fleet
from tests.support.processes import wait_until
from tests.support.servers import free_port

pytestmark = pytest.mark.ours

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
CANARY = "canary-4111111111111111"

Scraped = dict[str, list[tuple[dict[str, str], float]]]


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    assert CANARY not in text
    return text


def scrape(port: int) -> Scraped:
    seen: Scraped = {}
    for family in text_string_to_metric_families(page(port)):
        for sample in family.samples:
            seen.setdefault(sample.name, []).append((sample.labels, sample.value))
    return seen


def value(seen: Scraped, name: str, **labels: str) -> float:
    [found] = [figure for has, figure in seen[f"cog_celery_{name}"] if labels.items() <= has.items()]
    return found


def count(seen: Scraped, name: str, **labels: str) -> float:
    """A counter's figure, which is not there before the first."""
    return sum(figure for has, figure in seen[f"cog_celery_{name}"] if labels.items() <= has.items())


class Watched:
    """A fleet whose bridge and worker are scraped."""

    def __init__(self, make: FleetFactory) -> None:
        self.bridge_port, self.worker_port = free_port(), free_port()
        self.fleet: Fleet = make("modes", start=False, slots=2, lease=1)
        self.fleet.start_bridge(metrics_port=self.bridge_port)
        self.fleet.start_worker(metrics_port=self.worker_port)
        self.fleet.wait_ready(1)

    def bridge(self) -> Scraped:
        return scrape(self.bridge_port)

    def worker(self) -> Scraped:
        return scrape(self.worker_port)


@pytest.fixture(scope="module")
def watched(shared_fleet: FleetFactory) -> Watched:
    watched = Watched(shared_fleet)
    producer = watched.fleet.producer
    producer.predict({"mode": "hello", "text": CANARY}, id=CANARY)
    producer.predict({"mode": "fails", "text": CANARY})
    producer.predict({"mode": "a_file", "text": CANARY})
    producer.send_raw(f"no request {CANARY}")
    watched.fleet.wait_idle()
    return watched


def test_what_happened_is_counted_by_the_worker_and_by_the_queue(watched: Watched) -> None:
    wait_until(lambda: value(watched.worker(), "time_in_queue_seconds_count") == 3, "the last count")
    worker, bridge = watched.worker(), watched.bridge()
    assert value(worker, "predictions_total", outcome="succeeded") == 2
    assert value(worker, "predictions_total", outcome="failed", fault="model") == 1
    assert value(worker, "predict_seconds_count") == 3
    assert value(worker, "sent_bytes_total") > 300 and value(worker, "received_bytes_total") > 300
    assert value(worker, "redis_up") == value(bridge, "redis_up") == 1
    assert value(bridge, "queue_predictions_total") == 3
    assert value(bridge, "queue_buried_total") == value(bridge, "queue_dead_letters") == 1
    assert value(bridge, "queue_depth") == value(bridge, "queue_oldest_waiting_seconds") == 0
    assert value(bridge, "queue_bridges") == value(bridge, "queue_workers") == 1
    assert value(bridge, "queue_slots", state="idle") == 2


def test_what_waits_and_runs_is_seen_as_it_is(watched: Watched) -> None:
    producer = watched.fleet.producer
    sent = [producer.send({"mode": "sleeps", "seconds": 20}) for _ in range(3)]
    wait_until(lambda: value(watched.bridge(), "queue_in_flight") == 2, "both slots to be at work")
    wait_until(lambda: value(watched.worker(), "slots", state="busy") == 2, "the worker to say so")
    bridge = watched.bridge()
    assert (value(bridge, "queue_depth"), value(bridge, "queue_waiting")) == (3, 1)
    assert 0 < value(bridge, "queue_oldest_waiting_seconds") < 10
    for request in sent:
        producer.cancel(request)
    for request in sent:
        producer.wait(request)
    wait_until(lambda: count(watched.worker(), "predictions_total", outcome="canceled") == 3, "the cancels to count")


def test_a_worker_whose_port_is_taken_or_whose_model_is_broken_is_seen(watched: Watched) -> None:
    fleet = watched.fleet
    second = fleet.start_worker(metrics_port=watched.worker_port)
    assert second.wait() == 2
    assert f"--metrics-port {watched.worker_port}: address already in use" in second.text()
    broken = fleet.start_command(
        "worker", "worker", str(fleet.model.parent / "setup_raises"), "--queue", fleet.queue, name="broken"
    )
    assert broken.wait() == 1
    assert value(watched.bridge(), "queue_setup_failures_total") == 1


def expressions() -> Iterator[tuple[str, str]]:
    """Where, and what: all that the dashboard and the alerts ask of Prometheus."""
    dashboard: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], re.sub(r"label_values\((\w+), (\w+)\)", r"sum by (\2) (\1)", variable["definition"])
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_every_metric_and_label_of_dashboard_and_alerts_is_there(watched: Watched) -> None:
    live: dict[str, set[str]] = {}
    for seen in (watched.bridge(), watched.worker()):
        for name, samples in seen.items():
            live.setdefault(name, set()).update(label for labels, _ in samples for label in labels)
    # This machine has no GPU, and this model no metrics of its own.
    live |= {f"cog_celery_gpu_{name}": {"gpu"} for name in ("memory_used_bytes", "memory_bytes", "utilization_ratio")}
    live |= {f"cog_celery_model_metric_{name}": {"queue", "name"} for name in ("sum", "count")}
    used: set[str] = set()
    for where, expression in expressions():
        plain = expression.replace("$queue", "").replace("$__rate_interval", "5m")
        names = {name for name in re.findall(r"\b[a-z_]{6,}\b", plain) if name.startswith(("cog_celery_", "process_"))}
        assert names and names <= set(live), where
        used |= names
        allowed = {"instance", "job"}.union(*(live[name] for name in names))
        labels = [label for part in re.findall(r"\{([^}]*)\}", plain) for label in re.findall(r"(\w+)=~?", part)]
        for part in re.findall(r"(?:by|on|group_left) \(([^)]*)\)", plain):
            labels += part.split(", ")
        assert set(labels) <= allowed, (where, labels)
    ours = {name for name in live if name.startswith("cog_celery_") and not name.endswith(("_sum", "_count"))}
    assert ours - used <= {"cog_celery_queue_followed_total", "cog_celery_model_metrics_left_out_total"}, "not shown"


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    assert dashboard["id"] is None and dashboard["uid"] and dashboard["schemaVersion"] >= 36
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}" and panel["description"], panel["title"]
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "queue"}


def promtool(*arguments: str | Path, input: str = "") -> str:
    program = shutil.which("promtool")
    if program is None:
        missing("promtool, of the package prometheus,")
    command = [str(program), *arguments]
    done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_names_types_and_units_are_as_prometheus_has_them(watched: Watched) -> None:
    for port in (watched.bridge_port, watched.worker_port):
        assert promtool("check", "metrics", input=page(port)) == ""


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    queries = [expression.replace("$__rate_interval", "5m") for _, expression in expressions()]
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_the_alerts_are_valid_and_fire_when_they_should() -> None:
    assert "rules found" in promtool("check", "rules", MONITORING / "rules.yaml")
    assert "SUCCESS" in promtool("check", "config", MONITORING / "prometheus.yaml")
    promtool("test", "rules", Path(__file__).parents[1] / "support" / "alerts.yaml")
