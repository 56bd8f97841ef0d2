# A default that is no whole number.
# refused: default=1.5 is not of the type of input: i: int

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = 1.5,  # <- here
    ) -> str:
        return ""
