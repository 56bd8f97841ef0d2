"""The command `cog-celery`, with all of its commands.

It must not know how anything is done; parts are imported when their command runs, so that help comes at once.
"""

from __future__ import annotations

import logging
import os
from typing import NoReturn

import click

from cog_celery.cli import dead, fleet, health, models, requests, status
from cog_celery.cli.base import (
    FAILED,
    OUTPUT,
    SUCCEEDED,
    cli,
    default_output,
    examples,
    load,
    options_of,
)
from cog_celery.settings import OPTIONS, given

__all__ = ["cli", "main"]

PARTS = (fleet, requests, models, dead, status, health)
"""Whose commands are added as they are imported."""

log = logging.getLogger(__name__)


@cli.command(
    short_help="Look whether servers and GPUs are fit.",
    **examples(
        "cog-celery check",
        "cog-celery check --redis-url redis://redis:6379 --broker-url amqp://rabbitmq",
        "cog-celery check --output json",
    ),
)
@OUTPUT
@options_of("check")
def check(output: str | None, **flags: object) -> int:
    """Looks whether servers, GPUs and the model's interpreter are fit for the work, and says what to do.

    Exit status: 1 when something is not.
    """
    settings = load(flags, quiet=True)
    from cog_celery.producer import checking

    findings = checking.check(settings, python_named=given("python", flags, os.environ))
    if (output or default_output()) == "json":
        click.echo(checking.as_json(findings))
    else:
        checking.print_table(findings)
    return FAILED if any(finding.verdict == "fail" for finding in findings) else SUCCEEDED


@cli.command(hidden=True)
@click.option("--markdown", is_flag=True, required=True)
def options(markdown: bool) -> int:
    """The table of options, as it stands in the documentation."""
    click.echo(options_table())
    return SUCCEEDED


def options_table() -> str:
    """Every option with its variable, default and meaning, in Markdown."""
    rows = ["| option | variable | default | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        flag = f"`{option.flag}{' ' + option.kind.metavar if option.kind.metavar and option.commands else ''}`"
        if option.kind.switch:
            flag = f"`{option.flag}`, `{option.flag.replace('--', '--no-')}`"
        variables = ", ".join(f"`{variable}`" for variable in option.variables)
        cells = (flag, variables, option.shown_default, option.help)
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def main() -> NoReturn:
    """The console script."""
    cli.main()
