# A default of another type.
# refused: default='x' is not of the type of input: i: int

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = "x",  # <- here
    ) -> str:
        return ""
