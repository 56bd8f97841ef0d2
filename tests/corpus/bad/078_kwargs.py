# predict(**kwargs).
# refused: predict() must not have **kwargs

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, **inputs) -> str:  # <- here
        return ""
