# An AsyncIterator of nothing.
# refused: iterator type must have a type argument

from typing import AsyncIterator

from cog import BasePredictor


class Predictor(BasePredictor):
    async def predict(self) -> AsyncIterator:  # <- here
        yield ""
