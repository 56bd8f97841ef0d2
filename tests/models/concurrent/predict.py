"""A predictor that runs several predictions at once, each as its `mode` says; `text` marks what is its own.

`gate` names a meeting point of one runner: an event that stays set once it was.
"""

import asyncio
import inspect
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from cog import BasePredictor, Input, current_scope


class Predictor(BasePredictor):
    async def setup(self) -> None:
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.here: defaultdict[str, int] = defaultdict(int)

    async def predict(
        self,
        mode: str,
        text: str = Input(default=""),
        gate: str = Input(default=""),
        count: int = Input(default=1, ge=0),
        seconds: float = Input(default=0.0, ge=0),
    ) -> Any:
        current_scope().record_metric("pid", os.getpid())
        print(f"{text} begins in {os.getpid()}")
        result = getattr(self, mode)(text=text, gate=self.gates[gate], name=gate, count=count, seconds=seconds)
        return result if inspect.isasyncgen(result) else await result

    async def meets(self, text: str, gate: asyncio.Event, name: str, count: int, **_: Any) -> AsyncIterator[str]:
        """Goes on when `count` are here, in turns with the others."""
        self.here[name] += 1
        if self.here[name] == count:
            gate.set()
        await gate.wait()
        for step in range(3):
            print(f"{text} {step}")
            current_scope().record_metric("steps", f"{text} {step}", mode="append")
            yield f"{text} {step}"
            await asyncio.sleep(0)
        print(f"{text} ends")

    async def waits(self, text: str, gate: asyncio.Event, **_: Any) -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            print(f"{text} cleans up")
            raise
        print(f"{text} ends")
        return text

    async def opens(self, gate: asyncio.Event, **_: Any) -> None:
        gate.set()

    async def sleeps(self, text: str, seconds: float, **_: Any) -> str:
        await asyncio.sleep(seconds)
        return text

    async def raises(self, text: str, **_: Any) -> None:
        raise ValueError(text)

    async def blocks(self, text: str, seconds: float, **_: Any) -> str:
        time.sleep(seconds)
        return text

    async def ignores(self, text: str, **_: Any) -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print(f"{text} goes on")

    async def exits(self, count: int, **_: Any) -> None:
        os._exit(count)
