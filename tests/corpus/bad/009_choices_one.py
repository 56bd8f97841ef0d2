# A single choice.
# refused: choices=['a'] must have >= 2 elements: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(choices=["a"]),  # <- here
    ) -> str:
        return ""
