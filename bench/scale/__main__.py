"""The command line: which parts are measured, where their figures are kept, and what is written of them.

It must not know how anything is measured.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench import BenchError
from bench.scale import report
from bench.scale.parts import PARTS
from bench.scale.site import ROOT
from bench.wire import Wire
from cog_celery.errors import CogCeleryError
from cog_celery.local.embedded import EmbeddedServer

REPLY_TIMEOUT = 120.0
_WIDTH = 150


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: python -m bench.scale slots backlog",
)
@click.argument("parts", nargs=-1, metavar="[PART]...", type=click.Choice(list(PARTS)))
@click.option("--list", "listed", is_flag=True, help="Say which parts there are.")
@click.option(
    "--kept",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(".bench/scale.json"),
    show_default=True,
    help="Where the figures are kept: a part that is not measured has those of the last time.",
)
@click.option("--write", is_flag=True, help="Put tables and curves into docs/scaling.md, of all figures that are kept.")
@click.option("--no-measure", is_flag=True, help="Measure nothing: show, or write, what is kept.")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", help="JSON goes to standard output alone."
)
def main(parts: Sequence[str], listed: bool, kept: Path, write: bool, no_measure: bool, output: str) -> None:
    """Measure how far it goes: slots, workers, queues and waiting requests on this machine; all parts by default."""
    if listed:
        for part in PARTS.values():
            click.echo(f"{part.name:10} {part.title}")
        return
    if not sys.platform.startswith("linux"):
        raise click.ClickException("the benchmark reads /proc and runs on Linux only")
    # An exception, so that what runs is stopped in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found = json.loads(kept.read_text()) if kept.exists() else {"parts": {}}
    chosen = [] if no_measure else list(dict.fromkeys(parts)) or list(PARTS)
    try:
        for name in chosen:
            found["parts"][name] = _measure(name)
            found["machine"] = _machine()
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found, indent=1))
        shown = {name: rows for name, rows in found["parts"].items() if no_measure or name in chosen}
        if write:
            docs = ROOT / "docs"
            report.write(docs / "scaling.md", docs / "scaling.svg", found["parts"], found["machine"])
    except (BenchError, CogCeleryError) as error:
        raise click.ClickException(str(error)) from None
    if output == "json":
        click.echo(json.dumps(found | {"parts": shown}, indent=2))
    else:
        _show(shown)


def _measure(name: str) -> list[report.Row]:
    started = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"[{time.monotonic() - started:4.0f} s] {name}: {line}", err=True)

    # A server for each part: none pays for what another has left in memory.
    with EmbeddedServer() as server, Wire(server.url, timeout=REPLY_TIMEOUT) as wire:
        return list(PARTS[name].measure(wire, say))


def _show(found: report.Found) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    titles = {part.name: part.title for part in PARTS.values()} | {"forecast": "by calculation"}
    for name, made in report.tables(found).items():
        table = Table(title=titles[name])
        for heading in made.headings:
            table.add_column(heading, justify="right")
        for cells in made.cells:
            table.add_row(*cells)
        console.print(table)


def _machine() -> str:
    release = ".".join(platform.python_version_tuple()[:2])
    return f"{os.cpu_count()} cores, Python {release}, Linux {platform.release().split('-')[0]}"


if __name__ == "__main__":
    main(prog_name="python -m bench.scale")
