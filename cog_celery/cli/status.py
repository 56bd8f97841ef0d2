"""The command `cog-celery status`: which queues, how often, and the exit status of what was found.

It must not know how anything is found or shown.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cog_celery.cli.base import FAILED, OUTPUT, SUCCEEDED, cli, complain, default_output, examples, load, options_of
from cog_celery.errors import ServerError, UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from cog_celery.delivery.status import QueueSeen
    from cog_celery.settings import Settings

PATIENCE = 5.0
"""Seconds to wait for Redis."""
RENEWED = 30.0
"""Seconds after which a server is looked at for new queues again."""


@cli.command(
    short_help="Show queues, workers, or where one prediction is.",
    **examples(
        "cog-celery status",
        "cog-celery status --queue my-predict-queue --watch",
        "cog-celery status 5f2c6ad1 --queue my-predict-queue",
        "cog-celery status --output json | jq '.queues[] | {name, waiting, oldest}'",
    ),
)
@click.argument("prediction", metavar="[ID]", required=False)
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C; as JSON, a line each time.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often, with --watch.",
)
@OUTPUT
@options_of("status")
def status(prediction: str | None, watch: bool, every: float, output: str | None, **flags: object) -> int:
    """Shows queues and workers on one screen; or where the prediction with this id, or of this entry, is.

    All queues of the server, unless some are named. It asks Redis alone, so it works when no worker does. Exit status:
    0 shown, 1 there is no such prediction or queue, or Redis is out of reach, 2 wrong use.
    """
    if prediction is not None and watch:
        raise UsageError("status: --watch is for queues, not for one prediction; `cog-celery send` follows its own")
    settings = load(flags, quiet=True)
    as_json = (output or default_output()) == "json"

    from rich.console import Console

    from cog_celery.cli.status_view import PLAIN_WIDTH

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    if prediction is not None:
        return _show_prediction(console, settings, prediction, as_json)
    if not watch:
        return _show(console, settings, as_json)
    try:
        return _watch(console, settings, every, as_json)
    except KeyboardInterrupt:
        return SUCCEEDED


def _show(console: Console, settings: Settings, as_json: bool) -> int:
    from cog_celery.cli import status_view

    queues, complete = _look(settings, None)
    if not queues:
        return complain("this server has no queues: nobody has served any (--queue NAME looks at one)", FAILED)
    if as_json:
        told = status_view.queues_json(queues, time.time(), complete)
        status_view.write_json(console, told, indent=console.is_terminal)
    else:
        _print(console, status_view.screen(queues, width=console.width, notes=_notes(complete)))
    return SUCCEEDED if all(queue.exists for queue in queues) else FAILED


def _show_prediction(console: Console, settings: Settings, prediction: str, as_json: bool) -> int:
    import msgspec

    from cog_celery.cli import status_view
    from cog_celery.cli.dead_view import one_line
    from cog_celery.delivery import whereabouts
    from cog_celery.delivery.status import Look
    from cog_celery.producer.clients import connected

    with connected(settings.redis_url, timeout=PATIENCE) as client:
        names = list(settings.queues) or Look(client).names()[0]
        search = whereabouts.find(client, names, prediction)
    if as_json and search.sightings:
        told = [msgspec.to_builtins(one) for one in search.sightings]
        status_view.write_json(console, {"predictions": told}, indent=console.is_terminal)
    elif search.sightings:
        for number, one in enumerate(search.sightings):
            if number:
                console.print()
            _print(console, status_view.sighting(one))
    else:
        where = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no queue"
        first = "the first " if search.bounded else ""
        return complain(
            f"{one_line(prediction[:200])} is not known in {where}: it was not sent there, or ended longer ago than "
            f"is kept (about the last 1,000 of a queue); {first}{search.searched:,} requests and letters were looked "
            "through",
            FAILED,
        )
    return SUCCEEDED


def _watch(console: Console, settings: Settings, every: float, as_json: bool) -> int:
    from rich.live import Live

    from cog_celery.cli import status_view

    queues, complete = _look(settings, None)  # a server that is not there at once is an error, later it is waited for
    if as_json or not console.is_terminal:
        while True:
            if as_json:
                status_view.write_json(console, status_view.queues_json(queues, time.time(), complete), indent=False)
            else:
                _print(console, status_view.screen(queues, width=console.width, notes=_notes(complete)))
                console.print()
            time.sleep(every)
            queues, complete = _look(settings, None)
    names, renewed, notes = [queue.name for queue in queues], time.monotonic(), _notes(complete)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            size = console.size
            live.update(status_view.screen(queues, width=size.width, height=size.height, notes=notes), refresh=True)
            time.sleep(every)
            try:
                if time.monotonic() - renewed > RENEWED:
                    names, renewed = [], time.monotonic()
                queues, complete = _look(settings, names or None)
                names, notes = names or [queue.name for queue in queues], _notes(complete)
            except ServerError as error:
                notes = [f"as it was {every:g} s ago or before: {error}"]


def _look(settings: Settings, names: list[str] | None) -> tuple[list[QueueSeen], bool]:
    """The queues that are meant, and whether these are all; `names`: those that are known already."""
    from cog_celery.delivery.status import Look
    from cog_celery.producer.clients import connected

    with connected(settings.redis_url, timeout=PATIENCE) as client:
        look, complete = Look(client), True
        chosen = list(settings.queues) or names
        if chosen is None:
            chosen, complete = look.names()
        return look.queues(chosen), complete


def _print(console: Console, what: RenderableType) -> None:
    """To a file or a pipe without the spaces that fill a terminal's lines."""
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as captured:
        console.print(what)
    console.file.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
    console.file.flush()


def _notes(complete: bool) -> list[str]:
    return [] if complete else ["there are more keys than were looked at for queues: name yours by --queue"]
