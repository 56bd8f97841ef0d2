# A default that is too short.
# refused: default='a' conflicts with min_length=2 for input: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(default="a", min_length=2),  # <- here
    ) -> str:
        return ""
