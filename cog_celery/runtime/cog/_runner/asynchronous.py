"""The event loop for predictors that are async: one for the life of the process, and no asyncio at all for the others.

It must not know what it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Coroutine
from typing import Any, Optional

from .cancelation import Cancelation


class Loop:
    """Runs coroutines to their end in the main thread."""

    def __init__(self) -> None:
        self._asyncio: Any = None
        self._loop: Any = None

    def run(self, coroutine: Coroutine[Any, Any, Any], cancelation: Optional[Cancelation] = None) -> Any:
        """The coroutine's result; a cancelation cancels its task. Raises what it raises."""
        loop = self._started()
        task = loop.create_task(coroutine)
        if cancelation is None:
            return loop.run_until_complete(task)
        # The handler runs between two steps of the loop, which may be asleep: that wakes it.
        cancelation.wake = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            if cancelation.pending:
                cancelation.pending = False
                task.cancel()
            return loop.run_until_complete(task)
        finally:
            cancelation.wake = None

    async def give_way(self) -> None:
        """Let the loop do what else is to be done."""
        await self._asyncio.sleep(0)

    def close(self) -> None:
        """Cancel what still runs, and close."""
        if self._loop is None:
            return
        tasks = self._asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(self._asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _started(self) -> Any:
        if self._loop is None:
            self._asyncio = import_standard("asyncio")
            self._loop = self._asyncio.new_event_loop()
            self._asyncio.set_event_loop(self._loop)
        return self._loop


def import_standard(name: str) -> Any:
    """Import a module of Python's own, although the model's folder may hold a file called like something it imports."""
    path = sys.path[:]
    here = os.getcwd()
    sys.path[:] = [entry for entry in path if entry and os.path.abspath(entry) != here]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path
