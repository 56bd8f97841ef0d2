# A default that is too long.
# refused: default='abc' conflicts with max_length=2 for input: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(default="abc", max_length=2),  # <- here
    ) -> str:
        return ""
