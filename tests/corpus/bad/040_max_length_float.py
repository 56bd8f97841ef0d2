# max_length of a float.
# refused: incompatible input type for min_length/max_length: f: float

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        f: float = Input(max_length=1),  # <- here
    ) -> str:
        return ""
