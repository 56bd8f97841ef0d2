# A method that is not async may return what is awaited.
# {} -> "later"

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self) -> str:
        return self.later()

    async def later(self):
        return "later"
