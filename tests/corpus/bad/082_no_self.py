# predict() without any argument.
# refused: predict() must have 'self' first argument

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict() -> str:  # <- here
        return ""
