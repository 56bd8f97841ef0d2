# A default above a float le.
# refused: default=2.5 conflicts with le=1.5 for input: f: float

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        f: float = Input(default=2.5, le=1.5),  # <- here
    ) -> str:
        return ""
