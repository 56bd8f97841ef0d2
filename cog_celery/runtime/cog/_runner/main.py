"""The life of a runner: hello, load, setup, ready, then predictions until the worker has no more.

It must not know Redis or files.
"""

from __future__ import annotations

import os
import re
import sys
from json import loads  # as it is now, whatever the model does to it
from time import perf_counter
from typing import Any, NoReturn, Optional

from . import events, process
from .cancelation import Cancelation
from .channel import Channel
from .failures import describe, show
from .load import Predictor, load_predictor
from .loop import Loop, awaited
from .prediction import Predictions, ProtocolError
from .queries import Queries
from .refusal import Refused
from .signature import Signature

USAGE = "usage: python -u …/cog/_runner/__main__.py <read fd> <write fd> <worker pid>"
_ID = r'\{\s*"type"\s*:\s*"predict"\s*,\s*"id"\s*:\s*("(?:[^"\\]|\\.)*")'


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
        raise ProtocolError(
            f"The worker sent {message['type']!r} of protocol {message.get('protocol')}; this runner expects 'load' of "
            f"protocol {events.PROTOCOL}: install one release of both."
        )
    loop = Loop()
    predictor, limit = _set_up(channel, message, loop)
    cancelation.install()  # again: what the model imported may have taken the signal
    queries = Queries(predictor, loop, channel)
    if predictor.in_loop or limit > 1:
        _serve_in_loop(predictor, channel, cancelation, loop, limit, queries)
    else:
        _serve_in_turn(predictor, channel, cancelation, loop, queries)
    loop.close()


def _serve_in_turn(
    predictor: Predictor, channel: Channel, cancelation: Cancelation, loop: Loop, queries: Queries
) -> None:
    predictions = Predictions(predictor, channel, cancelation, loop)
    while True:
        message = _next(channel)
        if message is None:
            break
        if message["type"] == "predict":
            if not predictions.serve(message, lambda: _next(channel)):
                break
        elif message["type"] not in ("go", "drop", "cancel") and not queries.answer(message):
            # These three: for a prediction that is over.
            raise ProtocolError(
                f"The worker sent {message['type']!r}, which is no message of protocol {events.PROTOCOL}."
            )
    predictions.close()


def _serve_in_loop(
    predictor: Predictor, channel: Channel, cancelation: Cancelation, loop: Loop, limit: int, queries: Queries
) -> None:
    from .tasks import Tasks  # needs more of Python than a runner of a model that is not async has

    tasks = Tasks(predictor, channel, cancelation, loop, limit)
    tasks.serve(lambda line: _parse(line, channel), queries.answer_in_loop)


def _set_up(channel: Channel, message: dict[str, Any], loop: Loop) -> tuple[Predictor, int]:
    """Load the predictor and run its setup(); ends the process when that fails. With how many it may run at once."""
    started = perf_counter()
    wanted = message.get("concurrency", 1)
    undo = None
    if wanted > 1:
        from .logs import tell_apart  # before the model sees sys.stdout

        undo = tell_apart()

    def before_making(signature: Signature) -> None:
        if signature.is_async:
            loop.start()

    entered: Optional[float] = None
    in_setup = 0.0
    try:
        predictor = load_predictor(message["model_dir"], message.get("predict"), before_making)
        for note in predictor.signature.notes:
            print(note, file=sys.stderr)
        if predictor.setup is not None and message.get("setup", True):
            entered = perf_counter()
            result = predictor.setup()
            if hasattr(result, "__await__"):
                loop.run(awaited(result))
            in_setup = perf_counter() - entered
    except Refused as refused:
        if refused.__cause__ is not None:
            show(refused.__cause__)
        _fail(channel, "refused", str(refused), entered)
    except Exception as error:
        show(error)
        _fail(channel, "raised", describe(error), entered)
    process.flush_streams()
    process.give_back_memory()
    limit = min(wanted, predictor.concurrency)
    if undo is not None and limit == 1:
        undo()
    has_healthcheck = predictor.healthcheck is not None
    took = perf_counter() - started
    channel.send(events.ready(took, in_setup, predictor.signature.inputs, limit, has_healthcheck))
    return predictor, limit


def _fail(channel: Channel, kind: str, error: str, entered: Optional[float]) -> NoReturn:
    in_setup = None if entered is None else round(perf_counter() - entered, 6)
    process.flush_streams()
    channel.send(events.setup_failed(kind, error, in_setup))
    os._exit(1)


def _next(channel: Channel) -> Optional[dict[str, Any]]:
    """The next message; None when the worker has no more."""
    while True:
        line = channel.receive()
        if line is None:
            return None
        message = _parse(line, channel)
        if message is not None:
            return message


def _parse(line: bytes, channel: Channel) -> Optional[dict[str, Any]]:
    """A message; None for an input that Python cannot read, which is refused here. Raises ProtocolError."""
    try:
        message = loads(line)
        if isinstance(message, dict) and isinstance(message.get("type"), str):
            return message
    except (ValueError, RecursionError) as error:
        # Too deep, or a number of too many digits: JSON all the same, and its producer's fault, not the worker's.
        id = re.match(_ID.encode(), line)
        if id is not None:
            sentence = f"the input cannot be read: {error}"
            channel.send(
                events.refused(id.group(1), [{"field": "input", "kind": "invalid", "limit": sentence, "value": ""}])
            )
            return None
    raise ProtocolError(f"The worker sent what is no message: {line[:200]!r}")
