# An async generator.
# {"n": 2} -> yields ["0", "1"]

from typing import AsyncIterator

from cog import BasePredictor


class Predictor(BasePredictor):
    async def predict(self, n: int) -> AsyncIterator[str]:
        for i in range(n):
            yield str(i)
