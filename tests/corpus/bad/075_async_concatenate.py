# An AsyncConcatenateIterator of numbers.
# refused: AsyncConcatenateIterator must have str element

from cog import AsyncConcatenateIterator, BasePredictor


class Predictor(BasePredictor):
    async def predict(self) -> AsyncConcatenateIterator[int]:  # <- here
        yield 1
