"""The life of a runner: hello, load, setup, ready, then predictions until the worker has no more.

It must not know Redis or files.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import time
from typing import Any, NoReturn, Optional

from . import events, process
from .asynchronous import Loop
from .cancelation import Cancelation
from .channel import Channel
from .load import Predictor, load_predictor
from .prediction import Predictions, ProtocolError, describe, show
from .refusal import Refused

USAGE = "usage: python -u …/cog/_runner/__main__.py <read fd> <write fd> <worker pid>"
_ID = re.compile(rb'\{\s*"type"\s*:\s*"predict"\s*,\s*"id"\s*:\s*("(?:[^"\\]|\\.)*")')


def main(arguments: list[str]) -> None:
    """Run until the worker closes its pipe; the arguments are two file descriptors and the worker's process id."""
    try:
        read_fd, write_fd, worker = map(int, arguments)
    except ValueError:
        sys.exit(USAGE)
    process.die_with(worker, read_fd)
    process.be_first_out_of_memory()
    process.prepare_streams()
    cancelation = Cancelation()
    cancelation.install()
    channel = Channel(read_fd, write_fd)
    try:
        _serve(channel, cancelation)
    except ProtocolError as error:
        process.write_error(f"{error}\n")
        os._exit(1)
    process.limit_exit()


def _serve(channel: Channel, cancelation: Cancelation) -> None:
    channel.send(events.hello())
    message = _next(channel)
    if message is None:
        return
    if message["type"] != "load" or message.get("protocol") != events.PROTOCOL:
        raise ProtocolError(f"The first message has to be load of protocol {events.PROTOCOL}.")
    loop = Loop()
    predictor = _set_up(channel, message, loop)
    cancelation.install()  # again: what the model imported may have taken the signal
    predictions = Predictions(predictor, channel, cancelation, loop)
    while True:
        message = _next(channel)
        if message is None:
            break
        if message["type"] == "predict":
            if not predictions.serve(message, lambda: _next(channel)):
                break
        elif message["type"] not in ("go", "drop"):  # these: for a prediction that is over
            raise ProtocolError(
                f"The worker sent {message['type']!r}, which is no message of protocol {events.PROTOCOL}."
            )
    predictions.close()
    loop.close()


def _set_up(channel: Channel, message: dict[str, Any], loop: Loop) -> Predictor:
    """Load the predictor and run its setup(); ends the process when that fails."""
    started = time.perf_counter()
    try:
        predictor = load_predictor(message["model_dir"], message.get("predict"))
        for note in predictor.signature.notes:
            print(note, file=sys.stderr)
        if predictor.setup is not None:
            result = predictor.setup()
            if inspect.isawaitable(result):
                loop.run(_awaited(result))
    except Refused as refused:
        if refused.__cause__ is not None:
            show(refused.__cause__)
        _fail(channel, "refused", str(refused))
    except Exception as error:
        show(error)
        _fail(channel, "raised", describe(error))
    process.flush_streams()
    channel.send(events.ready(time.perf_counter() - started, predictor.signature.inputs))
    return predictor


async def _awaited(result: Any) -> Any:
    return await result


def _fail(channel: Channel, kind: str, error: str) -> NoReturn:
    process.flush_streams()
    channel.send(events.setup_failed(kind, error))
    os._exit(1)


def _next(channel: Channel) -> Optional[dict[str, Any]]:
    """The next message; None when the worker has no more. An input that Python cannot read is refused here."""
    while True:
        line = channel.receive()
        if line is None:
            return None
        try:
            message = json.loads(line)
            if isinstance(message, dict) and isinstance(message.get("type"), str):
                return message
        except (ValueError, RecursionError) as error:
            # Too deep, or a number of too many digits: JSON all the same, and its producer's fault, not the worker's.
            id = _ID.match(line)
            if id is not None:
                sentence = f"the input cannot be read: {error}"
                channel.send(
                    events.refused(id.group(1), [{"field": "input", "kind": "invalid", "limit": sentence, "value": ""}])
                )
                continue
        raise ProtocolError(f"The worker sent what is no message: {line[:200]!r}")
