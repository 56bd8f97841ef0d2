"""Answers what a worker asks about the model itself: whether it is well, its schema, its test inputs.

It must not know about predictions.
"""

from __future__ import annotations

from typing import Any

from . import events
from .channel import Channel
from .failures import describe, show
from .load import Predictor
from .loop import Loop
from .outputs import Encoder, Files, to_json


class Queries:
    """Each is one message, and one event in answer."""

    def __init__(self, predictor: Predictor, loop: Loop, channel: Channel) -> None:
        self._predictor = predictor
        self._loop = loop
        self._channel = channel
        self._health: Any = None
        self._asking: set[Any] = set()
        """Tasks, kept here: the event loop does not."""

    def answer(self, message: dict[str, Any]) -> bool:
        """Answer between two predictions; False for a message that is none of these."""
        if message["type"] == "healthcheck":
            self._channel.send(events.health(*self._made_health().check()))
            return True
        return self._answer_other(message)

    def answer_in_loop(self, message: dict[str, Any]) -> bool:
        """As answer(), while predictions may run. An answer about health comes later."""
        if message["type"] == "healthcheck":
            task = self._loop.events.create_task(self._tell_health())
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            return True
        return self._answer_other(message)

    async def _tell_health(self) -> None:
        self._channel.send(events.health(*await self._made_health().check_in_loop()))

    def _made_health(self) -> Any:
        if self._health is None:
            from .health import Health

            self._health = Health(self._predictor.healthcheck, self._loop)
        return self._health

    def _answer_other(self, message: dict[str, Any]) -> bool:
        if message["type"] == "schema":
            from .document import openapi

            self._channel.send(events.schema(openapi(self._predictor.signature)))
        elif message["type"] == "test_inputs":
            self._channel.send(self._test_inputs())
        else:
            return False
        return True

    def _test_inputs(self) -> bytes:
        given = self._predictor.test_inputs
        try:
            if callable(given):
                given = given()
            if given is not None and not isinstance(given, dict):
                raise TypeError(f"test_inputs is {type(given).__name__}, not a dict")
            # They come back as inputs, so its Secrets must be what they are.
            input, files = Encoder(Files(), reveal=True).encode(given)
        except Exception as error:  # of the model's own code
            show(error)
            return events.test_inputs(to_json(None), b"", describe(error))
        return events.test_inputs(input, files, None)
