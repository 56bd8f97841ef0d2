# default=None of a str.
# refused: error-prone usage of default=None

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(default=None),  # <- here
    ) -> str:
        return ""
