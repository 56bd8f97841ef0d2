# A default above le.
# refused: default=20 conflicts with le=10 for input: i: int

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = Input(default=20, le=10),  # <- here
    ) -> str:
        return ""
