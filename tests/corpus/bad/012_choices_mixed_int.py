# choices of another type than the input's.
# refused: not all choices have the same type as input: i: int

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = Input(choices=["a", "b"]),  # <- here
    ) -> str:
        return ""
