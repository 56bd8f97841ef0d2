"""Runs predictions, one at a time: validate, wait for files, call the model, send what it puts out.

It must not know how it was loaded. The main thread runs the model's code, so that a signal can interrupt it;
`Cancelation` says when.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter  # as it is now, whatever the model does to it
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Optional

from ..exceptions import CancelationException
from ..scope import Scope, enter_scope
from . import events
from .cancelation import Cancelation, is_cancelation
from .channel import Channel
from .failures import describe, exit_as, show
from .load import Predictor
from .loop import Loop, awaited
from .outputs import Encoder, Files, StorageError, to_json
from .process import flush_streams
from .validation import Accepted, Validator

JSON_ONLY = frozenset({str, int, float, bool, type(None), dict, list, tuple})
"""Types that are an output by themselves: neither awaited nor iterated."""


class ProtocolError(Exception):
    """The worker said something that is not in the protocol."""


class Predictions:
    """The one who predicts in this process."""

    def __init__(self, predictor: Predictor, channel: Channel, cancelation: Cancelation, loop: Loop) -> None:
        self._call = predictor.call
        self._validator = Validator(predictor.signature)
        self._channel = channel
        self._cancelation = cancelation
        self._loop = loop
        self._files = Files()
        self._encode = Encoder(self._files).encode

    def close(self) -> None:
        """Remove what was written down for outputs."""
        self._files.clear()

    def serve(self, message: dict[str, Any], receive: Any) -> bool:
        """One prediction, from its message to `refused` or `done`. `receive` returns the next message.

        False when the worker went away meanwhile. Raises ProtocolError, and SystemExit of the model's.
        """
        id = to_json(message["id"])
        accepted, errors = self._validator.validate(message["input"])
        if accepted is None:
            self._channel.send(events.refused(id, errors))
            return True
        self._files.clear()
        # Before the worker knows that it may cancel: from now on a signal is for this prediction.
        self._cancelation.begin()
        try:
            self._channel.send(events.accepted(id, accepted.urls, accepted.ignored))
            paths: list[str] = []
            if accepted.urls or message.get("hold"):
                answer = receive()
                if answer is None:
                    return False
                if answer["type"] == "drop" and answer.get("id") == message["id"]:
                    self._channel.send(events.done(id, b"canceled", False, 0.0))
                    return True
                paths = local_paths(answer, message["id"], len(accepted.urls))
            scope = Scope(message.get("context") or {})
            enter_scope(scope)
            try:
                self._predict(id, accepted, paths, scope)
            finally:
                enter_scope(None)
        finally:
            self._cancelation.end()
        return True

    def _predict(self, id: bytes, accepted: Accepted, paths: list[str], scope: Scope) -> None:
        cancelation = self._cancelation
        arguments = accepted.arguments
        status, error, platform = b"succeeded", None, False
        output: Optional[bytes] = None
        files = b""
        run = _Run(id, self._channel, self._encode, cancelation, self._loop)
        started = perf_counter()
        try:
            try:
                if accepted.files:
                    accepted.fill(paths)
                    started = perf_counter()
                cancelation.in_model = True
                if cancelation.pending:
                    raise CancelationException
                result = self._call(**arguments)
                cancelation.in_model = False
                if type(result) not in JSON_ONLY:
                    result = run.follow(result)
                if not run.streamed:
                    output, files = self._encode(result)
            except BaseException:
                # The signal may still strike before this line; then the outer clause gets what it raises.
                cancelation.in_model = False
                raise
        except CancelationException:
            status = b"canceled"
        except SystemExit as exit:
            exit_as(exit)
        except BaseException as raised:
            if cancelation.requested and is_cancelation(raised):
                status = b"canceled"
            else:
                status, error, platform = b"failed", describe(raised), isinstance(raised, StorageError)
                if not platform:
                    show(raised)
        ended = perf_counter()
        if accepted.closing:
            accepted.close()
        flush_streams()
        metrics = self._encode(scope.recorded)[0] if scope.recorded else b""
        self._channel.send(
            events.done(id, status, run.streamed, ended - started, output, files, error, metrics, platform)
        )


def local_paths(answer: dict[str, Any], id: str, count: int) -> list[str]:
    """The local files that a `go` brings."""
    if answer["type"] != "go" or answer.get("id") != id:
        raise ProtocolError(f"{answer['type']} came while {id} waited for go")
    paths = answer.get("paths") or []
    if len(paths) != count:
        raise ProtocolError(f"{len(paths)} paths came for the {count} files of {id}")
    return list(paths)


class _Run:
    """What one prediction put out beyond a plain value: yields, sent as they come, and what is awaited."""

    __slots__ = ("_cancelation", "_channel", "_encode", "_id", "_loop", "streamed")

    def __init__(self, id: bytes, channel: Channel, encode: Any, cancelation: Cancelation, loop: Loop) -> None:
        self._id = id
        self._channel = channel
        self._encode = encode
        self._cancelation = cancelation
        self._loop = loop
        self.streamed = False

    def follow(self, result: Any) -> Any:
        """Iterate or await what predict() returned; returns the value in the end, None when it was streamed."""
        if isinstance(result, (CoroutineType, AsyncGeneratorType)) or hasattr(result, "__await__"):
            if not hasattr(result, "__await__"):
                self.streamed = True
                return self._loop.run(self._stream_async(result), self._cancelation)
            result = self._loop.run(awaited(result), self._cancelation)
            return self.follow(result)
        if hasattr(type(result), "__anext__"):
            self.streamed = True
            return self._loop.run(self._stream_async(result), self._cancelation)
        if isinstance(result, (GeneratorType, Iterator)) and not hasattr(result, "read"):
            self.streamed = True
            self._stream(result)
            return None
        return result

    def _send(self, value: Any) -> None:
        encoded, files = self._encode(value, True)
        self._channel.send(events.output(self._id, encoded, files))

    def _stream(self, results: Any) -> None:
        cancelation = self._cancelation
        advance = results.__next__
        send = self._send
        try:
            while True:
                cancelation.in_model = True
                value = _interrupt(results, cancelation) if cancelation.pending else advance()
                cancelation.in_model = False
                send(value)
        except StopIteration:
            cancelation.in_model = False
        except BaseException:
            cancelation.in_model = False
            _close(results)
            raise

    async def _stream_async(self, results: Any) -> None:
        try:
            async for value in results:
                self._send(value)
                if self._cancelation.requested:
                    # A generator that never waits would never let its cancelation in.
                    await self._loop.give_way()
        finally:
            close = getattr(results, "aclose", None)
            if close is not None:
                await close()


def _interrupt(results: Any, cancelation: Cancelation) -> Any:
    """Raise in a generator what a signal could not, because we were at work between two of its steps."""
    cancelation.pending = False
    if hasattr(results, "throw"):
        return results.throw(CancelationException())
    raise CancelationException


def _close(results: Any) -> None:
    """Let a generator clean up. What it raises then is shown, and changes nothing."""
    try:
        close = getattr(results, "close", None)
        if close is not None:
            close()
    except Exception as error:
        show(error)
