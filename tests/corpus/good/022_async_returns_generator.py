# An async predict() may return a generator.
# {} -> yields [1, 2]

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    async def predict(self) -> Any:
        return (i for i in (1, 2))
