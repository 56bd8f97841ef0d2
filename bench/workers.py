"""How many predictions a second each model of workers/ makes, with one slot and with two, and what its set-up costs.

It must not know any of them: what they are given are their own test_inputs.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from cog_celery.errors import CogCeleryError
from cog_celery.local import predicting
from cog_celery.local.embedded import EmbeddedServer
from cog_celery.settings import Settings

from . import BenchError
from .contestants import environment
from .files import Store
from .fleet import Command, Fleet
from .phases import KEYS
from .wire import Wire

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 3.0
STALL = 120.0
WIDTH = 120


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
def main(models: tuple[str, ...], output: str) -> None:
    """Install each model of workers/ (all, or those named) and measure it with one slot and with two."""
    names = models or tuple(sorted(path.parent.name for path in (ROOT / "workers").glob("*/cog.yaml")))
    rows: dict[str, dict[str, float]] = {}
    fresh = itertools.count(1)
    try:
        with EmbeddedServer() as server, Wire(server.url, timeout=STALL) as wire, Store() as store:
            for name in names:
                rows[name] = _measure(wire, ROOT / "workers" / name, store.url, fresh)
                click.echo(f"{name}: {json.dumps(rows[name])}", err=True)
    except (BenchError, CogCeleryError) as error:
        raise click.ClickException(str(error)) from None
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
    else:
        _show(rows)


def _measure(wire: Wire, model: Path, upload_url: str, fresh: Iterator[int]) -> dict[str, float]:
    installed = subprocess.run(
        [sys.executable, "-m", "cog_celery", "install", str(model)], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        raise BenchError(f"{model.name} could not be installed:\n{installed.stderr[-1000:]}")
    given = predicting.test_inputs(Settings(model_dir=str(model)).for_model())
    figures: dict[str, float] = {}
    for slots in (1, 2):
        queue = f"bench-{model.name}-{next(fresh)}"
        wire.call("FLUSHALL")
        wire.call("XGROUP", "CREATE", queue, queue, "0", "MKSTREAM")
        program = (sys.executable, "-m", "cog_celery")
        common = ("--queue", queue, "--redis-url", f"redis://{wire.host}:{wire.port}/0")
        files = ("--upload-url", upload_url, "--allow-address", "127.0.0.0/8")
        commands = [
            Command((*program, "bridge", *common), ROOT, environment()),
            Command((*program, "worker", str(model), *common, *files, "--slots", str(slots)), ROOT, environment()),
        ]
        with Fleet(commands) as fleet:
            fleet.wait_ready(wire, queue, slots)
            if slots == 1:
                figures["setup_seconds"] = float(wire.call("XRANGE", f"{queue}-setup-time", "-", "+")[0][1][1])
            figures[f"per_second_{slots}"] = _rate(lambda count: _run(wire, fleet, queue, given, count))  # noqa: B023
    return figures


def _rate(run: Callable[[int], float]) -> float:
    """Predictions per second: batches of growing size until one takes long enough to say."""
    run(2)
    count = 2
    while (seconds := run(count)) < SECONDS / 2:
        count = max(count + 1, min(count * 8, round(count * SECONDS / max(seconds, 0.01))))
    return count / seconds


def _run(wire: Wire, fleet: Fleet, queue: str, given: dict[str, object], count: int) -> float:
    """Seconds that so many predictions take, all sent at once."""
    keys = [f"{KEYS}{number}" for number in range(count)]
    started = time.perf_counter()
    for key in keys:
        wire.call("XADD", queue, "*", "value", json.dumps({"input": given, "response_queue": key}))
    while wire.call("XLEN", queue):
        fleet.check()
        if time.perf_counter() - started > STALL:
            raise BenchError(f"{count} predictions took longer than {STALL:g} s{fleet.tail()}")
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    for key in keys:
        snapshot = json.loads(wire.call("GET", key))
        if snapshot["status"] != "succeeded":
            raise BenchError(f"a prediction did not come out as it should: {json.dumps(snapshot)[:500]}")
    wire.call("UNLINK", *keys)
    return seconds


def _show(rows: dict[str, dict[str, float]]) -> None:
    table = Table(title="Models of workers/, with their test inputs")
    for heading in ("", "setup", "1 slot", "2 slots", "2 slots ÷ 1"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in rows.items():
        one, two = row["per_second_1"], row["per_second_2"]
        table.add_row(name, f"{row['setup_seconds']:.2f} s", f"{one:.3g} /s", f"{two:.3g} /s", f"{two / one:.2f}")
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


if __name__ == "__main__":
    main(prog_name="python -m bench.workers")
