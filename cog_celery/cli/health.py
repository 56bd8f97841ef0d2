"""The command `cog-celery health`: one look at the heartbeats of this machine's processes, for probes.

It must not reach a server: a probe that fails with Redis would have every healthy process started again.
"""

from __future__ import annotations

import json
import os
from typing import Any

import click

from cog_celery import heartbeat
from cog_celery.cli.base import FAILED, SUCCEEDED, cli, examples, load, options_of
from cog_celery.settings import Settings, given


@cli.command(
    short_help="Look whether bridge and worker live.",
    **examples(
        "cog-celery health",
        "cog-celery health --role worker --ready",
        "cog-celery health --queue my-predict-queue --output json",
    ),
)
@click.option(
    "--role", type=click.Choice(heartbeat.ROLES), help="Only this one, and it must be there.  [default: all there are]"
)
@click.option("--ready", is_flag=True, help="Whether they take work now, too.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", help="A line, or JSON.")
@options_of("health")
def health(role: str | None, ready: bool, output: str, **flags: object) -> int:
    """Looks whether the bridge and the worker on this machine, in this container say, live and their loops move.

    A server that is out of reach is no reason to be unhealthy, nor is a setup() of minutes; a worker that no ticket
    reaches is. Exit status: 0 when all is well, 1 when something is wrong, which is said in one line.
    """
    settings = load(flags, quiet=True)
    name = settings.name if given("name", flags, os.environ) else None
    seen, problems = look(settings, role, name)
    problems += [text for one in seen if (text := one.unready if ready else one.problem) is not None]
    if output == "json":
        about: dict[str, Any] = {"healthy": not problems, "problems": problems}
        about["processes"] = [
            {"role": one.role, "life": one.life, "queues": one.queues, "pid": one.pid, "state": one.state}
            | {"age": round(one.age, 3)}
            for one in seen
        ]
        click.echo(json.dumps(about))
    else:
        click.echo("; ".join(problems or [f"{one} is {one.state}" for one in seen]))
    return FAILED if problems else SUCCEEDED


def look(settings: Settings, role: str | None, name: str | None) -> tuple[list[heartbeat.Seen], list[str]]:
    """What there is, and what is wrong when there is nothing."""
    files: list[str | None] = [settings.heartbeat_file]
    if settings.heartbeat_file is not None:  # `run` has a bridge and a worker
        files += [f"{settings.heartbeat_file}.{one}" for one in heartbeat.ROLES]
    try:
        seen = [one for file in files for one in heartbeat.look(file, role, settings.queues, name)]
    except OSError as error:
        return [], [f"the heartbeats cannot be read: {error}"]
    if seen:
        return seen, []
    where = f" of queue {', '.join(settings.queues)}" if settings.queues else ""
    return [], [
        f"there is no heartbeat of a {role or 'bridge or worker'}{where}: "
        "it has not started, or was started with other variables than this command"
    ]
