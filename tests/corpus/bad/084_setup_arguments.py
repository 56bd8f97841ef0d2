# setup() with arguments.
# refused: unexpected setup() arguments: x, y

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self, x, y=1):  # <- here
        pass

    def predict(self) -> str:
        return ""
