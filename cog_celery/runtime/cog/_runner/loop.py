"""The event loop for predictors that are async: one for the life of the process, and no asyncio at all for the others.

It must not know what it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any, Optional

from .cancelation import Cancelation
from .standard import import_standard


class Loop:
    """Runs coroutines in the main thread. `asyncio` and `events`, its loop, are there once it was started."""

    def __init__(self) -> None:
        self.asyncio: Any = None
        self.events: Any = None

    def start(self) -> None:
        """Import asyncio and make the loop, unless that was done. What a model makes from now on belongs to it."""
        if self.events is not None:
            return
        self.asyncio = import_standard("asyncio")
        if sys.version_info < (3, 10):
            # What the model made while it was imported, a Queue say, belongs to this one already.
            self.events = self.asyncio.get_event_loop()
        else:
            self.events = self.asyncio.new_event_loop()
            self.asyncio.set_event_loop(self.events)

    def run(self, coroutine: Coroutine[Any, Any, Any], cancelation: Optional[Cancelation] = None) -> Any:
        """The coroutine's result; a cancelation cancels its task. Raises what it raises."""
        self.start()
        task = self.events.create_task(coroutine)
        if cancelation is None:
            return self.events.run_until_complete(task)
        # The handler runs between two steps of the loop, which may be asleep: that wakes it.
        cancelation.wake = lambda: self.events.call_soon_threadsafe(task.cancel)
        try:
            if cancelation.pending:
                cancelation.pending = False
                task.cancel()
            return self.events.run_until_complete(task)
        finally:
            cancelation.wake = None

    async def give_way(self) -> None:
        """Let the loop do what else is to be done."""
        await self.asyncio.sleep(0)

    def close(self) -> None:
        """Cancel what still runs, and close."""
        if self.events is None:
            return
        tasks = self.asyncio.all_tasks(self.events)
        for task in tasks:
            task.cancel()
        if tasks:
            self.events.run_until_complete(self.asyncio.gather(*tasks, return_exceptions=True))
        self.events.run_until_complete(self.events.shutdown_asyncgens())
        self.events.close()


async def awaited(value: Any) -> Any:
    """What an awaitable gives, as a coroutine."""
    return await value
