"""`python -m cog_celery.redis_queue`, the drop-in for Cog's own: its arguments, in a model's folder; bridge and worker.

It must not import anything before the model's folder is off the path: a model's `redis.py` would shadow ours.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # As Cog does: as process 1 of a container, a SIGTERM that nobody handles would be ignored.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    if not sys.flags.safe_path:
        del sys.path[0]

import argparse
from collections.abc import Sequence
from typing import NoReturn

from cog_celery.errors import CogCeleryError, UsageError
from cog_celery.settings import Settings, given

# The order of Cog's positional arguments, by the names of its flags.
POSITIONS = (
    "redis_host",
    "redis_port",
    "input_queue",
    "upload_url",
    "consumer_id",
    "model_id",
    "log_queue",
    "predict_timeout",
)
FLAGS = (*POSITIONS, "redis_url", "report_setup_run_url", "max_failure_count")
# Cog's names of what are settings here.
FIELDS = {"input_queue": "queues", "consumer_id": "name"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def parse(arguments: Sequence[str], env: dict[str, str]) -> Settings:
    """The Settings that Cog's arguments mean; flags win over positions, both over variables. Raises UsageError."""
    parser = _Parser(
        prog="python -m cog_celery.redis_queue",
        usage="%(prog)s " + " ".join(POSITIONS[:-1]) + " [predict_timeout]",
        description="Cog's queue worker, on Celery: run it in a model's folder. Every COG_CELERY_* variable is obeyed.",
        epilog='Example: python -m cog_celery.redis_queue localhost 6379 my-queue "" my-worker my-model my-logs 60',
        allow_abbrev=False,
    )
    parser.add_argument("positions", nargs="*", metavar="argument", help="as in the first line, or by name:")
    for flag in FLAGS:
        parser.add_argument("--" + flag.replace("_", "-"), metavar=flag.rpartition("_")[2].upper())
    parsed = vars(parser.parse_intermixed_args(arguments))
    positions = parsed.pop("positions")
    if len(positions) > len(POSITIONS):
        raise UsageError(f"{len(positions)} arguments, at most {len(POSITIONS)} are known: {' '.join(POSITIONS)}")
    told = dict(zip(POSITIONS, positions, strict=False)) | {k: v for k, v in parsed.items() if v is not None}
    return _settings({name: value for name, value in told.items() if value != ""}, env)


def _settings(told: dict[str, str], env: dict[str, str]) -> Settings:
    host, port = told.pop("redis_host", None), told.pop("redis_port", None)
    if "redis_url" not in told and (host or port):
        if port is not None and not (port.isdecimal() and 0 < int(port) < 65536):
            raise UsageError(f"redis_port {port!r}: a port is a number from 1 to 65535")
        host = host or "localhost"
        told["redis_url"] = f"redis://{f'[{host}]' if ':' in host else host}:{port or 6379}/0"
    flags: dict[str, object] = {FIELDS.get(name, name): value for name, value in told.items()}
    if not given("redis_url", flags, env):
        raise UsageError("redis_host and redis_port are needed, or --redis-url")
    if not given("create_group", flags, env):
        flags["create_group"] = False  # the queue is its operator's to make, as with Cog
    return Settings.load({**flags, "model_dir": os.getcwd()}, env).for_bridge().for_worker()


def main() -> int:
    """Run bridge and worker until told to stop; returns the exit status."""
    from cog_celery.cli import base
    from cog_celery.local import supervisor
    from cog_celery.telemetry import logs

    def ready(settings: Settings, inputs: supervisor.Inputs) -> None:
        print(f"Waiting for message on {settings.queue}", file=sys.stderr, flush=True)

    try:
        settings = parse(sys.argv[1:], dict(os.environ))
        logs.set_up(settings.log_level, settings.log_format)
        return supervisor.run(settings, embedded=False, ready=ready, stopped_early=1)
    except UsageError as error:
        return base.complain(str(error), base.WRONG_USE)
    except CogCeleryError as error:
        return base.complain(str(error), base.FAILED)


if __name__ == "__main__":
    sys.exit(main())
