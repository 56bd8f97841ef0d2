# ge of a str.
# refused: incompatible input type for ge/le: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(ge=1),  # <- here
    ) -> str:
        return ""
