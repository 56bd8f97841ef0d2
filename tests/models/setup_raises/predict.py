"""A predictor whose setup raises."""

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("looking for weights")
        raise RuntimeError("no weights here")

    def predict(self) -> str:
        return "never"
