# choices of several types.
# refused: not all choices have the same type as input: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(choices=["a", 1]),  # <- here
    ) -> str:
        return ""
