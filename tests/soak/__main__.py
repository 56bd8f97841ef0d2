"""The command line, and the order of the parts.

It must not know what a part does.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cog_celery.failpoints import PLACES
from tests.soak import day, deaths, entries, fencing, machine, mutations, outages, points, together
from tests.soak.report import Row, as_json, fill, machine_of, markdown
from tests.soak.trial import DEFAULT_LEASE, LEASE, Asked, Part, Trial, within
from tests.support.fleet import PEER

PARTS = (
    Part("runner-killed", "a runner dies in a prediction", 300, deaths.runner_killed),
    Part("worker-killed", "a worker dies with everything under it", 900, deaths.worker_killed),
    Part("bridge-killed", "a bridge dies", 420, deaths.bridge_killed),
    Part("uploads-behind", "workers end while uploads are behind the running prediction", 420, together.uploads_behind),
    Part("shared-runner", "a runner that serves four at once dies, or its worker", 420, together.shared_runner),
    Part("rolling-restart", "workers and bridges are restarted in turn, under load", 480, deaths.rolling_restart),
    Part("failpoints", "processes die or stop right after each step of delivery", 1200, points.failpoints),
    Part("redis-killed", "Redis dies, and comes back with its data", 420, outages.killed),
    Part("redis-emptied", "Redis dies, and comes back without its data", 240, outages.emptied),
    Part("redis-stopped", "Redis stands still", 240, outages.stopped),
    Part("deleted", "entries are deleted or trimmed while they run", 360, entries.deleted),
    Part("foreign", "a worker of Cog's own is in the group", 360, entries.foreign),
    Part("cut-off", "workers are cut off from Redis", 360, fencing.cut_off),
    Part("stopped", "workers stand still, and go on", 420, fencing.stopped),
    Part("bad-messages", "bad messages among good ones", 120, entries.bad_messages),
    Part("cancel-race", "cancels race completion", 180, entries.cancel_race),
    Part("day", "ten thousand predictions, and a fault every 20 s", 600, day.day),
    Part("state-machine", "random steps, chosen and shrunk by Hypothesis", 600, machine.state_machine),
    Part("mutations", "without its guards, delivery is seen to break", 600, mutations.mutations),
)
NAMES = {part.name: part for part in PARTS}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, metavar="[PART]...", type=click.Choice(list(NAMES)))
@click.option("--list", "listing", is_flag=True, help="Say what parts there are.")
@click.option("--seed", type=int, help="What is left to chance, again.  [default: a new one]")
@click.option("--times", type=click.IntRange(1), help="No more of each fault than that.")
@click.option("--lease", type=click.Choice([f"{LEASE:g}", f"{DEFAULT_LEASE:g}"]), help="Only rows with this lease.")
@click.option("--place", "places", multiple=True, type=click.Choice(PLACES), help="Only this failpoint.")
@click.option(
    "--peer-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="COG_SOAK_PEER_PYTHON",
    help=f"A Python with Cog {entries.PEER} in it.  [default: one is made in --cache]",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".bench"),
    show_default=True,
    help="Where Cog is installed.",
)
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", help="JSON goes to standard output alone."
)
@click.option(
    "--markdown",
    "document",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the table between this document's markers.",
)
def main(
    parts: Sequence[str],
    listing: bool,
    seed: int | None,
    times: int | None,
    lease: str | None,
    places: Sequence[str],
    peer_python: Path | None,
    cache: Path,
    output: str,
    document: Path | None,
) -> None:
    """Break this project's delivery in every way there is, hundreds of times; exit status 1 when a promise broke."""
    chosen = [NAMES[name] for name in parts] or list(PARTS)
    if listing:
        for part in chosen:
            click.echo(f"{part.name:16} {part.what} (at most {part.budget / 60:.0f} min)")
        return
    if not sys.platform.startswith("linux") or PEER:
        raise click.ClickException("the soak reads /proc, on Linux only, and tests our own consumer only")
    asked = Asked(
        seed=secrets.randbelow(1_000_000) if seed is None else seed,
        times=times,
        lease=None if lease is None else float(lease),
        places=places,
        peer=None if peer_python is None else peer_python.absolute(),
        cache=cache.absolute(),
    )
    rows: list[Row] = []
    about: dict[str, Any] = machine_of("")
    began = time.monotonic()
    for part in chosen:
        found, server = _run(part, asked)
        rows += found
        about = machine_of(server) if server else about
        if output == "text":
            for row in found:
                click.echo(str(row))
    if output == "json":
        click.echo(json.dumps(as_json(rows, about, asked.seed), indent=2))
    else:
        held = sum(row.ok for row in rows)
        click.echo(f"{held} of {len(rows)} held, seed {asked.seed}, {(time.monotonic() - began) / 60:.0f} min")
    if document is not None:
        fill(document, markdown(rows, about))
    if not all(row.ok for row in rows):
        sys.exit(1)


def _run(part: Part, asked: Asked) -> tuple[list[Row], str]:
    """The rows of a part, and the server it was tried on. Its files are kept when something broke."""
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{part.name}-"))
    trial = Trial(part, asked, folder)
    trial.say(f"{part.what}; seed {asked.seed}")
    try:
        with within(part.budget):
            part.run(trial)
    except Exception as error:  # a part that fails does not take the others with it
        traceback.print_exc()
        row = trial.rows[-1] if trial.rows else trial.row(part.what, "the part comes to its end", "")
        row.problems.append(f"{type(error).__name__}: {error}")
    trial.close_row()
    if all(row.ok for row in trial.rows):
        shutil.rmtree(folder, ignore_errors=True)
    return trial.rows, trial.server_version


if __name__ == "__main__":
    main(prog_name="python -m tests.soak")
