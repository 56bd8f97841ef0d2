# async setup and predict.
# {"s": "a"} -> "a loaded"
# {"s": "b"} -> "b loaded"

import asyncio

from cog import BasePredictor


class Predictor(BasePredictor):
    async def setup(self) -> None:
        await asyncio.sleep(0)
        self.state = "loaded"

    async def predict(self, s: str) -> str:
        await asyncio.sleep(0)
        return f"{s} {self.state}"
