# predict() that returns nothing.
# refused: predict() must not return None

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self) -> None:  # <- here
        pass
