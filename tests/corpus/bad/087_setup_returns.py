# setup() that returns something.
# refused: setup() must return None

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> str:  # <- here
        return ""

    def predict(self) -> str:
        return ""
