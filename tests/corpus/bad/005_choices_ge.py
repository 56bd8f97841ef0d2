# choices and ge.
# refused: choices and ge/le are mutually exclusive: i: int

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = Input(choices=[1, 2], ge=1),  # <- here
    ) -> str:
        return ""
