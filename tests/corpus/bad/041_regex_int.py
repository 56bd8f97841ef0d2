# regex of an int.
# refused: incompatible input type for regex: i: int

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = Input(regex="1"),  # <- here
    ) -> str:
        return ""
