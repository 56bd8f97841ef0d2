# No choice at all.
# refused: choices=[] must have >= 2 elements: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(choices=[]),  # <- here
    ) -> str:
        return ""
