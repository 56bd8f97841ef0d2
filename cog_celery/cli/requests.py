"""The commands for one who wants predictions: `send`, `predict` and `cancel`.

It must not know how anything is done; parts are imported when their command runs, so that help comes at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import click

from cog_celery.cli.base import (
    CANCELED,
    FAILED,
    INPUT,
    JSON_INPUTS,
    MODEL_DIR,
    OUTPUT,
    STATUSES,
    SUCCEEDED,
    Interruptions,
    cli,
    default_output,
    examples,
    load,
    options_of,
)
from cog_celery.errors import UsageError
from cog_celery.settings import Settings

log = logging.getLogger(__name__)


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
@click.option("--version", metavar="TEXT", help="The model's version, for a queue that has several.")
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
    pairs: tuple[str, ...],
    json_text: str | None,
    version: str | None,
    file: str | None,
    no_wait: bool,
    output: str | None,
    **flags: object,
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
        return _send_file(settings, file, inputs, version, as_json=as_json, wait=not no_wait)

    from rich.console import Console

    from cog_celery.cli.sending_view import JsonView, TextView, View
    from cog_celery.producer import sending
    from cog_celery.producer.clients import connected

    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    view: View = JsonView(out, err) if as_json else TextView(out, err)
    with Interruptions() as interruptions, connected(settings.redis_url) as client, view:
        sent = sending.send(
            *(client, queue, inputs, settings.max_request_bytes), version=version, priority=bool(settings.priority)
        )
        view.sent(sent)
        try:
            snapshot = sending.follow(client, sent, view, lambda: interruptions.count)
        except sending.Interrupted:
            view.notice(f"left without waiting for the end; the response will be at {sent.response_queue}")
            return CANCELED
        view.ended(snapshot)
    return STATUSES[snapshot["status"]]


def _typed_inputs(settings: Settings, pairs: Sequence[str], json_text: str | None) -> dict[str, object]:
    from cog_celery.producer.given_inputs import Files, read_inputs

    # A file grows by a third as a data URI, and has to fit into the request.
    most = settings.max_request_bytes * 3 // 4
    if settings.input_upload_url is None:
        advice = "name a place for large files (--input-upload-url), or give a URL where the model can fetch it"
        return read_inputs(pairs, json_text, Files(most, advice=advice))

    from rich.console import Console

    from cog_celery.cli.sending_many_view import UploadBar
    from cog_celery.producer.input_uploads import InputUploads

    with UploadBar(Console(stderr=True)) as bar:
        return read_inputs(pairs, json_text, Files(most, InputUploads(settings.input_upload_url, bar.moved).put))


def _send_file(
    settings: Settings, file: str, inputs: dict[str, object], version: str | None, *, as_json: bool, wait: bool
) -> int:
    from rich.console import Console

    from cog_celery.cli.sending_many_view import ManyView, count_lines
    from cog_celery.producer import sending, sending_many
    from cog_celery.producer.clients import connected

    try:
        descriptor = os.dup(0) if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"--file {file}: {error.strerror}") from None
    lines = sending_many.Lines(descriptor, settings.max_request_bytes)
    plan = sending_many.Plan(
        *(lines, settings.queue, inputs, settings.max_request_bytes, wait, version), priority=bool(settings.priority)
    )
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
    from cog_celery.producer.given_inputs import Files, read_inputs

    settings = load(flags, quiet=True).for_model()
    given = pairs or json_text is not None
    inputs = read_inputs(pairs, json_text, Files(settings.max_data_uri_bytes)) if given else None

    from rich.console import Console

    from cog_celery.cli.sending_view import print_json
    from cog_celery.local import predicting

    snapshot, status = predicting.predict(settings, inputs)
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

    from cog_celery.producer import sending
    from cog_celery.producer.clients import connected

    with connected(settings.redis_url) as client:
        sending.cancel(client, queue, prediction)
    click.echo(f"cog-celery: {prediction} is being canceled", err=True)
    return SUCCEEDED
