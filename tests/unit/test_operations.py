"""The page for whoever is called: every warning, metric and alert there is, is in it, and nothing else."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cog_celery.celery import TURN
from cog_celery.delivery.presence import About
from cog_celery.gpus.monitor import Monitor
from cog_celery.telemetry import tracing
from cog_celery.telemetry.metrics import WorkerMetrics, _queues

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
LOUD = ("warning", "error")
ANYTHING = re.compile(r"%[-.\d]*[a-z]")


def spans(text: str) -> list[str]:
    """What stands between backticks."""
    return [found[1] for found in re.findall(r"(`+)(.+?)\1(?!`)", text)]


def said() -> Iterator[str]:
    """The formats of all warnings and errors."""
    for file in sorted((ROOT / "cog_celery").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=attr), args=[first, *_]) if (
                    attr in LOUD
                ):
                    if isinstance(first, ast.Starred) and isinstance(first.value, ast.Tuple):
                        first = first.value.elts[0]
                    yield ast.literal_eval(first)


FORMATS = sorted({format for format in said() if len(ANYTHING.sub("", format).strip(" :;,")) > 8})
"""But those that are someone else's message, whole or behind a name."""


def form(format: str) -> re.Pattern[str]:
    return re.compile(".+".join(map(re.escape, ANYTHING.split(format))))


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found
    return found[1]


@pytest.mark.parametrize("format", FORMATS)
def test_every_warning_is_explained(format: str) -> None:
    assert any(form(format).fullmatch(span) for span in spans(PAGE)), format


def test_every_line_that_is_explained_is_one_that_is_written() -> None:
    first = [line.split("|")[1] for line in section("Log lines").splitlines() if line.startswith("| `")]
    known = [form(format) for format in said() if format != "%s"]
    unknown = [line for cell in first for line in spans(cell) if not any(one.fullmatch(line) for one in known)]
    assert not unknown


def events() -> Iterator[str]:
    """What lines are called in JSON."""
    for file in sorted((ROOT / "cog_celery").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Dict(keys=[ast.Constant(value="event"), *_], values=[value, *_]):
                    branches = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                    yield from map(ast.literal_eval, branches)
                case ast.Call(func=ast.Attribute(attr="Event"), args=[_, ast.Constant(value=str(name)), *_]):
                    yield name


def test_every_event_is_explained_and_no_other() -> None:
    rows = [line.split("|")[1] for line in section("One prediction's story").splitlines() if line.startswith("| `")]
    explained = [name for cell in rows for name in spans(cell)]
    assert sorted(explained) == sorted(set(events()))


def test_every_span_is_explained_and_no_other() -> None:
    ours = (tracing.SETUP, tracing.RUNNER_START, tracing.MODEL_SETUP, tracing.MESSAGE, tracing.PREDICT, tracing.FETCH)
    named = {*ours, tracing.UPLOAD, tracing.COMMIT, f"apply_async/{TURN}", f"run/{TURN}"}
    rows = [line for line in section("Traces").splitlines() if line.startswith("| `")]
    assert {spans(row.split("|")[1])[0] for row in rows} == named
    text = section("Traces")
    for event in (tracing.SPAWNING, tracing.FIRST_OUTPUT, tracing.FINAL_OUTPUT):
        assert f"`{event}`" in text


def test_every_metric_is_explained_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    about = About(role="worker", name="w", version="1")
    worker = WorkerMetrics("q", lambda: about, lambda: True, Monitor())
    families = [*worker.registry.collect(), *_queues([])]
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    explained = set(re.findall(r"`(cog_celery_\w+)(?:\{[a-z,]+\})?`", section("Metrics")))
    assert explained == {name for name in names if name.startswith("cog_celery_")}


def test_every_alert_says_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    told = dict(re.findall(r"^\| `(CogCelery\w+)` \| (.+) \|$", section("Alerts"), re.M))
    assert told.keys() == alerts
    symptoms = set(re.findall(r"^\| \*\*(.+?)\*\*", section("Symptoms"), re.M))
    assert {name for do in told.values() for name in re.findall(r"\*(.+?)\*", do)} <= symptoms


def test_pictures_and_chapters_that_it_names_are_there() -> None:
    assert all((ROOT / "docs" / name).is_file() for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE))
    titles = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", PAGE, re.M)}
    assert set(re.findall(r"\(#([^)]+)\)", PAGE)) == titles
