# async setup() of a predict() that is not.
# refused: setup() is async, but predict() is not

from cog import BasePredictor


class Predictor(BasePredictor):
    async def setup(self):  # <- here
        pass

    def predict(self) -> str:
        return ""
