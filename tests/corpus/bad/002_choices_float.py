# choices of a float.
# refused: incompatible input type for choices: f: float

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        f: float = Input(choices=[1.0, 2.0]),  # <- here
    ) -> str:
        return ""
