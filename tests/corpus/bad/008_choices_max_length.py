# choices and max_length.
# refused: choices and min_length/max_length are mutually exclusive: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(choices=["a", "b"], max_length=1),  # <- here
    ) -> str:
        return ""
