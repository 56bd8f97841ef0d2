# min_length of an int.
# refused: incompatible input type for min_length/max_length: i: int

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = Input(min_length=1),  # <- here
    ) -> str:
        return ""
