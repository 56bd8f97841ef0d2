# ge of a bool.
# refused: incompatible input type for ge/le: b: bool

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        b: bool = Input(ge=1),  # <- here
    ) -> str:
        return ""
