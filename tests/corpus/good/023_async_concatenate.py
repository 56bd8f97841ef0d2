# AsyncConcatenateIterator.
# {} -> yields ["a", "b"]

from cog import AsyncConcatenateIterator, BasePredictor


class Predictor(BasePredictor):
    async def predict(self) -> AsyncConcatenateIterator[str]:
        yield "a"
        yield "b"
