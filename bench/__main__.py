"""The command line, and the order of a run: rounds, in each of them the phases, in each phase every contestant in turn.

It must not know how anything is measured.
"""

from __future__ import annotations

import itertools
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

from cog_celery.errors import CogCeleryError
from cog_celery.local.embedded import EmbeddedServer

from . import BenchError, files, peers, runtime
from .contestants import Contestant, Job, own, peer
from .fleet import Fleet
from .phases import PHASES, Effort, Figures, Phase
from .report import AWS, NO_TURNS, OURS, Results, as_json, limits, show, verdicts
from .wire import Wire

FULL = Effort(latency_samples=500, throughput_seconds=1.5, repeats=2)
QUICK = Effort(latency_samples=500, throughput_seconds=0.7, repeats=1)
_ROUNDS = 3
# Of the tables, in a file or a pipe.
_WIDTH = 120


class _Progress:
    """Lines on standard error, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        click.echo(f"[{time.monotonic() - self._started:4.0f} s] {line}", err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One short round, in less than a minute, without files.")
@click.option("--only", type=click.Choice(["queue", "files"]), help="One half of it.")
@click.option("--rounds", type=click.IntRange(1, 100), help=f"Rounds to take the medians of.  [default: {_ROUNDS}]")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", help="JSON goes to standard output alone."
)
@click.option("--check", is_flag=True, help="Exit with status 1 when a target is missed or could not be measured.")
@click.option(
    "--peer-python",
    "pythons",
    multiple=True,
    metavar="RELEASE=PATH",
    help="Use this Python, in which that release of Cog is installed: 0.6.1=/path/to/bin/python.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".bench"),
    show_default=True,
    help="Where the releases of Cog are installed.",
)
def main(
    quick: bool,
    only: str | None,
    rounds: int | None,
    output: str,
    check: bool,
    pythons: Sequence[str],
    cache: Path,
) -> None:
    """Measure this project beside Cog's own queue workers: one machine, one server, one run."""
    if not sys.platform.startswith("linux"):
        raise click.ClickException("the benchmark reads /proc and runs on Linux only")
    # An exception, so that what runs is stopped in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    say = _Progress()
    results = Results(rounds or (1 if quick else _ROUNDS), _machine())
    field = _field(_given(pythons), cache.absolute(), results, say)
    with_files = only == "files" or not (quick or only)
    aws = _aws(cache.absolute(), results, say) if with_files else None
    try:
        with EmbeddedServer() as server, Wire(server.url) as wire:
            if only != "files":
                _run(field, wire, QUICK if quick else FULL, results, say)
            if with_files:
                _run_files(field, wire, aws, results, say)
    except (BenchError, CogCeleryError) as error:
        raise click.ClickException(str(error)) from None
    if output == "json":
        click.echo(json.dumps(as_json(results), indent=2))
    else:
        show(results, Console(width=None if sys.stdout.isatty() else _WIDTH))
    met = [met for _, _, met in verdicts(results)] + [met for _, _, met in limits(results)]
    if results.failures or (check and not all(met)):
        sys.exit(1)


def _given(pythons: Sequence[str]) -> dict[str, Path]:
    """The interpreters that the caller names, by release."""
    given = {}
    for text in pythons:
        release, separator, path = text.partition("=")
        if not separator or release not in peers.RELEASES.values():
            known = ", ".join(peers.RELEASES.values())
            raise click.BadParameter(
                f"{text!r} is not RELEASE=PATH with a release of {known}", param_hint="--peer-python"
            )
        if (found := peers.installed(Path(path))) != release:
            has = f"cog {found}" if found else "no cog"
            raise click.BadParameter(f"{path} has {has} installed, not {release}", param_hint="--peer-python")
        given[release] = Path(path)
    return given


def _field(given: dict[str, Path], cache: Path, results: Results, say: _Progress) -> list[Contestant]:
    field = []
    for name, release in peers.RELEASES.items():
        try:
            field.append(peer(name, given.get(release) or peers.interpreter(release, cache, say)))
        except peers.PeerMissing as error:
            results.absent[name] = str(error)
            say(f"{name} is absent: {error}")
    return [*field, own(), own(turn=0.0)]


def _aws(cache: Path, results: Results, say: _Progress) -> Path | None:
    try:
        return peers.aws(cache, say)
    except peers.PeerMissing as error:
        results.absent[AWS] = str(error)
        say(f"{AWS} is absent: {error}")
        return None


def _run_files(field: Sequence[Contestant], wire: Wire, aws: Path | None, results: Results, say: _Progress) -> None:
    fresh = itertools.count(1)
    whole = [contestant for contestant in field if contestant.name != NO_TURNS]
    for number in range(results.rounds):
        where = f"round {number + 1} of {results.rounds} · files"
        try:
            found = files.measure(wire, whole, aws, fresh)
        except BenchError as error:
            results.failures.append(f"{where}: {error}")
            say(results.failures[-1])
            continue
        for name, figures in found.items():
            results.add(name, number, figures)
            say(f"{where} · {name}: {_listed(figures)}")


def _run(field: Sequence[Contestant], wire: Wire, effort: Effort, results: Results, say: _Progress) -> None:
    fresh = itertools.count(1)
    for number in range(results.rounds):
        # Another one begins each round, so that nobody always runs behind the same neighbour.
        first = number % len(field)
        order = [*field[first:], *field[:first]]
        for phase in PHASES:
            for contestant in order:
                if phase not in contestant.phases:
                    continue
                where = f"round {number + 1} of {results.rounds} · {phase.name} · {contestant.name}"
                try:
                    figures = _measure(contestant, phase, wire, f"bench-{next(fresh)}", effort)
                except BenchError as error:
                    # One that fails does not take the figures of the others with it.
                    results.failures.append(f"{where}: {error}")
                    say(results.failures[-1])
                else:
                    results.add(contestant.name, number, figures)
                    say(f"{where}: {_listed(figures)}")

        figures = runtime.measure()
        results.add(OURS, number, figures)
        say(f"round {number + 1} of {results.rounds} · runtime · {_listed(figures)}")


def _listed(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _measure(contestant: Contestant, phase: Phase, wire: Wire, queue: str, effort: Effort) -> Figures:
    wire.call("FLUSHALL")
    wire.call("XGROUP", "CREATE", queue, queue, "0", "MKSTREAM")
    job = Job(phase.model, queue, phase.slots, wire.host, wire.port)
    with Fleet(contestant.commands(job)) as fleet:
        fleet.wait_ready(wire, queue, phase.slots)
        return phase.measure(wire, fleet, queue, effort)


def _machine() -> dict[str, str | int]:
    return {"cores": os.cpu_count() or 1, "Python": platform.python_version(), "Linux": platform.release()}


if __name__ == "__main__":
    main(prog_name="python -m bench")
