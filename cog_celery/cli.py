"""The command `cog-celery`: what is typed becomes Settings and inputs, what happens becomes an exit status.

It must not know how anything is done; parts are imported when their command runs, so that help comes at once.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final, NoReturn, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import click

from cog_celery import __version__, logs
from cog_celery.errors import CogCeleryError, UsageError
from cog_celery.settings import OPTIONS, Option, Settings, default_queue, given, masked_url, nearest

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
    if quiet:
        logs.set_up(settings.log_level if given("log_level", flags, os.environ) else "warning")
    else:
        logs.set_up(settings.log_level, settings.log_format)
    return settings


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


@cli.command(
    short_help="Bridge and worker for one model, in one command.",
    **examples(
        "cog-celery run workers/hello",
        "cog-celery run workers/thumbnails --queue my-predict-queue --redis-url redis://localhost:6379 --slots 4",
        "cog-celery run my-model --gpus auto --upload-url https://files.example.com/outputs",
    ),
)
@MODEL_DIR
@options_of("run")
def run(**flags: object) -> int:
    """Bridge and worker together for the model in MODEL_DIR, on a Redis of their own unless one is named."""
    from cog_celery import supervisor

    settings = load(flags)
    if not settings.queues and settings.model_dir is not None:
        settings = settings.with_queue(default_queue(settings.model_dir))
    settings = settings.for_bridge().for_worker()
    embedded = not given("redis_url", flags, os.environ)

    def ready(settings: Settings, inputs: supervisor.Inputs) -> None:
        click.echo(how_to_send(settings, inputs))

    log.info("loading %s for queue %s", settings.model_dir, settings.queue)
    return supervisor.run(settings, embedded=embedded, ready=ready)


@cli.command(
    short_help="Give requests to workers whose slots are idle.",
    **examples(
        "cog-celery bridge --queue my-predict-queue",
        "cog-celery bridge --queue first --queue second --redis-url redis://redis:6379 --broker-url amqp://rabbitmq",
    ),
)
@options_of("bridge")
def bridge(**flags: object) -> int:
    """Gives the requests of one or more queues to workers whose slots are idle."""
    stops_at_once()
    settings = load(flags).for_bridge()
    from cog_celery import bridge as part

    return part.run(settings)


@cli.command(
    short_help="Predict with a model, in slots of its own.",
    **examples(
        "cog-celery worker my-model --queue my-predict-queue",
        "cog-celery worker my-model --queue my-predict-queue --gpus 0,1 --python my-model/.venv/bin/python",
        "COG_CELERY_MODEL_DIR=my-model COG_CELERY_QUEUE=my-predict-queue celery -A cog_celery worker",
    ),
)
@MODEL_DIR
@options_of("worker")
def worker(**flags: object) -> int:
    """Predicts with the model in MODEL_DIR, in slots of its own."""
    stops_at_once()
    settings = load(flags).for_worker()
    from cog_celery import worker as part

    return part.run(settings)


@cli.command(
    short_help="Send one request, or a file of them, and follow it.",
    **examples(
        "cog-celery send --queue my-predict-queue -i text=hello",
        "cog-celery send --queue my-predict-queue -i image=@photo.jpg -i width=200",
        'cog-celery send --queue my-predict-queue --json \'{"text": "hello"}\' | jq .output',
        "cog-celery send --queue my-predict-queue --file requests.jsonl > responses.jsonl",
    ),
)
@INPUT
@JSON_INPUTS
@click.option(
    "--file",
    metavar="FILE",
    help='Send a request for each line, {"input": {…}} and whatever else a request may have; - for standard input. '
    "Inputs of -i and --json hold for every line that names no others.",
)
@click.option("--no-wait", is_flag=True, help="With --file: only send; who reads the responses is told their keys.")
@OUTPUT
@options_of("send")
def send(
    pairs: tuple[str, ...], json_text: str | None, file: str | None, no_wait: bool, output: str | None, **flags: object
) -> int:
    """Sends one request as any producer would, or a file of them, and follows it to its end. Ctrl-C cancels it.

    Exit status: 0 succeeded, 1 failed, 2 wrong use, 130 canceled. Of a file: 0 when all of it succeeded.
    """
    if no_wait and file is None:
        raise UsageError("--no-wait goes with --file")
    if file == json_text == "-":
        raise UsageError("--file - and --json - cannot both be standard input")
    settings = load(flags, quiet=True)
    queue = settings.queue
    inputs = _typed_inputs(settings, pairs, json_text)
    as_json = (output or default_output()) == "json"
    if file is not None:
        return _send_file(settings, file, inputs, as_json=as_json, wait=not no_wait)

    from rich.console import Console

    from cog_celery import sending
    from cog_celery.clients import connected
    from cog_celery.sending_view import JsonView, TextView, View

    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    view: View = JsonView(out, err) if as_json else TextView(out, err)
    with Interruptions() as interruptions, connected(settings.redis_url) as client, view:
        sent = sending.send(client, queue, inputs, settings.max_request_bytes)
        view.sent(sent)
        try:
            snapshot = sending.follow(client, sent, view, lambda: interruptions.count)
        except sending.Interrupted:
            view.notice(f"left without waiting for the end; the response will be at {sent.response_queue}")
            return CANCELED
        view.ended(snapshot)
    return STATUSES[snapshot["status"]]


def _typed_inputs(settings: Settings, pairs: Sequence[str], json_text: str | None) -> dict[str, object]:
    from cog_celery.cli_inputs import Files, read_inputs

    # A file grows by a third as a data URI, and has to fit into the request.
    most = settings.max_request_bytes * 3 // 4
    if settings.input_upload_url is None:
        advice = "name a place for large files (--input-upload-url), or give a URL where the model can fetch it"
        return read_inputs(pairs, json_text, Files(most, advice=advice))

    from rich.console import Console

    from cog_celery.input_uploads import InputUploads
    from cog_celery.sending_many_view import UploadBar

    with UploadBar(Console(stderr=True)) as bar:
        return read_inputs(pairs, json_text, Files(most, InputUploads(settings.input_upload_url, bar.moved).put))


def _send_file(settings: Settings, file: str, inputs: dict[str, object], *, as_json: bool, wait: bool) -> int:
    from rich.console import Console

    from cog_celery import sending, sending_many
    from cog_celery.clients import connected
    from cog_celery.sending_many_view import ManyView, count_lines

    try:
        descriptor = os.dup(0) if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"--file {file}: {error.strerror}") from None
    lines = sending_many.Lines(descriptor, settings.max_request_bytes)
    plan = sending_many.Plan(lines, settings.queue, inputs, settings.max_request_bytes, wait)
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    total = count_lines(file) if file != "-" and err.is_terminal else None
    view = ManyView(out, err, as_json=as_json, total=total, wait=wait)
    all_sent = False
    with Interruptions() as interruptions, connected(settings.redis_url) as client, view:
        try:
            all_sent = sending_many.send_all(client, plan, view, lambda: interruptions.count)
        except sending.Interrupted:
            view.notice("left without waiting for the end; the responses will be at their keys")
        finally:
            view.finished(all_sent=all_sent)
    if interruptions.count:
        return CANCELED
    return SUCCEEDED if all_sent and view.all_well else FAILED


@cli.command(
    short_help="Predict once, here and now, without Redis.",
    **examples(
        "cog-celery predict workers/hello -i text=world",
        "cog-celery predict my-model",
        "cog-celery predict my-model -i image=@photo.jpg --python my-model/.venv/bin/python",
        'echo \'{"text": "world"}\' | cog-celery predict workers/hello --json -',
    ),
)
@MODEL_DIR
@INPUT
@JSON_INPUTS
@options_of("predict")
def predict(pairs: tuple[str, ...], json_text: str | None, **flags: object) -> int:
    """One prediction with the model in MODEL_DIR, here and now, without Redis.

    Without -i and --json, the model's own test_inputs are predicted with, if it has them.
    The response goes to standard output as JSON, logs go to standard error. Exit status: 0 succeeded, 1 failed, 2 wrong
    use, 130 canceled.
    """
    from cog_celery.cli_inputs import Files, read_inputs

    settings = load(flags, quiet=True).for_model()
    given = pairs or json_text is not None
    inputs = read_inputs(pairs, json_text, Files(settings.max_data_uri_bytes)) if given else None

    from rich.console import Console

    from cog_celery import local
    from cog_celery.sending_view import print_json

    snapshot, status = local.predict(settings, inputs)
    print_json(Console(), snapshot)
    return status


@cli.command(
    short_help="Cancel a prediction, waiting or running.",
    **examples(
        "cog-celery cancel 5f2c6ad1 --queue my-predict-queue",
        "cog-celery cancel 1663857077000-0 --queue my-predict-queue",
    ),
)
@click.argument("prediction", metavar="ID")
@options_of("cancel")
def cancel(prediction: str, **flags: object) -> int:
    """Cancels the prediction with this id, or of the stream's entry with this id, waiting or running."""
    settings = load(flags, quiet=True)
    queue = settings.queue

    from cog_celery import sending
    from cog_celery.clients import connected

    with connected(settings.redis_url) as client:
        sending.cancel(client, queue, prediction)
    click.echo(f"cog-celery: {prediction} is being canceled", err=True)
    return SUCCEEDED


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
    from cog_celery import checking

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


SAMPLES: Final = {"int": 1, "float": 1.0, "bool": True, "Path": "https://example.com/file"}


def how_to_send(settings: Settings, inputs: Sequence[tuple[str, str]] = ()) -> str:
    """What a person can paste to use a served queue, without passwords; `inputs`: names and types it must have."""
    queue, url = settings.queue, urlsplit(settings.redis_url)
    words = ["redis-cli"]
    if url.scheme == "unix":
        words += ["-s", unquote(url.path)]
    else:
        words += ["-h", url.hostname] if url.hostname not in ("localhost", "127.0.0.1", None) else []
        words += ["-p", str(url.port or 6379)]
        words += ["--tls"] if url.scheme == "rediss" else []
    database = parse_qs(url.query).get("db", [url.path.strip("/") if url.scheme != "unix" else ""])[0]
    words += ["-n", database] if database not in ("", "0") else []
    response = f"{queue}-response"
    samples = {name: [] if kind.startswith(("List", "list")) else SAMPLES.get(kind, "text") for name, kind in inputs}
    message = json.dumps({"input": samples, "response_queue": response}, separators=(",", ":"))
    shown = masked_url(settings.redis_url)
    send = ["cog-celery", "send", "--queue", queue]
    for name, sample in samples.items() or [("NAME", "VALUE")]:
        send += ["-i", f"{name}={sample if isinstance(sample, str) else json.dumps(sample)}"]
    # A URL with secrets is not printed: then it has to be where `send` finds it.
    where = "" if shown != settings.redis_url else f" --redis-url {shlex.quote(shown)}"
    lines = [
        f"Ready. Requests go to the stream {queue} on {shown}, for example:",
        "",
        f"  {shlex.join([*words, 'XADD', queue, '*', 'value', message])}",
        f"  {shlex.join([*words, 'GET', response])}",
        "",
        f"  {shlex.join(send)}{where}",
    ]
    return "\n".join(lines)


def default_output() -> str:
    """The form of what is printed unless --output says it."""
    return "text" if sys.stdout.isatty() else "json"


def main() -> NoReturn:
    """The console script."""
    cli.main()


from cog_celery import cli_dead as cli_dead  # noqa: E402  (adds its commands, with what is above)
from cog_celery import cli_health as cli_health  # noqa: E402
from cog_celery import cli_models as cli_models  # noqa: E402
from cog_celery import cli_status as cli_status  # noqa: E402
