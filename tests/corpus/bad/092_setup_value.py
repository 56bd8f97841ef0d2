# setup that is no function.
# refused: setup is not a function

from cog import BasePredictor


class Predictor(BasePredictor):  # <- here
    setup = 3

    def predict(self) -> str:
        return ""
