"""Asks the model's healthcheck() whether it is well, within a limit.

It must not know who wants to know.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Optional

from .failures import describe
from .functions import is_async
from .loop import Loop
from .standard import import_standard

LIMIT = 5.0
"""Seconds for an answer."""

Answer = tuple[bool, Optional[str]]
"""Whether the model is well, and why not."""

LATE: Answer = (False, f"healthcheck() did not answer within {LIMIT:g} s")


class Health:
    """A model without healthcheck() is well. One that is not async runs in a thread, which may never come back."""

    def __init__(self, healthcheck: Optional[Callable[[], Any]], loop: Loop) -> None:
        self._call = healthcheck
        self._loop = loop
        self._thread: Any = None

    def check(self) -> Answer:
        """Ask and wait; no event loop may be running."""
        if self._call is None:
            return True, None
        if is_async(self._call):
            return self._loop.run(self.check_in_loop())  # type: ignore[no-any-return]
        answers: list[Answer] = []
        if self._start(answers.append):
            self._thread.join(LIMIT)
        return answers[0] if answers else LATE

    async def check_in_loop(self) -> Answer:
        """As check(), in the event loop."""
        if self._call is None:
            return True, None
        asyncio, events = self._loop.asyncio, self._loop.events
        try:
            if is_async(self._call):
                return _judge(await asyncio.wait_for(self._call(), LIMIT))
            future = events.create_future()

            def tell(answer: Answer) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    events.call_soon_threadsafe(_resolve, future, answer)

            if not self._start(tell):
                return LATE
            return await asyncio.wait_for(future, LIMIT)  # type: ignore[no-any-return]
        except asyncio.TimeoutError:
            return LATE
        except Exception as error:  # of the model's own code
            return False, describe(error)

    def _start(self, tell: Callable[[Answer], object]) -> bool:
        """Ask in a thread; False when the one that was asked before has not answered yet."""
        if self._thread is not None and self._thread.is_alive():
            return False
        call = self._call
        assert call is not None

        def ask() -> None:
            try:
                answer = _judge(call())
            except Exception as error:  # of the model's own code
                answer = False, describe(error)
            tell(answer)

        self._thread = import_standard("threading").Thread(target=ask, name="cog-healthcheck", daemon=True)
        self._thread.start()
        return True


def _judge(answer: Any) -> Answer:
    return (True, None) if answer else (False, f"healthcheck() returned {answer!r}")


def _resolve(future: Any, answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)
