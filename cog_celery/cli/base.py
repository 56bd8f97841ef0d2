"""What all commands share: the group, its options and exit statuses, and how what is typed becomes Settings.

It must not know any command.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NoReturn, Self, TypeVar

import click

from cog_celery import __version__
from cog_celery.errors import CogCeleryError, UsageError
from cog_celery.settings import OPTIONS, Option, Settings, given, nearest
from cog_celery.telemetry import logs

SUCCEEDED, FAILED, WRONG_USE, CANCELED = 0, 1, 2, 130
STATUSES: Final = {"succeeded": SUCCEEDED, "failed": FAILED, "canceled": CANCELED}

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """The group of commands; an error is one line on standard error and an exit status, whoever raised it."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command and exit. Click's own handling is off: it writes three lines where one says it all."""
        try:
            status = super().main(*args, **{"prog_name": "cog-celery", **extra, "standalone_mode": False})
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see {context.command_path} --help)" if context else ""
            status = complain(error.format_message().rstrip(".") + hint, WRONG_USE)
        except UsageError as error:
            status = complain(str(error), WRONG_USE)
        except CogCeleryError as error:
            status = complain(str(error), FAILED)
        except (KeyboardInterrupt, click.Abort):
            status = CANCELED
        except BrokenPipeError:
            # Who read our output is gone; without this, Python would complain again when it closes standard output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = FAILED
        sys.exit(status)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            shown = [command for command in self.list_commands(ctx) if not self.commands[command].hidden]
            raise UsageError(f"there is no command {name!r}{nearest(name, shown)} (see {ctx.command_path} --help)")
        return super().resolve_command(ctx, args)


def complain(message: str, status: int) -> int:
    """Write the error of the moment to standard error, with its traceback when debugging; returns `status`."""
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    click.echo(f"cog-celery: {message}", err=True)
    return status


def load(flags: dict[str, object], *, quiet: bool = False) -> Settings:
    """The Settings of a command, with logging set up as they say; `quiet`: for a person who waits, warnings alone
    unless they say otherwise.

    Raises UsageError.
    """
    settings = Settings.load(flags, os.environ)
    set_up_logs(settings, flags, quiet=quiet)
    return settings


def set_up_logs(settings: Settings, flags: dict[str, object], *, quiet: bool = False) -> None:
    """As load() says."""
    if quiet:
        logs.set_up(settings.log_level if given("log_level", flags, os.environ) else "warning")
    else:
        logs.set_up(settings.log_level, settings.log_format)


def stops_at_once() -> None:
    """End well at SIGTERM and SIGINT while nothing has begun; a process that takes work replaces these handlers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(SUCCEEDED))


def options_of(command: str) -> Callable[[F], F]:
    """The rows of the table that the command takes, as its options; they arrive as text under their fields' names."""

    def decorate(function: F) -> F:
        for option in reversed([option for option in OPTIONS if command in option.commands]):
            function = _click_option(option)(function)
        return function

    return decorate


def _click_option(option: Option) -> Callable[[F], F]:
    default = f"default: {option.shown_default}; " if option.shown_default else ""
    text = f"{option.help}  [{default}env: {' or '.join(option.variables)}]"
    if option.kind.switch:
        return click.option(f"{option.flag}/{option.flag.replace('--', '--no-')}", option.name, default=None, help=text)
    many = option.kind.many
    return click.option(option.flag, option.name, metavar=option.kind.metavar, multiple=many, help=text)


def examples(*lines: str) -> dict[str, Any]:
    """The end of a command's help."""
    return {"epilog": "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)}


MODEL_DIR = click.argument("model_dir", required=False)
INPUT = click.option(
    "-i",
    "--input",
    "pairs",
    metavar="NAME=VALUE|NAME=@FILE",
    multiple=True,
    help="An input; @FILE takes a file along. A name that is given again makes a list.",
)
JSON_INPUTS = click.option(
    "--json",
    "json_text",
    metavar="INPUTS",
    help="All inputs as a JSON object: the text itself, @FILE, or - for standard input.",
)
OUTPUT = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    help="Text for people, or JSON alone.  [default: text on a terminal, else json]",
)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    **examples(
        "cog-celery run workers/hello --queue hello",
        "cog-celery send --queue hello -i text=world",
    ),
)
@click.version_option(__version__, prog_name="cog-celery", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> int:
    """Cog predictions on a Celery pool: requests from a Redis stream, to predictors that are loaded once."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
    return WRONG_USE


class Interruptions:
    """Counts Ctrl-C and SIGTERM instead of dying of them; the third has its usual effect."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 2:
            self.__exit__()


def default_output() -> str:
    """The form of what is printed unless --output says it."""
    return "text" if sys.stdout.isatty() else "json"
