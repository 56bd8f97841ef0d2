# predict() whose first argument is not self.
# refused: predict() must have 'self' first argument

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(this, s: str) -> str:  # <- here
        return s
