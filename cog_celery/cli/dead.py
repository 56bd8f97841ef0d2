"""The commands `cog-celery dead …`: what is typed about dead letters, and the exit status of what came of it.

It must not know how letters are kept or shown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

import click

from cog_celery.cli.base import (
    FAILED,
    OUTPUT,
    SUCCEEDED,
    WRONG_USE,
    Commands,
    cli,
    complain,
    default_output,
    examples,
    load,
    options_of,
)
from cog_celery.errors import ServerError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from cog_celery.delivery.dead import DeadLetters

T = TypeVar("T")

DEFAULT_LIMIT: Final = 50
MANY: Final = 20
"""From so many letters on, progress is shown."""
_ID: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")

IDS = click.argument("ids", metavar="[ID]...", nargs=-1)
ALL = click.option("--all", "everything", is_flag=True, help="All that are there now, instead of IDs.")
REASON = click.option("--reason", default="", metavar="TEXT", help="With --all: only those with TEXT in their reason.")


@cli.group(
    cls=Commands,
    invoke_without_command=True,
    short_help="Requests that were given up: list, show, retry, drop.",
    **examples(
        "cog-celery dead list --queue my-predict-queue",
        "cog-celery dead show 1663857077000-0 --queue my-predict-queue",
        "cog-celery dead retry 1663857077000-0 --queue my-predict-queue",
        'cog-celery dead retry --all --reason "lost with its worker" --queue my-predict-queue',
        "cog-celery dead drop --all --queue my-predict-queue",
    ),
)
@click.pass_context
def dead(ctx: click.Context) -> int:
    """Dead letters: requests that could not be served, or whose worker was lost at every attempt.

    A queue keeps about the newest 1,000 in the stream QUEUE-dead. Exit status of all these commands: 0 done, 1 there is
    no such letter or something failed, 2 wrong use.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
    return WRONG_USE


@dead.command(
    "list",
    short_help="The newest, one a line.",
    **examples(
        "cog-celery dead list --queue my-predict-queue",
        "cog-celery dead list --queue my-predict-queue --reason 'not JSON' --limit 1000",
        "cog-celery dead list --queue my-predict-queue --output json | jq -r .id",
    ),
)
@click.option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="How many at most.")
@click.option("--reason", default="", metavar="TEXT", help="Only those with TEXT in their reason.")
@OUTPUT
@options_of("dead")
def list_letters(limit: int, reason: str, output: str | None, **flags: object) -> int:
    """Lists dead letters, the newest last; as JSON, an object a line."""
    settings = load(flags, quiet=True)
    queue = settings.queue

    from cog_celery.cli import dead_view
    from cog_celery.delivery.dead import DeadLetters
    from cog_celery.producer.clients import connected

    with connected(settings.redis_url) as client:
        letters = DeadLetters(client, queue)
        heads, count = letters.newest(limit, reason), letters.count()
    if not heads:
        return complain(_nothing(queue, reason), FAILED)
    if (output or default_output()) == "json":
        for head in heads:
            click.echo(dead_view.head_json(head))
    else:
        dead_view.print_table(heads)
        if len(heads) == limit < count:
            click.echo(f"cog-celery: the newest {limit} of {count} letters; --limit {count} looks at all", err=True)
    return SUCCEEDED


@dead.command(
    short_help="One with its request.",
    **examples(
        "cog-celery dead show 1663857077000-0 --queue my-predict-queue",
        "cog-celery dead show 1663857077000-0 --queue my-predict-queue --output json | jq -r '.fields[0][1]'",
    ),
)
@click.argument("id", metavar="ID")
@OUTPUT
@options_of("dead")
def show(id: str, output: str | None, **flags: object) -> int:
    """Shows a dead letter and the request in it; as JSON nothing is left out."""
    settings = load(flags, quiet=True)
    queue, id = settings.queue, _checked(id)

    from cog_celery.cli import dead_view
    from cog_celery.delivery.dead import DeadLetters
    from cog_celery.producer.clients import connected

    with connected(settings.redis_url) as client:
        letter = DeadLetters(client, queue).get(id)
    if letter is None:
        return complain(_unknown(queue, id), FAILED)
    if (output or default_output()) == "json":
        click.echo(dead_view.letter_json(letter))
    else:
        dead_view.print_letter(letter)
    return SUCCEEDED


@dead.command(
    short_help="Put requests back into the queue.",
    **examples(
        "cog-celery dead retry 1663857077000-0 --queue my-predict-queue",
        'cog-celery dead retry --all --reason "lost with its worker" --queue my-predict-queue',
    ),
)
@IDS
@ALL
@REASON
@options_of("dead")
def retry(ids: tuple[str, ...], everything: bool, reason: str, **flags: object) -> int:
    """Puts requests back into the queue, as they were sent, and removes their letters; prints their new entries.

    Each is a new entry, with all its attempts before it. A deadline that it has is what it was.
    """
    settings = load(flags, quiet=True)
    queue = settings.queue
    _check_choice(ids, everything, reason)

    from rich.console import Console

    from cog_celery.delivery.dead import DeadLetters
    from cog_celery.producer.clients import connected

    out = Console(highlight=False, soft_wrap=True)
    status, done = SUCCEEDED, 0
    with connected(settings.redis_url) as client:
        letters = DeadLetters(client, queue)
        chosen = _chosen(letters, ids, everything, reason)
        # On one terminal, what is printed has to go past the bar by the same way.
        bar = out if out.is_terminal else Console(stderr=True)
        for id in _tracked(bar, chosen, len(chosen), "retrying"):
            try:
                entry = letters.retry(id)
            except ServerError as error:
                status = complain(str(error), FAILED)
                continue
            if entry is None:
                status = complain(_unknown(queue, id), FAILED)
            else:
                out.print(entry)
                done += 1
    if everything:
        click.echo(f"cog-celery: {_letters(done)} put back into {queue}", err=True)
    return status if chosen else complain(_nothing(queue, reason), FAILED)


@dead.command(
    short_help="Throw them away.",
    **examples(
        "cog-celery dead drop 1663857077000-0 --queue my-predict-queue",
        "cog-celery dead drop --all --reason 'not JSON' --queue my-predict-queue --yes",
    ),
)
@IDS
@ALL
@REASON
@click.option("--yes", is_flag=True, help="Do not ask.")
@options_of("dead")
def drop(ids: tuple[str, ...], everything: bool, reason: str, yes: bool, **flags: object) -> int:
    """Throws dead letters away, and the requests in them. Asks first, on a terminal; elsewhere --yes is needed."""
    settings = load(flags, quiet=True)
    queue = settings.queue
    _check_choice(ids, everything, reason)
    if not yes and not sys.stdin.isatty():
        raise UsageError("dead drop: there is no terminal to ask on; with --yes it is done without")

    from rich.console import Console

    from cog_celery.delivery.dead import DROPPED, DeadLetters
    from cog_celery.producer.clients import connected

    with connected(settings.redis_url) as client:
        letters = DeadLetters(client, queue)
        chosen = _chosen(letters, ids, everything, reason)
        if not chosen:
            return complain(_nothing(queue, reason), FAILED)
        if not yes and not click.confirm(f"Drop {_letters(len(chosen))} of {queue} for good?", err=True):
            return complain("nothing was dropped", FAILED)
        total = -(-len(chosen) // DROPPED)
        done = sum(_tracked(Console(stderr=True), letters.drop(chosen), total, "dropping"))
    click.echo(f"cog-celery: {_letters(done)} of {queue} dropped", err=True)
    if done < len(chosen):
        return complain(f"{_letters(len(chosen) - done)} of these were not there (see cog-celery dead list)", FAILED)
    return SUCCEEDED


def _check_choice(ids: tuple[str, ...], everything: bool, reason: str) -> None:
    """Raise UsageError unless it was said which letters are meant."""
    if everything == bool(ids):
        raise UsageError("dead: either IDs or --all are needed: cog-celery dead list shows them")
    if reason and not everything:
        raise UsageError("dead: --reason chooses among --all, not among IDs")
    for id in ids:
        _checked(id)


def _checked(id: str) -> str:
    match = _ID.fullmatch(id)
    if match is None or max(int(match[1]), int(match[2])) >= 1 << 64:
        raise UsageError(
            f"{id[:40]!r} is no letter's id, which is like 1663857077000-0: cog-celery dead list shows them"
        )
    return id


def _chosen(letters: DeadLetters, ids: tuple[str, ...], everything: bool, reason: str) -> list[str]:
    # A letter that comes from now on is none of those that were meant: a retried request may be buried again at once.
    return letters.ids(reason) if everything else list(dict.fromkeys(ids))


def _tracked(console: Console, items: Iterable[T], total: int, doing: str) -> Iterator[T]:
    """The items; when there are many, with a bar that shows how far it is, if this is a terminal."""
    if total < MANY or not console.is_terminal:
        yield from items
    else:
        from rich.progress import track

        yield from track(items, doing, total=total, console=console, transient=True)


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


def _nothing(queue: str, reason: str) -> str:
    return f"{queue} has no dead letters" + (f" with {reason[:40]!r} in their reason" if reason else "")


def _unknown(queue: str, id: str) -> str:
    return (
        f"{queue} has no dead letter {id}: it was retried, dropped or pushed out by newer ones, or is no letter's id "
        f"(see cog-celery dead list --queue {queue})"
    )
