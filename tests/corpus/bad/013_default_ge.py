# A default below ge.
# refused: default=0 conflicts with ge=10 for input: i: int

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = Input(default=0, ge=10),  # <- here
    ) -> str:
        return ""
