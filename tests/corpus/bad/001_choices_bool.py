# choices of a bool.
# refused: incompatible input type for choices: b: bool

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        b: bool = Input(choices=[True, False]),  # <- here
    ) -> str:
        return ""
