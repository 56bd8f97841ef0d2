# min_length that is no whole number.
# refused: min_length=1.5 is not int: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(min_length=1.5),  # <- here
    ) -> str:
        return ""
