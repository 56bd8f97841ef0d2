"""Runs predictions of an async predictor: each is a task of one event loop, in a slot of its own, several at once.

It must not know how it was loaded. What a prediction prints, records and puts out is kept apart by the context of its
task; where only one slot is in use there is nothing to keep apart, and its logs are the process's.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter  # as it is now, whatever the model does to it
from types import GeneratorType
from typing import Any, Callable, Optional

from ..exceptions import CancelationException
from ..scope import Scope, enter_scope, enter_scope_in_context
from . import events
from .cancelation import Cancelation, is_cancelation
from .channel import Channel
from .failures import describe, exit_as, show
from .load import Predictor
from .logs import Log
from .loop import Loop
from .outputs import Encoder, Files, StorageError, to_json
from .prediction import JSON_ONLY, ProtocolError, local_paths
from .process import flush_streams, write_error
from .validation import Accepted, Validator
from .watch import Watch

Message = dict[str, Any]


class _Task:
    """A prediction from its acceptance to its end."""

    __slots__ = ("accepted", "canceled", "context", "entered", "id", "log", "named", "slot", "streamed", "task")

    def __init__(self, message: Message, slot: int, accepted: Accepted) -> None:
        self.named: str = message["id"]
        self.id = to_json(message["id"])
        self.slot = slot
        self.accepted = accepted
        self.context: dict[str, str] = message.get("context") or {}
        self.canceled = False
        self.entered = False
        """Whether its coroutine has begun: a task that is canceled before would end without a word."""
        self.streamed = False
        self.task: Any = None
        """None while it waits for go."""
        self.log: Optional[Log] = None


class Tasks:
    """All that run in this process, at most `limit` at once."""

    def __init__(
        self, predictor: Predictor, channel: Channel, cancelation: Cancelation, loop: Loop, limit: int
    ) -> None:
        self._call = predictor.call
        self._validator = Validator(predictor.signature)
        self._channel = channel
        self._cancelation = cancelation
        self._loop = loop
        self._files = [Files() for _ in range(limit)]
        self._slots: list[Optional[_Task]] = [None] * limit
        self._by_id: dict[str, _Task] = {}
        self._watch = Watch(loop, self._tell_blocked) if limit > 1 else None
        if limit > 1:
            channel.share()

    def serve(self, parse: Callable[[bytes], Optional[Message]], other: Callable[[Message], bool]) -> None:
        """Run until the worker has no more. `parse` reads a message, None for one that it answered itself; `other`
        takes those that are about no prediction, False when it does not know them. Raises ProtocolError.
        """
        ended = self._loop.events.create_future()

        def take() -> None:
            try:
                lines = self._channel.receive_all()
                if lines is None:
                    if not ended.done():
                        ended.set_result(None)
                    return
                for line in lines:
                    message = parse(line)
                    if message is not None and not self._take(message) and not other(message):
                        raise ProtocolError(
                            f"The worker sent {message['type']!r}, which is no message of protocol {events.PROTOCOL}."
                        )
            except BaseException as error:
                if not ended.done():
                    ended.set_exception(error)

        if self._channel.has_lines:
            self._loop.events.call_soon(take)
        self._loop.events.add_reader(self._channel.read_fd, take)
        try:
            self._loop.events.run_until_complete(ended)
        finally:
            self._loop.events.remove_reader(self._channel.read_fd)
            self._channel.send = lambda line: None  # what still runs is canceled, and nobody waits for it
            for files in self._files:
                files.clear()

    # -- messages

    def _take(self, message: Message) -> bool:
        """Heed a message; False for one that is about no prediction."""
        kind = message["type"]
        if kind == "predict":
            self._begin(message)
        elif kind in ("go", "drop", "cancel"):
            task = self._by_id.get(message.get("id", ""))
            if task is None:  # it is over
                return True
            if kind == "cancel":
                self._cancel(task)
            elif task.task is None:
                self._go(task, message)
        else:
            return False
        return True

    def _begin(self, message: Message) -> None:
        slot = message.get("slot", 0)
        if not isinstance(slot, int) or not 0 <= slot < len(self._slots) or self._slots[slot] is not None:
            raise ProtocolError(f"{message['id']} came for slot {slot!r}, which is not free")
        accepted, errors = self._validator.validate(message["input"])
        if accepted is None:
            self._channel.send(events.refused(to_json(message["id"]), errors))
            return
        self._files[slot].clear()
        task = _Task(message, slot, accepted)
        self._slots[slot] = self._by_id[task.named] = task
        if len(self._slots) == 1:
            # A signal needs no name then. From now on it is for this prediction.
            self._cancelation.begin()
            self._cancelation.wake = lambda: self._loop.events.call_soon_threadsafe(self._cancel, task)
        self._channel.send(events.accepted(task.id, accepted.urls, accepted.ignored))
        if not accepted.urls and not message.get("hold"):
            self._start(task, [])

    def _go(self, task: _Task, message: Message) -> None:
        if message["type"] == "drop":
            self._end(task)
            self._channel.send(events.done(task.id, b"canceled", False, 0.0))
        else:
            self._start(task, local_paths(message, task.named, len(task.accepted.urls)))

    def _start(self, task: _Task, paths: list[str]) -> None:
        if self._watch is not None:
            self._watch.start()
        task.task = self._loop.events.create_task(self._predict(task, paths))

    def _cancel(self, task: _Task) -> None:
        # Once: a second one would strike the model's clean-up.
        if not task.canceled:
            task.canceled = True
            if task.entered:
                task.task.cancel()

    def _end(self, task: _Task) -> None:
        self._slots[task.slot] = None
        del self._by_id[task.named]
        if len(self._slots) == 1:
            self._cancelation.end()
            self._cancelation.wake = None
        elif self._watch is not None and not self._by_id:
            self._watch.stop()

    # -- a prediction

    async def _predict(self, task: _Task, paths: list[str]) -> None:
        task.entered = True
        scope = Scope(task.context)
        self._enter(task, scope)
        encode = Encoder(self._files[task.slot]).encode
        status, error, platform = b"succeeded", None, False
        output: Optional[bytes] = None
        files = b""
        started = perf_counter()
        try:
            if task.accepted.files:
                task.accepted.fill(paths)
                started = perf_counter()
            if task.canceled:
                raise CancelationException
            result = self._call(**task.accepted.arguments)
            if type(result) not in JSON_ONLY:
                result = await self._follow(task, result, encode)
            if not task.streamed:
                output, files = encode(result)
        except CancelationException:
            status = b"canceled"
        except SystemExit as exit:
            exit_as(exit)
        except BaseException as raised:
            if task.canceled and is_cancelation(raised):
                status = b"canceled"
            else:
                status, error, platform = b"failed", describe(raised), isinstance(raised, StorageError)
                if not platform:
                    show(raised, self._writer(task))
        ended = perf_counter()
        task.accepted.close()
        flush_streams()
        if task.log is not None:
            task.log.close()
        if len(self._slots) == 1:
            enter_scope(None)
        metrics = encode(scope.recorded)[0] if scope.recorded else b""
        self._end(task)
        self._channel.send(
            events.done(task.id, status, task.streamed, ended - started, output, files, error, metrics, platform)
        )

    def _enter(self, task: _Task, scope: Scope) -> None:
        if len(self._slots) == 1:
            enter_scope(scope)
            return
        enter_scope_in_context(scope)
        id = task.id
        task.log = Log(lambda text: self._channel.send(events.log(id, text)))
        task.log.enter()

    def _writer(self, task: _Task) -> Callable[[str], object]:
        return write_error if task.log is None else task.log.write

    async def _follow(self, task: _Task, result: Any, encode: Any) -> Any:
        """Await or iterate what predict() returned; returns the value in the end, None when it was streamed."""
        while hasattr(result, "__await__"):
            result = await result
        if hasattr(type(result), "__anext__"):
            task.streamed = True
            await self._stream(task, result, encode)
            return None
        if isinstance(result, (GeneratorType, Iterator)) and not hasattr(result, "read"):
            task.streamed = True
            await self._stream(task, _Async(result), encode)
            return None
        return result

    async def _stream(self, task: _Task, results: Any, encode: Any) -> None:
        alone = len(self._slots) == 1
        try:
            async for value in results:
                encoded, files = encode(value, True)
                self._channel.send(events.output(task.id, encoded, files))
                if not alone or task.canceled:
                    # A generator that never waits would let nothing else run, nor its own cancelation in.
                    await self._loop.give_way()
        finally:
            close = getattr(results, "aclose", None)
            if close is not None:
                await close()

    def _tell_blocked(self, running: Any, seconds: float, at: str) -> None:
        """Called by the watch, in its thread."""
        named = [task.id for task in list(self._by_id.values()) if task.task is running]
        self._channel.send(events.blocked(named[0] if named else None, seconds, at))


class _Async:
    """An iterator, for `async for`."""

    def __init__(self, results: Any) -> None:
        self._results = results

    def __aiter__(self) -> _Async:
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self._results)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        close = getattr(self._results, "close", None)
        if close is not None:
            close()
