"""The commands that serve queues: `run`, `bridge` and `worker`.

It must not know how anything is done; parts are imported when their command runs, so that help comes at once.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from typing import Final

import click

from cog_celery.cli.base import (
    MODEL_DIR,
    cli,
    examples,
    load,
    options_of,
    set_up_logs,
    stops_at_once,
)
from cog_celery.server_urls import parse_redis
from cog_celery.settings import Settings, default_queue, given, masked_url

log = logging.getLogger(__name__)


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
    from cog_celery.local import supervisor

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
        "cog-celery bridge --fleet fleet.yaml",
    ),
)
@options_of("bridge")
def bridge(**flags: object) -> int:
    """Gives the requests of one or more queues to workers whose slots are idle."""
    stops_at_once()
    from cog_celery import fleet

    settings, plans = fleet.plans(flags, os.environ)
    set_up_logs(settings, flags)
    from cog_celery.bridge import process

    return process.run(settings, plans)


@cli.command(
    short_help="Predict with a model, in slots of its own.",
    **examples(
        "cog-celery worker my-model --queue my-predict-queue",
        "cog-celery worker my-model --queue my-predict-queue --gpus 0,1 --python my-model/.venv/bin/python",
        "cog-celery worker --fleet fleet.yaml --queue hello",
        "COG_CELERY_MODEL_DIR=my-model COG_CELERY_QUEUE=my-predict-queue celery -A cog_celery worker",
    ),
)
@MODEL_DIR
@options_of("worker")
def worker(**flags: object) -> int:
    """Predicts with the model in MODEL_DIR, in slots of its own."""
    stops_at_once()
    from cog_celery import fleet

    settings = fleet.load(flags, os.environ).for_worker()
    set_up_logs(settings, flags)
    from cog_celery.worker import process

    return process.run(settings)


SAMPLES: Final = {"int": 1, "float": 1.0, "bool": True, "Path": "https://example.com/file"}


def how_to_send(settings: Settings, inputs: Sequence[tuple[str, str]] = ()) -> str:
    """What a person can paste to use a served queue, without passwords; `inputs`: names and types it must have."""
    queue, at = settings.queue, parse_redis(settings.redis_url)
    words = ["redis-cli"]
    if at.path:
        words += ["-s", at.path]
    else:
        host, port = at.hosts[0]
        words += ["-h", host] if host not in ("localhost", "127.0.0.1") else []
        words += ["-p", str(port)]
    if at.tls is not None:
        words += ["--tls"]
        for option, name in (("--cacert", "ssl_ca_certs"), ("--cert", "ssl_certfile"), ("--key", "ssl_keyfile")):
            words += [option, str(at.tls[name])] if name in at.tls else []
    words += ["-n", str(at.database)] if at.database else []
    response = f"{queue}-response"
    samples = {name: [] if kind.startswith(("List", "list")) else SAMPLES.get(kind, "text") for name, kind in inputs}
    message = json.dumps({"input": samples, "response_queue": response}, separators=(",", ":"))
    shown = masked_url(settings.redis_url)
    send = ["cog-celery", "send", "--queue", queue]
    for name, sample in samples.items() or [("NAME", "VALUE")]:
        send += ["-i", f"{name}={sample if isinstance(sample, str) else json.dumps(sample)}"]
    # A URL with secrets is not printed: then it has to be where `send` finds it.
    where = "" if shown != settings.redis_url else f" --redis-url {shlex.quote(shown)}"
    lines = [f"Ready. Requests go to the stream {queue} on {shown}, for example:", ""]
    if not at.service:  # where the primary is, sentinels say from moment to moment
        lines += [
            f"  {shlex.join([*words, 'XADD', queue, '*', 'value', message])}",
            f"  {shlex.join([*words, 'GET', response])}",
            "",
        ]
    lines.append(f"  {shlex.join(send)}{where}")
    return "\n".join(lines)
