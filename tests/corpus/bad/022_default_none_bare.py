# = None of a str.
# refused: error-prone usage of default=None

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = None,  # <- here
    ) -> str:
        return ""
